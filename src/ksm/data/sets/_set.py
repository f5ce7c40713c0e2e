"""The description of a data set: its source, its licence, and how it is written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ksm.core.packages import Debian, Package, fetch

Progress = Callable[[str], None]


def _ready() -> None:
    """Ask for nothing beyond the dependencies of ksm."""


@dataclass(frozen=True)
class ImageSet:
    """A data set from package registries.

    Args:
        name: for `ksm.data.sets.get`, and of its folder.
        about: one line: subject, number of images, their size, classes and split.
        license: licences of the images, one line.
        credit: who made them, and what to cite.
        packages: the packages that the images are read from.
        write: writes `train|val|test/CLASS/*.png` below the given folder.
        ready: called before a download; raises KsmError where `write` needs a package that is not
            installed.
    """

    name: str
    about: str
    license: str
    credit: str
    packages: tuple[Package, ...]
    write: Callable[[Path, Progress], None]
    ready: Callable[[], None] = _ready

    @property
    def source(self) -> str:
        """The packages with their versions, one line."""
        return ", ".join(str(package) for package in self.packages)

    @property
    def needs(self) -> tuple[str, ...]:
        """The registry clients that must be installed: of "pip", "npm" and "apt-get"."""
        return tuple(dict.fromkeys(package.client for package in self.packages))

    def license_text(self) -> str:
        """Write licence, source and attribution, then the notices in the packages."""
        lines = [self.heading, "", self.about, "", f"Licence: {self.license}", ""]
        lines += [f"Made by: {self.credit}", "", "Read from:"]
        notices: list[str] = []
        for package in self.packages:
            lines.append(f"  {package}{_version_that_came(package)}")
            for file in _notices(fetch(package)):
                text = file.read_text(encoding="utf-8", errors="replace").strip()
                notices.append(f"\n---- {package}: {file.name}\n\n{text}")
        return "\n".join([*lines, *notices]) + "\n"

    @property
    def heading(self) -> str:
        """First line of the folder's LICENSE.txt, by which `get` recognises the folder."""
        return f"Image set: {self.name}"


def _version_that_came(package: Package) -> str:
    if isinstance(package, Debian):
        return " " + (fetch(package) / "VERSION").read_text().strip()
    return ""


def _notices(content: Path) -> Iterator[Path]:
    for pattern in ("*.dist-info/licenses/*", "package/LICENSE*", "usr/share/doc/*/copyright"):
        yield from sorted(path for path in content.glob(pattern) if path.is_file())

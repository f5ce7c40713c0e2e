"""A bank: a folder with one file a task.

A task file, `NAME.safetensors`, holds the task's tensors and, in the safetensors metadata under
the key `ksm`, JSON that says everything else needed to use it. Its `digest` is the SHA-256 of all
that the file means (the JSON without it, and each tensor), so that an altered file is refused.
Files are written beside their place and renamed into it: a reader finds the old one or the new.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open

from ksm.errors import KsmError

if TYPE_CHECKING:
    from torch import Tensor

    from ksm.task import Task

FORMAT = 1
LARGEST = 16
"""How far a task's network may have grown, in sizes of the backbone."""
SUFFIX = ".safetensors"
_SHAPE: dict[str, type] = {
    "name": str,
    "classes": list,
    "method.name": str,
    "backbone.name": str,
    "backbone.head": str,
    "backbone.fingerprint": str,
    "backbone.preprocess.size": int,
    "bytes.mask": int,
    "bytes.norm": int,
    "bytes.head": int,
    "record": dict,
    "metrics": dict,
}
"""What is always there; the rest of `record` and `metrics` is its author's affair."""


class Bank:
    """The tasks in a folder, by name.

    Args:
        folder: made when the first task is saved.
    """

    def __init__(self, folder: str | os.PathLike[str] = "bank") -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Names of the tasks in the folder, sorted."""
        if not self.folder.is_dir():
            return []
        files = [path for path in self.folder.glob(f"*{SUFFIX}") if path.is_file()]
        return sorted(name for file in files if _plain(name := file.name.removesuffix(SUFFIX)))

    def __contains__(self, name: str) -> bool:
        return _plain(name) and self.path(name).is_file()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def path(self, name: str) -> Path:
        """Where the task's file is, or would be.

        Raises:
            KsmError: not a plain file name.
        """
        if not _plain(name):
            raise KsmError(
                f"task name {name!r}: expected letters, digits, '.', '_' and '-', the first a "
                "letter or digit, at most 100 characters (200 bytes)"
            )
        return self.folder / f"{name}{SUFFIX}"

    def check_free(self, name: str, force: bool = False) -> None:
        """Tell before any work whether `save` could take a task of that name.

        Raises:
            KsmError: the name is not plain or is taken, the folder cannot be written to, or other
                tasks build on the one that would be replaced.
        """
        path = self.path(name)
        if path.is_dir():
            raise KsmError(f"{path} is a folder where the task's file should be: remove it")
        if path.exists() and not force:
            raise KsmError(
                f"{path} exists: choose another name, or give --force (force=True) to replace it"
            )
        if path.exists():
            self._check_leaf(name)
        try:
            new = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            if new:
                self.folder.rmdir()
        except OSError as error:
            raise KsmError(f"cannot write to bank {self.folder}: {_reason(error)}") from error

    def save(self, task: Task, force: bool = False) -> Path:
        """Write the task's file and return its path.

        Raises:
            KsmError: the name is not plain or is taken (unless `force`), the folder or disk
                cannot take the file, or a task that it builds on is not in the bank; what was
                there before is still there.
        """
        self.check_free(task.name, force)
        path = self.path(task.name)
        self.check_earlier(task.name, task.earlier)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, task)
        return path

    def check_earlier(self, name: str, earlier: Sequence[Task]) -> None:
        """Tell before any work whether a task could be saved that builds on these.

        Raises:
            KsmError: one is not in the bank, or another task of its name is.
        """
        for one in earlier:
            if one.name not in self or self.header(one.name)["digest"] != digest_of(one):
                raise KsmError(
                    f"task {name!r} builds on task {one.name!r}, which is not in "
                    f"{self.folder}, or not as it was: save it there first"
                )

    def load(self, name: str) -> Task:
        """Read a task. Its name is the file's: who renames the file renames the task.

        Raises:
            KsmError: there is no such task, its file is damaged or of a newer format, or a task
                that it builds on is gone or was altered.
        """
        task, links = _read(self._existing(name))
        earlier: list[Task] = []
        for parent, digest in links:
            if parent not in self:
                raise KsmError(f"task {name!r} builds on {parent!r}, which is not in {self.folder}")
            one, _ = _read(self.path(parent))
            if one.digest != digest:
                raise KsmError(
                    f"task {name!r} builds on {parent!r}, whose file in {self.folder} is another"
                )
            earlier.append(replace(one, name=parent, earlier=tuple(earlier)))
        return replace(task, name=name, earlier=tuple(earlier))

    def chain(self, method: str, fingerprint: str) -> tuple[Task, ...]:
        """The tasks that a new task of a method would build on, the oldest first.

        Args:
            method: name of a method whose tasks share weights.
            fingerprint: of the backbone.

        Raises:
            KsmError: as `load`, or there are several such chains.
        """
        found = {
            name: [link[0] for link in header.get("earlier", [])]
            for name, header in self._headers().items()
            if header["method"]["name"] == method
            and header["backbone"]["fingerprint"] == fingerprint
        }
        ends = [name for name in found if not any(name in links for links in found.values())]
        if len(ends) > 1:
            raise KsmError(
                f"{self.folder} has several chains of {method} tasks on this backbone, which end "
                f"with {', '.join(ends)}: keep each in a bank of its own"
            )
        if not ends:
            return ()
        last = self.load(ends[0])
        return (*last.earlier, last)

    def header(self, name: str) -> dict[str, Any]:
        """The JSON of a task's file alone, without its tensors; not checked against the digest.

        Raises:
            KsmError: as `load`, as far as the JSON shows it.
        """
        return {**read_header(self._existing(name)), "name": name}

    def remove(self, name: str) -> None:
        """Delete a task's file.

        Raises:
            KsmError: there is no such task, others build on it, or the folder cannot be written
                to.
        """
        path = self._existing(name)
        self._check_leaf(name)
        try:
            path.unlink()
        except OSError as error:
            raise KsmError(f"cannot remove {path}: {_reason(error)}") from error

    def _check_leaf(self, name: str) -> None:
        """No other task builds on this one."""
        for other, header in self._headers().items():
            if name in [link[0] for link in header.get("earlier", [])]:
                raise KsmError(f"task {other!r} builds on {name!r}: remove {other!r} first")

    def _headers(self) -> dict[str, dict[str, Any]]:
        """Those that can be read: a damaged file must not keep others from their work."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.names():
            with suppress(KsmError):
                found[name] = self.header(name)
        return found

    def _existing(self, name: str) -> Path:
        path = self.path(name)
        if not path.is_file():
            known = ", ".join(self.names()) or "none"
            raise KsmError(f"no task {name!r} in {self.folder}; the tasks there: {known}")
        return path


def write(path: Path, task: Task) -> None:
    """Write one task file, atomically.

    Raises:
        KsmError: no room, or no permission; a file that was there before is unharmed.
    """
    from safetensors.torch import save

    meta = _meta(task)
    meta["digest"] = _digest(meta, task.tensors)
    content = save(task.tensors, {"ksm": json.dumps(meta, ensure_ascii=False)})
    write_atomically(path, content)


def digest_of(task: Task) -> str:
    """SHA-256, in hex, of all that a task's file means; of a task from a file, that file's."""
    return task.digest or _digest(_meta(task), task.tensors)


def _meta(task: Task) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "format": FORMAT,
        "name": task.name,
        "classes": list(task.classes),
        "method": task.method.settings(),
        "backbone": {**asdict(task.backbone), "fingerprint": task.fingerprint},
        "bytes": task.sizes(),
        "record": task.record,
        "metrics": task.metrics,
    }
    if task.earlier:
        meta["earlier"] = [[one.name, digest_of(one)] for one in task.earlier]
    if task.grown != 1:
        meta["grown"] = task.grown
    return json.loads(json.dumps(meta))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, and rename it into place.

    Raises:
        KsmError: it cannot be written; a file that was there before is unharmed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise KsmError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON of a task file.

    Raises:
        KsmError: not a task file, damaged, or of a newer format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("ksm")
        if text is None:
            raise KsmError(f"{path} is a safetensors file but no ksm task")
        meta = json.loads(text)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise KsmError(f"{path} is damaged or no task file: {error}") from error
    found = _at(meta, "format")
    if not isinstance(found, int):
        raise KsmError(f"{path} is damaged or no task file: it does not say its format")
    if found > FORMAT:
        raise KsmError(f"{path} has format {found}, this ksm reads up to {FORMAT}: update ksm")
    for key, kind in _SHAPE.items():
        if not isinstance(_at(meta, key), kind):
            raise KsmError(f"{path} is damaged: expected a {kind.__name__} as its {key!r}")
    links, grown = meta.get("earlier", []), meta.get("grown", 1.0)
    if not isinstance(links, list) or not all(_is_link(link) for link in links):
        raise KsmError(f"{path} is damaged: expected a name and a digest for each earlier task")
    if not isinstance(grown, int | float) or not 1 <= grown <= LARGEST:
        raise KsmError(f"{path} is damaged: grown is {grown}, expected 1 to {LARGEST}")
    if not all(isinstance(name, str) for name in meta["classes"]):
        raise KsmError(f"{path} is damaged: expected text for each of its classes")
    return meta


def read(path: Path) -> Task:
    """Read one task file and check it against its digest.

    Raises:
        KsmError: not a task file, damaged, of a newer format, or a task that builds on others,
            which only a bank can find.
    """
    task, links = _read(path)
    if links:
        raise KsmError(
            f"{path} builds on task {links[-1][0]!r}: load it through the Bank that has both"
        )
    return task


def _read(path: Path) -> tuple[Task, list[tuple[str, str]]]:
    """A task without those that it builds on, and the names and digests of these."""
    from safetensors.torch import load_file

    from ksm.backbones.describe import Description
    from ksm.data.preprocess import Preprocess
    from ksm.methods import make
    from ksm.task import Task

    meta = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise KsmError(f"{path} is damaged: {error}") from error
    digest = meta.pop("digest", None)
    if digest != _digest(meta, tensors):
        raise KsmError(f"{path} is damaged or was altered: its content does not fit its digest")
    backbone = meta["backbone"]
    try:
        prepare: dict[str, Any] = backbone["preprocess"]
        prepare = {**prepare, "mean": tuple(prepare["mean"]), "std": tuple(prepare["std"])}
        links = [(name, link) for name, link in meta.get("earlier", [])]
        task = Task(
            name=meta["name"],
            classes=tuple(meta["classes"]),
            method=make(**meta["method"]),
            backbone=Description(backbone["name"], backbone["head"], Preprocess(**prepare)),
            fingerprint=backbone["fingerprint"],
            tensors=tensors,
            grown=float(meta.get("grown", 1.0)),
            digest=digest,
            record=meta["record"],
            metrics=meta["metrics"],
        )
        return task, links
    except (KsmError, KeyError, TypeError, ValueError) as error:
        raise KsmError(
            f"{path} was written by another version of ksm or is damaged: {error}"
        ) from error


def _is_link(link: Any) -> bool:
    return isinstance(link, list) and [type(part) for part in cast("list[Any]", link)] == [str, str]


def _at(meta: Any, key: str) -> Any:
    """The value under a dotted key of nested objects; None where it is not there."""
    for part in key.split("."):
        meta = meta.get(part) if isinstance(meta, dict) else None
    return meta


def _digest(meta: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(name: str) -> bool:
    fits = re.fullmatch(r"[^\W_][\w.-]{0,99}", name) is not None
    return fits and len(name.encode()) <= 200  # file systems count bytes


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "no room left on the disk"
    if error.errno == errno.EEXIST:
        return "a file of that name is in the way"
    return error.strerror or str(error)

"""Emoji drawings by vendor, looked up by code point.

A code is the emoji's code points in upper-case hex joined by "-", without the variation selector
FE0F, which some vendors write and others leave out: "1F600", "1F468-200D-1F3A8".
"""

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ksm.core.packages import Npm, fetch
from ksm.errors import KsmError

# Code points for who does a thing or which way they face, not for what is done.
_WHO = {
    *("1F468", "1F469", "1F9D1", "1F466", "1F467", "1F9D2", "1F46A"),  # adults, children, family
    *("1F471", "1F9B0", "1F9B1", "1F9B2", "1F9B3"),  # hair
    *("2640", "2642", "27A1", "200D"),  # gender signs, the arrow "facing right", the joiner
}


@dataclass(frozen=True)
class Emoji:
    """One Unicode emoji: its code, its English name and its group ("animals-nature")."""

    code: str
    name: str
    group: str

    @property
    def subject(self) -> str:
        """Code without the person: the same for artist, man artist and woman artist.

        Vendors draw these from one template; a split keeps them together.
        """
        parts = [part for part in self.code.split("-") if part not in _WHO]
        return "-".join(parts) or "person"


@dataclass(frozen=True)
class Drawing:
    """A picture file, or an SVG document as text."""

    source: Path | str

    def render(self, size: int) -> Image.Image:
        """Draw it as an RGB picture of `size` x `size` px on white."""
        if isinstance(self.source, Path) and self.source.suffix != ".svg":
            image = Image.open(self.source).convert("RGBA")
        else:
            svg = self.source if isinstance(self.source, str) else self.source.read_text("utf-8")
            image = Image.open(io.BytesIO(_rasterise(svg, size))).convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        picture = canvas.convert("RGB")
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        square = Image.new("RGB", (size, size), "white")
        square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        return square


@dataclass(frozen=True)
class Art:
    """One vendor's drawings.

    Args:
        name: class name of the style.
        package: with the drawings.
        credit: who drew them, and their licence.
        drawings: reads the drawings, by code, from the unpacked package; it is given the emoji too.
    """

    name: str
    package: Npm
    credit: str
    drawings: Callable[[Path, list[Emoji]], dict[str, Drawing]]

    def read(self, emoji: list[Emoji]) -> dict[str, Drawing]:
        """Read this vendor's drawings of the given emoji, by code."""
        found = self.drawings(fetch(self.package) / "package", emoji)
        return {item.code: found[item.code] for item in emoji if item.code in found}


def need_renderer() -> None:
    """Check that SVG can be rendered.

    Raises:
        KsmError: resvg-py is not installed.
    """
    try:
        import resvg_py  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise KsmError(
            "emoji are SVG, and resvg-py, which renders it, is not installed: "
            "run `pip install ksm[sets]`"
        ) from error


def standard_emoji() -> list[Emoji]:
    """Read Unicode's emoji in its order, without flags, skin tones and bare components."""
    rows = json.loads((fetch(_OPENMOJI) / "package/data/openmoji.json").read_text("utf-8"))
    return parse_emoji(rows)


def parse_emoji(rows: list[dict[str, Any]]) -> list[Emoji]:
    """Return the standard emoji among openmoji's rows."""
    return [
        Emoji(code_of(row["hexcode"]), row["annotation"], row["group"])
        for row in rows
        if row["group"] not in ("flags", "component")
        and not row["group"].startswith("extras")
        and not row["skintone"]
    ]


def code_of(text: str) -> str:
    """Return the code for a file name's stem or a registry's spelling: "2764-fe0f" gives "2764"."""
    return "-".join(part for part in text.upper().split("-") if part != "FE0F")


def svg_of(icon: dict[str, Any], collection: dict[str, Any]) -> str:
    """Write an SVG document from an icon and the collection with its default size."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", collection.get("width", 16))
    height = icon.get("height", collection.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'color="#000" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def by_name(collection: dict[str, Any], emoji: list[Emoji]) -> dict[str, Drawing]:
    """Read the drawings of a collection whose icons have the emoji's names, not their codes.

    An icon counts once, under its own name or else an alias; icons with other names are left out.
    """
    codes = {_letters(item.name): item.code for item in emoji}
    spelled = {name: name for name in collection["icons"]}
    for alias, entry in collection.get("aliases", {}).items():
        if set(entry) == {"parent"}:  # no flip or turn: the same picture
            spelled.setdefault(alias, entry["parent"])
    icons: dict[str, str] = {}
    for name, icon in spelled.items():  # own names first: "cricket" is an alias of cricket game
        code = codes.get(_letters(name))
        if code and code not in icons and icon not in icons.values():
            icons[code] = icon
    return {
        code: Drawing(svg_of(collection["icons"][icon], collection))
        for code, icon in icons.items()
        if icon in collection["icons"]
    }


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _rasterise(svg: str, size: int) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))


def _files(place: str, suffix: str) -> Callable[[Path, list[Emoji]], dict[str, Drawing]]:
    """Make a reader of picture files that are named by code."""

    def read(root: Path, emoji: list[Emoji]) -> dict[str, Drawing]:
        return {code_of(file.stem): Drawing(file) for file in (root / place).glob(f"*{suffix}")}

    return read


def _collection(root: Path, emoji: list[Emoji]) -> dict[str, Drawing]:
    """Read a JSON collection of icons: by its code table if it has one, else by name."""
    collection = json.loads((root / "icons.json").read_text("utf-8"))
    table: dict[str, str] = json.loads((root / "chars.json").read_text("utf-8"))
    icons = collection["icons"]
    if not table:
        return by_name(collection, emoji)
    return {
        code_of(code): Drawing(svg_of(icons[name], collection))
        for code, name in table.items()
        if name in icons
    }


_OPENMOJI = Npm(
    "openmoji", "17.0.0", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68"
)
_OPENMOJI_CREDIT = "openmoji: the OpenMoji project, CC BY-SA 4.0"

GOOGLE = Art(
    "google",
    Npm(
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "google: Noto Emoji by Google, Apache-2.0",
    _files("img/google/64", ".png"),
)
TWITTER = Art(
    "twitter",
    Npm(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "twitter: Twemoji by Twitter and contributors, CC BY 4.0",
    _files("img/twitter/64", ".png"),
)
OPENMOJI = Art("openmoji", _OPENMOJI, _OPENMOJI_CREDIT, _files("color/svg", ".svg"))
OPENMOJI_BLACK = Art("openmoji-black", _OPENMOJI, _OPENMOJI_CREDIT, _files("black/svg", ".svg"))
FLUENT_3D = Art(
    "fluent-3d",
    Npm(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "fluent-3d: Fluent Emoji by Microsoft, MIT",
    _files("assets", ".webp"),
)
FLUENT_FLAT = Art(
    "fluent-flat",
    Npm(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "fluent-flat: Fluent Emoji by Microsoft, MIT",
    _collection,
)
FLUENT_LINE = Art(
    "fluent-high-contrast",
    Npm(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    ),
    "fluent-high-contrast: Fluent Emoji by Microsoft, MIT",
    _collection,
)
NOTO_V1 = Art(
    "noto-v1",
    Npm(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    "noto-v1: Noto Emoji, first version, by Google, Apache-2.0",
    _collection,
)
EMOJIONE_V1 = Art(
    "emojione-v1",
    Npm(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
    ),
    "emojione-v1: Emoji One, first version, CC BY-SA 4.0",
    _collection,
)
EMOJIONE_LINE = Art(
    "emojione-monotone",
    Npm(
        "@iconify-json/emojione-monotone",
        "1.2.1",
        "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
    ),
    "emojione-monotone: Emoji One (EmojiTwo), CC BY 4.0",
    _collection,
)
FXEMOJI = Art(
    "fxemoji",
    Npm(
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    ),
    "fxemoji: Firefox OS Emoji by Mozilla, Apache-2.0",
    _collection,
)

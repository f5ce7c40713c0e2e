"""Letters and digits, drawn in the fonts of Debian packages."""

import functools
import hashlib
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ksm.core.packages import Debian, fetch
from ksm.data.sets._set import ImageSet, Progress
from ksm.data.sets._tree import Pixels, save

CHARACTERS_DRAWN = string.ascii_uppercase + string.ascii_lowercase + string.digits

# Chosen so that no two families are the same design under two names: TeX Gyre and FreeFont, for
# example, redraw the URW faces, and Hack and Verana redraw DejaVu. Left out too: faces whose small
# letters are other drawings of capitals (Humor Sans), which no comparison of shapes finds.
_FONTS = """
    adf-gillius adf-mekanus adf-oldania adf-tribun agave anonymous-pro averia-serif-gwf b612
    cabin cantarell comfortaa comic-neue courier-prime crosextra-caladea dancingscript
    dejavu-core dejavu-extra dosis ebgaramond essays1743 fanwood fantasque-sans firacode
    georgewilliams gfs-didot go inconsolata inter jetbrains-mono jura kaushanscript lato
    league-spartan liberation linuxlibertine lobstertwo manrope monofur mononoki oldstandard
    open-sans paratype play quicksand roboto-slab roboto-unhinted sora tuffy urw-base35 vollkorn
    yanone-kaffeesatz
"""
_PACKAGES = tuple(Debian(f"fonts-{name}") for name in _FONTS.split())

_SIZE = 128
_MARGIN = 6
_FACES_A_FAMILY = 8

# In the names of faces without letters, or with capitals in place of small letters.
_NO_TEXT = re.compile(r"math|symbol|keyboard|initials|outline|caps|titling|d050000l", re.IGNORECASE)
# Small letters that have another shape than their capitals in every upright, italic or script face.
_TELLING = "abdeghnqr"


@dataclass(frozen=True)
class Face:
    """One font file: "DejaVu Sans", "Bold"."""

    file: Path
    family: str
    style: str

    @property
    def design(self) -> str:
        """First word of the family, such as "dejavu" of "DejaVu Sans Mono"; a split keeps it
        together, since the widths and companions of a family resemble each other."""
        return self.family.split()[0].lower()

    @property
    def stem(self) -> str:
        """File name of its images: lower-case letters, digits and "-"."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.family} {self.style}".lower()).strip("-")

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """Load the face at a size in pixels."""
        # The basic layout is the same on every machine; the other depends on installed libraries.
        return ImageFont.truetype(self.file, size, layout_engine=ImageFont.Layout.BASIC)


def class_of(character: str) -> str:
    """Return the class folder: "upper_A", "lower_a", "digit_0"; unique where case is ignored."""
    kind = "digit" if character.isdigit() else "upper" if character.isupper() else "lower"
    return f"{kind}_{character}"


def faces_in(folder: Path) -> Iterator[Face]:
    """Find the TrueType and OpenType faces below a folder, in the order of their paths."""
    for file in sorted(folder.rglob("*")):
        # Links lead into the running system, not into the package.
        if file.suffix.lower() in (".ttf", ".otf") and file.is_file() and not file.is_symlink():
            family, style = ImageFont.truetype(file, 10).getname()
            yield Face(file, (family or file.stem).strip(), (style or "Regular").strip())


def packaged_faces() -> list[Face]:
    """Find all faces in the packages; packages that the cache lacks are fetched.

    Raises:
        KsmError: a package cannot be fetched.
    """
    return [face for package in _PACKAGES for face in faces_in(fetch(package))]


def chosen(faces: Iterable[Face], also: str = "", most: int = _FACES_A_FAMILY) -> list[Face]:
    """Choose the text faces with all 62 characters and those of `also`.

    Each name is taken once, and at most `most` faces a design.
    """
    by_design: dict[str, dict[str, Face]] = {}
    for face in faces:
        by_design.setdefault(face.design, {}).setdefault(face.stem, face)
    kept: list[Face] = []
    for design in sorted(by_design):
        usable = [f for f in by_design[design].values() if is_text(f) and has(f, also)]
        kept += sorted(usable, key=lambda face: _shuffled(face.stem))[:most]
    return kept


@functools.cache  # asked again for each script, and slow
def is_text(face: Face) -> bool:
    """Tell whether the face draws all 62 characters, with small letters that are no capitals."""
    if _NO_TEXT.search(f"{face.family} {face.style}"):
        return False
    if not has(face, CHARACTERS_DRAWN):
        return False
    font = face.at(40)
    return not any(_is_copy(_drawn(font, small), _drawn(font, small.upper())) for small in _TELLING)


def has(face: Face, characters: str) -> bool:
    """Tell whether the face draws each character, and not nothing or its sign for a missing one."""
    font = face.at(40)
    absent = _drawn(font, "\U0010fffe")
    glyphs = (_drawn(font, character) for character in characters)
    return all(glyph.any() and not _same(glyph, absent) for glyph in glyphs)


def splits(faces: list[Face]) -> dict[str, str]:
    """Return the split of each design: in the order of a hash, designs fill test, then val.

    Each has 15 % of the faces. Designs are too few, and too unlike in size, for a split by the
    hash of each alone.
    """
    sizes = Counter(face.design for face in faces)
    found: dict[str, str] = {}
    done = 0
    for design in sorted(sizes, key=_shuffled):
        part = (done + sizes[design] / 2) / len(faces)
        found[design] = "test" if part < 0.15 else "val" if part < 0.30 else "train"
        done += sizes[design]
    return found


def draw(face: Face, characters: str = CHARACTERS_DRAWN) -> Iterator[tuple[str, Image.Image]]:
    """Draw each character: 128 x 128 px, grey, dark on white.

    All have one scale and one base line: "c" stays smaller than "C".
    """
    trial = face.at(100)
    boxes = [trial.getbbox(character, anchor="ls") for character in characters]
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    width = max(box[2] - box[0] for box in boxes)
    room = _SIZE - 2 * _MARGIN
    font = face.at(int(100 * room / max(bottom - top, width)))
    middle = (top + bottom) / 2 * font.size / 100
    for character in characters:
        left, _, right, _ = font.getbbox(character, anchor="ls")
        image = Image.new("L", (_SIZE, _SIZE), 255)
        place = (_SIZE / 2 - (left + right) / 2, _SIZE / 2 - middle)
        ImageDraw.Draw(image).text(place, character, fill=0, font=font, anchor="ls")
        yield character, image


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> Pixels:
    mask = font.getmask(character)
    return np.asarray(mask, dtype=np.uint8).reshape(mask.size[1], mask.size[0])


def _same(one: Pixels, other: Pixels) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _is_copy(small: Pixels, capital: Pixels) -> bool:
    """Tell whether a small letter, scaled to its capital's size, shares most of its ink."""
    height, width = capital.shape
    scaled = np.asarray(Image.fromarray(small).resize((width, height)), dtype=float)
    shared, either = np.minimum(scaled, capital).sum(), np.maximum(scaled, capital).sum()
    return bool(shared > 0.8 * either)


def _shuffled(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _write(folder: Path, progress: Progress) -> None:
    faces = chosen(packaged_faces())
    progress(f"drawing {len(CHARACTERS_DRAWN)} characters in each of {len(faces)} faces")
    split = splits(faces)
    for face in faces:
        for character, image in draw(face):
            save(image, folder, split[face.design], class_of(character), face.stem)


CHARACTERS = ImageSet(
    name="characters",
    about=(
        "letters and digits of text fonts: 18,166 images, 128 px, grey, 62 classes, "
        "split by font family; counts are Debian 12's"
    ),
    license="mixed, free: OFL, GPL with font exception, Apache-2.0 and others, listed below",
    credit="the fonts' authors, listed below. Changes: characters drawn as images",
    packages=_PACKAGES,
    write=_write,
)

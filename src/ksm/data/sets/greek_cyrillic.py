"""Greek and Cyrillic letters, drawn in the fonts of `characters`."""

import unicodedata
from pathlib import Path

from ksm.data.sets._set import ImageSet, Progress
from ksm.data.sets._tree import save
from ksm.data.sets.characters import CHARACTERS, chosen, draw, packaged_faces, splits

# U+03A2 is not a letter; IO stands far from the other capitals of the Russian alphabet.
_GREEK = [chr(code) for code in range(0x391, 0x3AA) if code != 0x3A2]
_CYRILLIC = [
    *(chr(code) for code in range(0x410, 0x416)),
    "\N{CYRILLIC CAPITAL LETTER IO}",
    *(chr(code) for code in range(0x416, 0x430)),
]

ALPHABETS: dict[str, str] = {
    "greek_upper": "".join(_GREEK),
    "greek_lower": "".join(letter.lower() for letter in _GREEK),
    "cyrillic_upper": "".join(_CYRILLIC),
    "cyrillic_lower": "".join(letter.lower() for letter in _CYRILLIC),
}
"""Letters by script and case, in alphabetical order: 24 Greek ones (without the sigma that ends a
word) and 33 Russian ones."""

SCRIPTS = {
    script: ALPHABETS[f"{script}_upper"] + ALPHABETS[f"{script}_lower"]
    for script in ("greek", "cyrillic")
}


def class_of(letter: str) -> str:
    """Return the class folder for a letter, from its Unicode name: "greek_upper_alpha".

    Names are ASCII, and unique where case is ignored.
    """
    script, case, _, name = unicodedata.name(letter).lower().split(" ", 3)
    return f"{script}_{'upper' if case == 'capital' else 'lower'}_{name.replace(' ', '-')}"


def _write(folder: Path, progress: Progress) -> None:
    every = packaged_faces()
    split = splits(chosen(every))  # a design is on the same side as in `characters`
    for script, letters in SCRIPTS.items():
        faces = chosen(every, also=letters)
        progress(f"drawing {len(letters)} {script} letters in each of {len(faces)} faces")
        for face in faces:
            for letter, image in draw(face, letters):
                save(image, folder, split[face.design], class_of(letter), face.stem)


GREEK_CYRILLIC = ImageSet(
    name="greek-cyrillic",
    about=(
        "Greek and Russian letters of text fonts: 20,610 images, 128 px, grey, 114 classes, "
        "split by font family as in characters; counts are Debian 12's"
    ),
    license=CHARACTERS.license,
    credit="the fonts' authors, listed below. Changes: letters drawn as images",
    packages=CHARACTERS.packages,
    write=_write,
)

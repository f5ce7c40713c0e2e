"""Three data sets of emoji, to tell apart art styles, groups of subjects, and things."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from ksm.data.sets import _emoji_art as art
from ksm.data.sets._set import ImageSet, Progress
from ksm.data.sets._tree import save, split_of

_COLOUR = (
    art.GOOGLE,
    art.TWITTER,
    art.OPENMOJI,
    art.FLUENT_3D,
    art.FLUENT_FLAT,
    art.NOTO_V1,
    art.EMOJIONE_V1,
    art.FXEMOJI,
)
_LINE = (art.OPENMOJI_BLACK, art.FLUENT_LINE, art.EMOJIONE_LINE)

# Google and Twitter have 64 px: in larger images their blur would tell these styles apart.
_COLOUR_SIZE = 64
_LINE_SIZE = 128

# Both Fluents have the same drawings, and both Googles are of one house: each pair is in one split.
VENDOR_SPLITS = {
    "google": "train",
    "noto-v1": "train",
    "fluent-3d": "train",
    "fluent-flat": "train",
    "fxemoji": "train",
    "emojione-v1": "val",
    "twitter": "test",
    "openmoji": "test",
}

# Things that are told apart at a glance and that at least seven of the eight vendors drew.
_CONCEPTS = """
    monkey, dog, poodle, cat, tiger, horse, pig, ram, goat, elephant, mouse, koala, panda,
    chicken, rooster, penguin, bird, frog, crocodile, turtle, snake, dolphin, tropical fish,
    octopus, snail, honeybee, lady beetle, spider,
    rose, sunflower, tulip, cherry blossom, hibiscus, seedling, palm tree, deciduous tree, cactus,
    four leaf clover, maple leaf, mushroom,
    grapes, watermelon, lemon, banana, pineapple, red apple, pear, peach, cherries, strawberry,
    tomato, bread, hamburger, french fries, cooking, sushi, doughnut, cookie, birthday cake,
    lollipop, honey pot, baby bottle, wine glass, beer mug,
    volcano, ferris wheel, bus, ambulance, bicycle, tractor, sailboat, helicopter, airplane,
    rocket, anchor, fuel pump, alarm clock, rainbow, snowflake, fire,
    glasses, jeans, crown, top hat, lipstick, ring, bell, saxophone, trumpet, guitar, violin,
    camera, television, light bulb, key, hammer, microscope, telescope, pill, scissors
"""
CONCEPTS = tuple(name.strip() for name in _CONCEPTS.split(","))


def folder_of(name: str) -> str:
    """Return the class folder for an emoji's name: lower-case letters, digits and "-"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _drawn(
    arts: tuple[art.Art, ...], emoji: list[art.Emoji], size: int, progress: Progress
) -> Iterator[tuple[art.Art, art.Emoji, Image.Image]]:
    """Draw each vendor's picture of each emoji; of equal pictures only the first.

    Without colour all hearts are one picture, and one vendor draws all families alike: copies
    would be in two splits and in two classes.
    """
    seen: set[bytes] = set()
    for vendor in arts:
        drawings = vendor.read(emoji)
        progress(f"drawing {len(drawings):,} emoji of {vendor.name}")
        for item in emoji:
            if item.code not in drawings:
                continue
            picture = drawings[item.code].render(size)
            if picture.tobytes() not in seen:
                seen.add(picture.tobytes())
                yield vendor, item, picture


def _write_style(folder: Path, progress: Progress) -> None:
    for vendor, item, picture in _drawn(_COLOUR, art.standard_emoji(), _COLOUR_SIZE, progress):
        save(picture, folder, split_of(item.subject), vendor.name, item.code)


def _write_line(folder: Path, progress: Progress) -> None:
    for vendor, item, picture in _drawn(_LINE, art.standard_emoji(), _LINE_SIZE, progress):
        stem = f"{vendor.name}-{item.code}"
        save(picture.convert("L"), folder, split_of(item.subject), item.group, stem)


def _write_concept(folder: Path, progress: Progress) -> None:
    by_name = {item.name: item for item in art.standard_emoji()}
    emoji = [by_name[name] for name in CONCEPTS]
    for vendor, item, picture in _drawn(_COLOUR, emoji, _COLOUR_SIZE, progress):
        save(picture, folder, VENDOR_SPLITS[vendor.name], folder_of(item.name), vendor.name)


def _set(
    name: str, about: str, arts: tuple[art.Art, ...], write: Callable[[Path, Progress], None]
) -> ImageSet:
    packages = tuple(dict.fromkeys([*(vendor.package for vendor in arts), art.OPENMOJI.package]))
    credit = "; ".join(vendor.credit for vendor in arts)
    return ImageSet(
        name=name,
        about=about,
        license="mixed: MIT, Apache-2.0, CC BY 4.0 and CC BY-SA 4.0, by vendor as listed",
        credit=f"{credit}. Changes: scaled, put on white, sorted into folders",
        packages=packages,
        write=write,
        ready=art.need_renderer,
    )


EMOJI_STYLE = _set(
    "emoji-style",
    "emoji: 10,600 images, 64 px, colour, 8 classes (art styles), split by what is drawn",
    _COLOUR,
    _write_style,
)
EMOJI_LINE = _set(
    "emoji-line",
    "line drawings: 4,214 emoji, 128 px, grey, 8 classes (groups), split by what is drawn",
    _LINE,
    _write_line,
)
EMOJI_CONCEPT = _set(
    "emoji-concept",
    "emoji: 798 images, 64 px, colour, 100 classes (things), split by vendor",
    _COLOUR,
    _write_concept,
)

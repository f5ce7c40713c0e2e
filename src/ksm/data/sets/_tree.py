"""Splits by content, and writing images into folders."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def split_of(key: str | bytes) -> str:
    """Return the split of all images that share `key`: 70 % train, 15 % val, 15 % test.

    The split depends on the key alone: it is the same on every machine and in every version, and
    images that belong together (copies, drawings of one thing, faces of one family) stay together.
    """
    place = _unit_interval(key)
    return "train" if place < 0.70 else "val" if place < 0.85 else "test"


def carved(key: str | bytes, share: float = 0.15) -> str:
    """Return train or val, for a training image of a set whose official splits have no val.

    Args:
        key: see `split_of`.
        share: of val, in [0, 1].
    """
    return "val" if _unit_interval(key) < share else "train"


def save(image: Pixels | Image.Image, folder: Path, split: str, label: str, stem: str) -> None:
    """Write `folder/split/label/stem.png`; arrays are (H, W) grey or (H, W, 3) colour, uint8."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, "PNG")
    save_file(file.getvalue(), folder, split, label, stem)


def save_file(png: bytes, folder: Path, split: str, label: str, stem: str) -> None:
    """Write the bytes of a PNG file as `folder/split/label/stem.png`."""
    place = folder / split / label
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{stem}.png").write_bytes(png)


def save_arrays(
    images: Pixels,
    labels: NDArray[np.integer],
    names: tuple[str, ...],
    folder: Path,
    split: Callable[[bytes], str] = split_of,
) -> None:
    """Write images (N, H, W) by their labels (N,), split by their content.

    Images are numbered by their place in `images`. Copies of one image land in one split.
    """
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        save(image, folder, split(image.tobytes()), names[int(label)], f"{number:05d}")


def _unit_interval(key: str | bytes) -> float:
    data = key.encode() if isinstance(key, str) else key
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "big") / 2**48

"""Product photographs of clothes, in MNIST's file format."""

import gzip
from pathlib import Path

import numpy as np

from ksm.core.packages import Debian, fetch
from ksm.data.sets._set import ImageSet, Progress
from ksm.data.sets._tree import Pixels, carved, save_arrays
from ksm.errors import KsmError

_PACKAGE = Debian("dataset-fashion-mnist")
_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


def read_idx(data: bytes) -> Pixels:
    """Read the uint8 array in an IDX file: 0, 0, type 8, number of sizes, big-endian sizes, values.

    Raises:
        KsmError: it is no IDX file of bytes, or its length does not fit its sizes.
    """
    if data[:3] != b"\0\0\x08":
        raise KsmError(f"IDX file starts with {data[:4].hex()}, expected 000008 and a count")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], dtype=">u4").astype(int)
    values = np.frombuffer(data[start:], dtype=np.uint8)
    if values.size != shape.prod():
        raise KsmError(f"IDX file has {values.size} values, expected {shape.prod()}")
    return values.reshape(shape)


def _test(content: bytes) -> str:
    return "test"


def _write(folder: Path, progress: Progress) -> None:
    root = fetch(_PACKAGE) / "usr/share/datasets/fashion-mnist"
    for part, split in (("train", carved), ("t10k", _test)):
        images, labels = (
            read_idx(gzip.decompress((root / f"{part}-{kind}-ubyte.gz").read_bytes()))
            for kind in ("images-idx3", "labels-idx1")
        )
        progress(f"writing {len(images):,} images of {part}")
        save_arrays(images, labels, _NAMES, folder, split)


FASHION = ImageSet(
    name="fashion",
    about=(
        "product photographs: 70,000 images, 28 px, grey, 10 classes, "
        "official test images, val carved from train"
    ),
    license="MIT",
    credit=(
        "Fashion-MNIST by Zalando SE: Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image "
        "Dataset for Benchmarking Machine Learning Algorithms, 2017"
    ),
    packages=(_PACKAGE,),
    write=_write,
)

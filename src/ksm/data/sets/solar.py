"""Photographs of solar cells, with a licence that forbids commercial use."""

from pathlib import Path

from ksm.core.packages import PyPI, fetch
from ksm.data.sets._set import ImageSet, Progress
from ksm.data.sets._tree import save_file, split_of

_PACKAGE = PyPI(
    "elpv-dataset",
    "1.0.0.post1",
    "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)
_GRADES = {0: "intact", 33: "slight", 67: "likely", 100: "defect"}


def class_of(probability: str, kind: str) -> str:
    """Return the class of a cell of a type ("mono", "poly") with a chance of a defect: 0, 1/3, 2/3
    or 1, as written in the package."""
    return f"{kind}_{_GRADES[round(100 * float(probability))]}"


def _write(folder: Path, progress: Progress) -> None:
    root = fetch(_PACKAGE) / "elpv_dataset/data"
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]
    progress(f"writing {len(rows):,} images")
    for file, probability, kind in rows:
        image = (root / file).read_bytes()
        save_file(image, folder, split_of(image), class_of(probability, kind), Path(file).stem)


SOLAR = ImageSet(
    name="solar",
    about=(
        "electroluminescence photographs of solar cells: 2,624 images, 300 px, grey, "
        "8 classes (4 defect grades of 2 cell types), own split"
    ),
    license=(
        "CC BY-NC-SA 4.0: no commercial use; read from the package at run time, "
        "not to be redistributed with ksm"
    ),
    credit=(
        "ELPV: Buerhop-Lutz, Deitsch, Maier, Gallwitz, Berger, Doll, Hauch, Camus, Brabec, "
        "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence "
        "Imagery, EU PVSEC 2018; Deitsch et al., Automatic classification of defective "
        "photovoltaic module cells in electroluminescence images, Solar Energy 185, 2019; "
        "Deitsch et al., Segmentation of photovoltaic module cells in uncalibrated "
        "electroluminescence images, Machine Vision and Applications 32(4), 2021. "
        "Changes: sorted into folders, pixels as they are"
    ),
    packages=(_PACKAGE,),
    write=_write,
)

"""Does the mask matter? ksm against its two controls: head only, and BatchNorm with head.

    python benchmarks/controls.py [--processes 2]      # make bench

Two backbones, two domains, 1,500 training images each, 80 pixels, 8 epochs. The validation split
selects each run's epoch and, on seed 0, the learning rate of norms and head for each backbone and
domain: out of three for each control, out of two for ksm. Seeds 1 and 2 then run with what was
selected. Each cell (backbone, domain, variant, seed) is a JSON file in results/controls; a stopped
run goes on where it was. At the end the tables and the paired differences are written to
results/controls.md.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ksm.metrics import interval

if TYPE_CHECKING:
    from ksm.data.load import Augment

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "results" / "controls"
BACKBONES = ("resnet50_1by2", "mobilenetv2")
DOMAINS: dict[str, "Augment"] = {
    "emoji-style": "flip",
    "characters": "none",
}  # a mirrored letter is another letter
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "probe": [{"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-2}],
    "bn": [{"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-2}],
    "ksm": [{"lr": 3e-3}, {"lr": 1e-2}],
}
SEEDS = (0, 1, 2)
MORE = {
    ("mobilenetv2", "characters", "bn"): (3, 4, 5),
    ("mobilenetv2", "characters", "ksm"): (3, 4, 5),
}
"""Further seeds, where three left the difference of ksm and bn open (+1.2 ± 2.8)."""

Cell = tuple[str, str, str, dict[str, Any], int]


def path_of(cell: Cell) -> Path:
    backbone, domain, method, settings, seed = cell
    variant = "".join(f"-{key}{value:g}" for key, value in settings.items())
    return CELLS / backbone / f"{domain}-{method}{variant}-seed{seed}.json"


def run_cell(cell: Cell) -> None:
    """Learn one task in this process, on one thread, and write what came of it."""
    import torch

    import ksm
    from ksm.data.sets import get
    from ksm.methods import make
    from ksm.taskfile import write, write_atomically

    backbone, domain, method, settings, seed = cell
    torch.set_num_threads(1)
    task = ksm.learn(
        backbone,
        get(domain),
        name=domain,
        method=make(method, **settings),
        training=ksm.Training(epochs=8, augment=DOMAINS[domain], seed=seed),
        size=80,
        limit=1500,
    )
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"{backbone}-{path_of(cell).stem}.safetensors"
    write(file, task)
    found = {
        "domain": domain,
        "method": task.method.settings(),
        "backbone": backbone,
        "seed": seed,
        "val": task.metrics["val"]["accuracy"],
        "test": task.metrics["test"]["accuracy"],
        "images": task.record["images"],
        "bytes": {**task.sizes(), "file": file.stat().st_size},
        "mask": task.record.get("mask", {}),
        "seconds": task.record["seconds"],
        "history": task.record["history"],
        "versions": task.record["versions"],
        "machine": {"processor": platform.machine(), "threads": 1, "cores": os.cpu_count()},
    }
    file.unlink()
    write_atomically(path_of(cell), (json.dumps(found, indent=1) + "\n").encode())


def run_all(cells: list[Cell], processes: int) -> None:
    left = [cell for cell in cells if not path_of(cell).exists()]

    def start(cell: Cell) -> None:
        print(f"{cell[0]} {path_of(cell).stem} ...", flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--cell", json.dumps(cell)]
        subprocess.run(command, check=True, env=environment)
        print(f"{cell[0]} {path_of(cell).stem} val {100 * read(cell)['val']:.1f} %", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(start, left))


def read(cell: Cell) -> dict[str, Any]:
    return json.loads(path_of(cell).read_text())


def selected(backbone: str, domain: str, method: str) -> dict[str, Any]:
    """The variant with the best validation accuracy on seed 0."""
    return max(
        VARIANTS[method], key=lambda settings: read((backbone, domain, method, settings, 0))["val"]
    )


def report() -> str:
    lines = [
        "# ksm against head only and BatchNorm with head",
        "",
        f"1,500 training images, 80 px, 8 epochs, seeds {SEEDS}; test accuracy in %, mean ± 95 %",
        "interval of the mean over seeds (Student's t). Made by `make bench`; a",
        "file a cell in `results/controls`. On one thread a cell. Each method's learning rate of",
        "norms and head was selected on validation (below). ksm's other settings are its defaults,",
        "which earlier trials on emoji-style with the ResNet suggested. Three seeds left the",
        "difference of ksm and bn on characters with MobileNetV2 open (+1.2 ± 2.8); three more",
        "were then run, once, and all six count.",
    ]
    for backbone in BACKBONES:
        lines += ["", f"## {backbone}", "", *_tables(backbone)]
    return "\n".join([*lines, "", *_tried()]) + "\n"


def _tables(backbone: str) -> list[str]:
    lines = ["| domain | " + " | ".join(VARIANTS) + " |", "|---|" + "---|" * len(VARIANTS)]
    for domain in DOMAINS:
        cells = [_interval(_tests(backbone, domain, method)) for method in VARIANTS]
        lines.append(f"| {domain} | " + " | ".join(cells) + " |")
    lines += ["", "Difference in points, paired by seed:", ""]
    lines += ["| domain | ksm - bn | ksm - probe | bn - probe |", "|---|---|---|---|"]
    for domain in DOMAINS:
        tests = {method: _tests(backbone, domain, method) for method in VARIANTS}
        pairs = [("ksm", "bn"), ("ksm", "probe"), ("bn", "probe")]
        paired = [
            _interval([a - b for a, b in zip(tests[x], tests[y], strict=False)], "+")
            for x, y in pairs
        ]
        lines.append(f"| {domain} | " + " | ".join(paired) + " |")
    lines += ["", "Selection of the learning rate a domain, seed 0, validation accuracy in %:", ""]
    lines += ["| variant | " + " | ".join(DOMAINS) + " |", "|---|" + "---|" * len(DOMAINS)]
    for method, variants in VARIANTS.items():
        for settings in variants:
            found = [read((backbone, d, method, settings, 0))["val"] for d in DOMAINS]
            row = " | ".join(f"{100 * value:.1f}" for value in found)
            lines.append(f"| {_title(method, settings)} | {row} |")
    ksm = [
        read((backbone, d, "ksm", selected(backbone, d, "ksm"), seed))
        for d in DOMAINS
        for seed in SEEDS
    ]
    lines += [
        "",
        f"ksm task files: {mean(c['bytes']['file'] for c in ksm) / 1e3:.0f} kB on average "
        f"(mask {mean(c['bytes']['mask'] for c in ksm) / 1e3:.0f} kB, "
        f"{100 * mean(c['mask']['off'] for c in ksm):.0f} % of the units off).",
    ]
    return lines


def _tried() -> list[str]:
    """Cells that looked for more on characters with the ResNet, seed 0; they select nothing."""
    lines = [
        "## Also tried on characters with resnet50_1by2, seed 0",
        "",
        "| what | validation | test |",
        "|---|---|---|",
    ]
    for path in sorted((CELLS / "resnet50_1by2" / "tried").glob("*.json")):
        cell = json.loads(path.read_text())
        what = path.stem.removeprefix("characters-").removesuffix("-seed0")
        lines.append(f"| {what} | {100 * cell['val']:.1f} | {100 * cell['test']:.1f} |")
    return lines


def _tests(backbone: str, domain: str, method: str) -> list[float]:
    settings = selected(backbone, domain, method)
    seeds = (*SEEDS, *MORE.get((backbone, domain, method), ()))
    return [100 * read((backbone, domain, method, settings, seed))["test"] for seed in seeds]


def _interval(values: list[float], sign: str = "") -> str:
    centre, half = interval(values)
    return f"{centre:{sign}.1f} ± {half:.1f}, {len(values)} seeds"


def _title(method: str, settings: dict[str, Any]) -> str:
    return " ".join([method, *(f"{key} {value:g}" for key, value in settings.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="cells at the same time")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        backbone, domain, method, settings, seed = json.loads(arguments.cell)
        run_cell((backbone, domain, method, settings, seed))
        return
    for backbone in BACKBONES:
        (CELLS / backbone).mkdir(parents=True, exist_ok=True)
        first: list[Cell] = [
            (backbone, domain, method, settings, 0)
            for method, variants in reversed(VARIANTS.items())
            for settings, domain in itertools.product(variants, DOMAINS)
        ]
        run_all(first, arguments.processes)
        rest: list[Cell] = [
            (backbone, domain, method, selected(backbone, domain, method), seed)
            for seed in SEEDS[1:]
            for method in reversed(VARIANTS)
            for domain in DOMAINS
        ]
        rest += [
            (backbone, domain, method, selected(backbone, domain, method), seed)
            for (where, domain, method), seeds in MORE.items()
            if where == backbone
            for seed in seeds
        ]
        run_all(rest, arguments.processes)
    text = report()
    (ROOT / "results" / "controls.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Measures whole runs of `ksm learn` on the device at hand, time and accuracy: ksm and fine-tuning,
on a GPU also with steps replayed as a CUDA graph.

Real images (`ksm data get silhouette`) on the pretrained ResNet-50 of half width. Writes
results/speed/learning.{json,md}, or what --out says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import over, spread, write

import ksm
from ksm import Training
from ksm.compare.report import table
from ksm.core.allocator import keep_freed_blocks
from ksm.data.sets import get

BACKBONE = "resnet50_1by2"
DATA = "silhouette"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "fine-tuning": ("finetune", {}),
    "ksm": ("ksm", {}),
    "fine-tuning, graph": ("finetune", {"graph": True}),
    "ksm, graph": ("ksm", {"graph": True}),
    "fine-tuning, bf16, graph": ("finetune", {"graph": True, "precision": "bf16"}),
    "ksm, bf16, graph": ("ksm", {"graph": True, "precision": "bf16"}),
}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--size", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--limit", type=int, default=1920, help="training images")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--out", type=Path, default=Path("results/speed/learning"))
    given = arguments.parse_args()
    keep_freed_blocks()
    folder = get(DATA, None, print)
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    rows = {
        name: row for name, row in ROWS.items() if here != "cpu" or not row[1].get("graph", False)
    }
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(given.seeds):
        for name, (method, settings) in rows.items():
            task = ksm.learn(
                BACKBONE, folder, name="run", method=method, size=given.size, limit=given.limit,
                training=Training(epochs=given.epochs, batch=given.batch, seed=seed, **settings),
            )  # fmt: skip
            paces = [epoch["images_per_second"] for epoch in task.record["history"]]
            numbers = {
                "seconds": task.record["seconds"],
                "images a second": median(paces),
                "accuracy on test": task.metrics["test"]["accuracy"],
            }
            for what, number in numbers.items():
                found.setdefault(name, {}).setdefault(what, []).append(number)
            print(name, numbers, flush=True)
    usual = found["fine-tuning"]["seconds"]
    cells = [
        [name, spread(of["seconds"], ".1f"), over(of["seconds"], usual),
         spread(of["images a second"], ".0f"),
         spread([100 * each for each in of["accuracy on test"]], ".1f")]
        for name, of in found.items()
    ]  # fmt: skip
    head = ["run", "seconds", "/ fine-tuning", "images a second in training", "% right on test"]
    about = (
        f"# A run of `ksm learn`\n\nOn {here}: {DATA}, {given.limit} training images of "
        f"{given.size} pixels, {BACKBONE}, {given.epochs} epochs of batches of {given.batch}; "
        f"median and middle half of {given.seeds} seeds. Seconds are those of the training with "
        "its validations, without reading the images; images a second those of the training steps "
        "alone, loader and all, in the median epoch. `graph`: steps replayed as a CUDA graph "
        "(`--graph`)."
    )
    write(given.out, {"device": here, "runs": found}, f"{about}\n\n{table(head, cells)}")


if __name__ == "__main__":
    main()

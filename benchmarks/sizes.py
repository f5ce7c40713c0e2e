"""Bytes of a task's file by part, over six networks, beside a copy, a bit a weight, and scores.

Where pretrained weights are at hand the masks are trained, on one of the five domains; for the
other networks random masks with as many units off stand in. Writes
results/sizes/networks.{json,md}.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import untrained, write
from torch import nn
from torchvision.models import resnet18, resnet50, vgg16_bn

import ksm
from ksm import KSM, Task, Training
from ksm.compare.report import table
from ksm.data.sets import get
from ksm.display import percent, size
from ksm.fitting import size_of
from ksm.taskfile import pack

NETWORKS: dict[str, Callable[[], nn.Module] | None] = {
    "resnet50_1by2": None,
    "mobilenetv2": None,
    "efficientnet_lite0": None,
    "resnet18": lambda: resnet18(weights=None),
    "resnet50": lambda: resnet50(weights=None),
    "vgg16_bn": lambda: vgg16_bn(weights=None),
}
"""None: pretrained, by its name in ksm."""
METHODS = {"ksm": KSM(), "ksm, pointwise 4": KSM(pointwise=4)}
DOMAIN = "emoji-style"


def learned(backbone: nn.Module, method: KSM, epochs: int) -> Task:
    return ksm.learn(
        backbone,
        get(DOMAIN),
        name=DOMAIN,
        method=method,
        training=Training(epochs=epochs),
        size=64,
        limit=1000,
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--epochs", type=int, default=8)
    epochs = arguments.parse_args().epochs
    found: dict[str, Any] = {}
    rows: list[list[str]] = []
    for network, make in NETWORKS.items():
        backbone = ksm.backbone(network) if make is None else make()
        for name, method in METHODS.items():
            task = (
                learned(backbone, method, epochs)
                if make is None
                else untrained(backbone, DOMAIN, method)
            )
            mask, parts = task.record["mask"], pack(task).header()["bytes"]
            facts = {
                "trained": make is None,
                "bytes": {**parts, "file": size_of(task), "half": size_of(task.halved())},
                "full_copy": task.record["full_copy"],
                "mask": mask,
            }
            found[f"{network}, {name}"] = facts
            rows.append(
                [
                    f"{network}, {name}",
                    "trained" if make is None else "random",
                    percent(mask["off"]),
                    size(parts["mask"]),
                    f"{8 * parts['mask'] / mask['weights']:.2f}",
                    size(parts["norm"]),
                    size(parts["head"]),
                    size(facts["bytes"]["file"]),
                    size(facts["bytes"]["half"]),
                    size(task.record["full_copy"]),
                    size(mask["weights"] / 8),
                    size(4 * mask["units"]),
                ]
            )
            print(rows[-1], flush=True)
    head = [
        "network, masks", "masks are", "units off", "mask", "bits a weight", "norm", "head", "file",
        "file, half precision", "full copy", "a bit a weight", "float32 scores",
    ]  # fmt: skip
    about = (
        "# Task files\n\nBytes on the disk of a task of 8 classes, by part. `a bit a weight`: "
        "Piggyback's mask as "
        "its paper counts it. `float32 scores`: the scores as they are trained. Trained on "
        f"{DOMAIN}, 1,000 images of 64 pixels, {epochs} epochs; where there are no pretrained "
        "weights, masks are random with the share of units off that ksm has on the five domains."
    )
    write(Path("results/sizes/networks"), found, f"{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()

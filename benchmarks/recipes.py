"""How soon each recipe reaches the validation accuracy with which the released one ends.

Reads the cells that `ksm bench recipes` made and writes results/recipes/reached.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, median
from typing import Any

from ksm.compare.cells import read
from ksm.compare.report import table

RIVAL = "ksm-released"


def cells_of(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The cells by row, then by task and seed."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("cells/*/*.json")):
        found.setdefault(path.parent.name, {})[path.stem] = read(path)
    return found


def reached(cell: dict[str, Any], goal: float) -> int | None:
    """The first epoch with that validation accuracy."""
    return next((each["epoch"] for each in cell["history"] if each["val_accuracy"] >= goal), None)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder", type=Path, nargs="?")
    folder = arguments.parse_args().folder or Path("results/recipes/resnet50_1by2")
    found = cells_of(folder)
    goals = found[RIVAL]
    rows: list[list[str]] = []
    for name, cells in sorted(found.items(), key=lambda item: (item[0] != RIVAL, item[0])):
        shared = sorted(goals.keys() & cells.keys())
        epochs = [reached(cells[key], goals[key]["val"]) for key in shared]
        made = [epoch for epoch in epochs if epoch is not None]
        gain = {split: mean(cells[k][split] - goals[k][split] for k in shared) for split in
                ("val", "test")}  # fmt: skip
        domains = {key.rsplit("-seed", 1)[0] for key in shared}
        better = sum(
            mean(cells[k]["val"] - goals[k]["val"] for k in shared if k.startswith(f"{domain}-s"))
            >= 0
            for domain in domains
        )
        rows.append(
            [
                name,
                f"{len(shared)}",
                f"{median(cells[key]['epochs'] for key in shared):g}",
                f"{100 * gain['val']:+.1f}",
                f"{100 * gain['test']:+.1f}",
                f"{better} of {len(domains)}",
                f"{len(made)} of {len(epochs)}",
                f"{median(made):g}" if made else "-",
            ]
        )
    about = (
        "# How soon\n\nAgainst the released recipe on the same task and seed (30 epochs): mean "
        "difference of accuracy in points on validation and on test; on how many domains its mean "
        "over seeds is at least as high on validation; in how many cells a recipe reached the "
        "validation accuracy with which the released one ends (its best epoch), and after how many "
        "epochs there (median). Learning rates fall to 0 over a recipe's own epochs, so that it "
        "is seldom there much before its end. Seconds follow from the epochs and the time of a "
        "step, in ../speed/step.md; those in the cells were taken beside other work."
    )
    head = [
        "row", "cells", "epochs", "val", "test", "domains", "reached", "after epochs",
    ]  # fmt: skip
    text = f"{about}\n\n{table(head, rows)}\n"
    (folder.parent / "reached.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Computes how soon each recipe reaches the validation accuracy with which the released one ends.

Reads the cells that `ksm bench recipes` made and writes reached.md beside their folder. With
--alone, for cells that were measured one at a time on an idle machine, it has seconds too.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import mean, median
from typing import Any

from ksm.compare.chain import read
from ksm.compare.metrics import interval, paired
from ksm.compare.report import table

RIVAL = "ksm-released"


def cells_of(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Read the cells, by row, then by task and seed."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("cells/*/*.json")):
        found.setdefault(path.parent.name, {})[path.stem] = read(path)
    return found


def reached(cell: dict[str, Any], goal: float) -> int | None:
    """Return the first epoch with that validation accuracy."""
    return next((each["epoch"] for each in cell["history"] if each["val_accuracy"] >= goal), None)


def stopped(cell: dict[str, Any], patience: int) -> tuple[float, int]:
    """Return the best validation accuracy and the epochs of the run, if it had ended after
    `patience` epochs without a better one."""
    best, at = (-1.0, 0.0), 0
    for epoch, record in enumerate(cell["history"], start=1):
        key = (record["val_accuracy"], -record["val_loss"])
        if key > best:
            best, at = key, epoch
        elif epoch - at >= patience:
            return best[0], epoch
    return best[0], len(cell["history"])


def gain(cells: dict[str, dict[str, Any]], goals: dict[str, dict[str, Any]], split: str) -> str:
    """Write the mean difference to the rival in points, paired, with half its 95 % interval over
    seeds."""
    accuracies = [
        {
            (each["setup"]["task"], each["setup"]["seed"]): 100 * each[split]
            for each in which.values()
        }
        for which in (cells, goals)
    ]
    middle, half = interval(paired(*accuracies))
    return f"{middle:+.1f}" if math.isnan(half) else f"{middle:+.1f} ± {half:.1f}"


def seconds(cell: dict[str, Any], epoch: int) -> float:
    """Return the seconds from the start of training to the end of an epoch; work before the first
    epoch (computing a trunk's outputs) counts."""
    history = cell["history"]
    return cell["seconds"] - history[-1]["seconds"] + history[epoch - 1]["seconds"]


def shares(
    cells: dict[str, dict[str, Any]], goals: dict[str, dict[str, Any]], keys: list[str]
) -> list[str]:
    """Write the time of the whole run and the time until the goal, as shares of the time of the
    rival's whole run."""
    whole = [cells[key]["seconds"] / goals[key]["seconds"] for key in keys]
    until = [
        seconds(cells[key], epoch) / goals[key]["seconds"]
        for key in keys
        if (epoch := reached(cells[key], goals[key]["val"])) is not None
    ]
    return [f"{mean(whole):.2f}", f"{median(until):.2f}" if until else "-"]


def domain_of(key: str) -> str:
    return key.rsplit("-seed", 1)[0]


def median_epoch(epochs: list[int | None]) -> str:
    """Write the median of the epochs in which the goal was reached; `-` where half of the seeds
    never reached it."""
    middle = median(math.inf if epoch is None else epoch for epoch in epochs)
    return f"{middle:g}" if middle < math.inf else "-"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder", type=Path, nargs="?")
    arguments.add_argument("--alone", action="store_true")
    given = arguments.parse_args()
    folder = given.folder or Path("results/recipes/resnet50_1by2")
    found = cells_of(folder)
    goals = found[RIVAL]
    rows: list[list[str]] = []
    patient: list[list[str]] = []
    by_domain: list[list[str]] = []
    domains = sorted({domain_of(key) for key in goals})
    for name, cells in sorted(found.items(), key=lambda item: (item[0] != RIVAL, item[0])):
        shared = sorted(goals.keys() & cells.keys())
        epochs = [reached(cells[key], goals[key]["val"]) for key in shared]
        made = [epoch for epoch in epochs if epoch is not None]
        of_domain = {one: [key for key in shared if domain_of(key) == one] for one in domains}
        better = sum(
            mean(cells[key]["val"] - goals[key]["val"] for key in keys) >= 0
            for keys in of_domain.values()
        )
        rows.append(
            [
                name,
                f"{len(shared)}",
                f"{median(cells[key]['epochs'] for key in shared):g}",
                *(gain(cells, goals, split) for split in ("val", "test")),
                f"{better} of {len(domains)}",
                f"{len(made)} of {len(epochs)}",
                f"{median(made):g}" if made else "-",
                *(shares(cells, goals, shared) if given.alone else []),
            ]
        )
        there = dict(zip(shared, epochs, strict=True))
        by_domain.append(
            [name, *(median_epoch([there[key] for key in keys]) for keys in of_domain.values())]
        )
        for patience in (2, 3):
            ends = [(cells[key], *stopped(cells[key], patience)) for key in shared]
            lost = mean(best - cell["val"] for cell, best, _ in ends)
            part = mean(epoch / cell["epochs"] for cell, _, epoch in ends)
            patient.append([name, f"{patience}", f"{100 * lost:+.1f}", f"{part:.2f}"])
    about = (
        "# How soon\n\nAgainst the released recipe on the same task and seed (30 epochs): mean "
        "difference of accuracy in points on validation and on test, with half its 95 % interval "
        "over seeds; on how many domains its mean over seeds is at least as high on validation; in "
        "how many cells a recipe reached the validation accuracy with which the released one ends "
        "(its best epoch), and after how many epochs there (median). Learning rates fall to 0 over "
        "a recipe's own epochs, so that it is seldom there much before its end. "
    ) + (
        "Cells were measured one at a time on an idle machine: time of the whole run (mean), and "
        "until it was there (median of the cells where it was), over the time of the released "
        "recipe in the same code."
        if given.alone
        else "Seconds follow from the epochs and the time of a step, in ../speed/step.md; those in "
        "the cells were taken beside other work; alone/reached.md has some that were not."
    )
    head = ["row", "cells", "epochs", "val", "test", "domains", "reached", "after epochs"]
    text = f"{about}\n\n{table([*head, *(['time', 'until there'] if given.alone else [])], rows)}\n"
    if not given.alone:
        text += (
            "\n## By domain\n\nThe epochs after which a recipe was there: the median over seeds; "
            "`-`: in half of them it never was.\n\n"
            f"{table(['row', *domains], by_domain)}\n"
        )
        text += (
            "\n## Had they stopped early\n\nFrom the same records: points on validation that are "
            "lost, and the share of the epochs that is run, if a run ends after so many epochs "
            "without a better one (`--patience`).\n\n"
            f"{table(['row', 'patience', 'val', 'epochs run'], patient)}\n"
        )
    (folder.parent / "reached.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

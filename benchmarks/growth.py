"""Measures what the hundredth task costs and what the first cost: time, memory and bytes, for ksm
and for PackNet and CPG, whose tasks build on each other.

Each task tells two characters apart. Each method runs in a process of its own, and stops where its
network is full. Writes results/speed/growth.{json,md}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from measuring import resident, write

import ksm
from ksm.compare.images import subset
from ksm.compare.report import table
from ksm.core.allocator import keep_freed_blocks
from ksm.core.text import size
from ksm.data.folder import scan
from ksm.data.sets import get

METHODS: dict[str, ksm.Method] = {
    "ksm": ksm.KSM(mask_from=None),
    "packnet": ksm.PackNet(),
    "cpg": ksm.CPG(max_size=4.0),
}
TRAINING = ksm.Training(epochs=4, augment="none", precise_bn=2)
PART = 10
MOST = {"cpg": 38}
"""The most tasks of a method whose tasks each take longer than the one before."""
IMAGES = {"train": 64, "val": 32, "test": 32}


def folders(count: int, place: Path) -> list[Path]:
    """Make a folder of images for each of `count` pairs of characters, the same pairs each time."""
    source = get("characters")
    pairs = list(itertools.combinations(scan(source).classes, 2))
    chosen = random.Random(0).sample(pairs, count)
    return [subset(source, place / f"{i:03}", IMAGES, pair) for i, pair in enumerate(chosen)]


def one(name: str, place: Path) -> None:
    """Learn the tasks of all folders one after another; print a JSON line for each."""
    keep_freed_blocks()
    method = METHODS[name]
    backbone = ksm.backbone("resnet50_1by2")
    with tempfile.TemporaryDirectory() as folder:
        bank = ksm.Bank(folder)
        last: str | None = None
        for path in sorted(place.iterdir())[: MOST.get(name)]:
            began = time.perf_counter()
            earlier = ()
            if method.builds_on_tasks and last:
                task = bank.load(last)
                earlier = (*task.earlier, task)
            try:
                task = ksm.learn(
                    backbone, path, name=f"t{path.name}", method=method, training=TRAINING,
                    size=32, earlier=earlier,
                )  # fmt: skip
            except ksm.KsmError as error:
                print(json.dumps({"full": str(error)}), flush=True)
                return
            file, last = bank.save(task), task.name
            learned = time.perf_counter() - began
            accuracy = task.metrics["test"]["accuracy"]
            del task, earlier
            began = time.perf_counter()
            model = bank.load(last).on(backbone)
            model(torch.zeros(1, 3, 32, 32))
            used = time.perf_counter() - began
            del model
            took = {
                "learn": learned,
                "use": used,
                "bytes": file.stat().st_size,
                "resident": resident("VmRSS"),
                "test": accuracy,
            }
            print(json.dumps(took), flush=True)


def text(found: dict[str, Any]) -> str:
    """Write the report."""
    rows: list[list[str]] = []
    for name in METHODS:
        learned, full = found[name]["learned"], found[name]["full"]
        first, last = learned[1 : PART + 1], learned[-PART:]

        def of(key: str, part: list[dict[str, Any]]) -> float:
            return median(one[key] for one in part)

        rows.append(
            [
                name,
                f"{len(learned)}{' (full)' if full else ''}",
                *(f"{of('learn', part):.1f}" for part in (first, last)),
                f"{of('learn', last) / of('learn', first):.2f}",
                *(f"{1000 * of('use', part):.0f}" for part in (first, last)),
                *(size(round(of("bytes", part))) for part in (first, last)),
                *(size(round(of("resident", part))) for part in (first, last)),
                f"{100 * mean(one['test'] for one in learned):.1f}",
            ]
        )
    about = (
        f"# Growth\n\n{found['tasks']} tasks, of two characters each, one after another: medians "
        f"of tasks 2 to {PART + 1} and of the last {PART}. `learn`: `ksm.learn` and saving, s; "
        "`use`: loading, folding and one image, ms; `file`: of one task, the tasks that it needs "
        "not counted; `resident`: memory of the process after a task, which keeps what it freed: "
        "nearly its peak. `test`: mean over its own tasks. `(full)`: no further task found room. "
        f" CPG may grow to four times the size, and gets {MOST['cpg']} tasks: each "
        "takes longer than the one before."
    )
    head = [
        "method", "tasks", "learn, first", "last", "ratio", "use, first", "last", "file, first",
        "last", "resident, first", "last", "test, %",
    ]  # fmt: skip
    return f"{about}\n\n{table(head, rows)}"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--tasks", type=int, default=100)
    arguments.add_argument("--out", type=Path, default=Path("results/speed/growth"))
    given = arguments.parse_args()
    count = given.tasks
    found: dict[str, Any] = {"tasks": count}
    with tempfile.TemporaryDirectory() as place:
        folders(count, Path(place))
        for name in METHODS:
            command = [sys.executable, __file__, name, place]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            full = next((one["full"] for one in lines if "full" in one), None)
            found[name] = {"learned": [one for one in lines if "full" not in one], "full": full}
    write(given.out, found, text(found))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in METHODS:
        one(sys.argv[1], Path(sys.argv[2]))
    else:
        main()

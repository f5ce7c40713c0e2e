"""Whether a bank slows down with the number of its tasks: adding, opening, listing.

Writes results/speed/bank.{json,md}.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from measuring import ms, spread, untrained, write
from torch import nn

from ksm import KSM, Bank
from ksm.compare.report import table

LAST = 100


def network() -> nn.Module:
    """Small, so that ten thousand task files are few bytes: it is their number that counts."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 8),
    )  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def listing(folder: Path) -> float:
    """Seconds of `ksm tasks`, the start of its process included."""
    command = [sys.executable, "-c", "from ksm.cli import main; main()", "tasks"]
    command += ["--bank", str(folder)]
    return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--tasks", type=int, default=10_000)
    count = arguments.parse_args().tasks
    task = untrained(network(), "t", KSM(mask_from=None))
    found: dict[str, Any] = {"tasks": count}
    with tempfile.TemporaryDirectory() as place:
        bank = Bank(place)
        adding = [
            seconds(lambda i=i: bank.save(dataclasses.replace(task, name=f"t{i}")))
            for i in range(count)
        ]
        found["adding, the first"], found["adding, the last"] = adding[:LAST], adding[-LAST:]
        found["opening"] = [seconds(lambda i=i: bank.load(f"t{i}")) for i in range(LAST)]
        found["listing, first"] = listing(Path(place))
        found["listing, again"] = [listing(Path(place)) for _ in range(5)]
    with tempfile.TemporaryDirectory() as place:
        bank = Bank(place)
        for i in range(10):
            bank.save(dataclasses.replace(task, name=f"t{i}"))
        found["opening, of 10"] = [
            seconds(lambda i=i: bank.load(f"t{i % 10}")) for i in range(LAST)
        ]
        listing(Path(place))
        found["listing, of 10"] = [listing(Path(place)) for _ in range(5)]
    rows = [
        [
            "adding a task, ms",
            ms(found["adding, the first"]),
            ms(found["adding, the last"]),
        ],
        ["opening a task, ms", ms(found["opening, of 10"]), ms(found["opening"])],
        [
            "`ksm tasks`, s",
            spread(found["listing, of 10"]),
            f"{spread(found['listing, again'])}; the first time {found['listing, first']:.1f}",
        ],
    ]
    about = (
        f"A bank of {count:,} tasks: the first {LAST} tasks added against the last {LAST}, and the "
        "other work in a bank of 10 against the full one. Median and middle half; "
        f"median of the last over the first: {median(adding[-LAST:]) / median(adding[:LAST]):.2f}."
    )
    text = (
        f"# Many tasks in a bank\n\n{about}\n\n{table(['', 'few tasks', f'{count:,} tasks'], rows)}"
    )
    write(Path("results/speed/bank"), found, text)


if __name__ == "__main__":
    main()

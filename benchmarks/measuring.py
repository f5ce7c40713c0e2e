"""What the scripts beside this file share: timing in turns, untrained masks, a results file."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ksm import Method, Task, add_task
from ksm.compare.report import table
from ksm.methods._masked import ScoreMask, parts_of

OFF = 0.34
"""Share of units that are off in masks that stand for trained ones: what ksm turns off on the five
domains."""


def in_turns(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, one after another in each repeat, so that a busy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - began)
    return times


def spread(times: Sequence[float], scale: float = 1e3) -> str:
    """Median and the middle half of some times, in ms: `1.23 (1.20 ... 1.31)`."""
    low, high = (float(torch.quantile(torch.tensor(times), q)) for q in (0.25, 0.75))
    return f"{scale * median(times):.2f} ({scale * low:.2f} ... {scale * high:.2f})"


def ratio(times: Sequence[float], rival: Sequence[float]) -> float:
    """Ratio of the medians."""
    return median(times) / median(rival)


def untrained(backbone: nn.Module, name: str, method: Method, classes: int = 8) -> Task:
    """A task with random masks of the share `OFF`, where only sizes and times count."""
    model = add_task(backbone, classes, method=method)
    for _, mask in parts_of(model, ScoreMask):
        nn.init.normal_(mask.score, 5e-3 + 0.412 * 5e-3, 5e-3)  # P(score < 5e-3) = OFF
    return Task.of(model, name, [str(label) for label in range(classes)])


def processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.machine()


def write(path: Path, found: Mapping[str, Any], head: Sequence[str], rows: Sequence[Sequence[str]],
          about: str) -> None:  # fmt: skip
    """Write a JSON with all numbers, and a Markdown table beside it; print the table."""
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(
        json.dumps({"machine": machine, **found}, indent=1) + "\n", encoding="utf-8"
    )
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = f"{about}\n\nMeasured on: {where}.\n\n{table(head, rows)}\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)

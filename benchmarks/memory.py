"""Measures how much memory training takes; step.py has the time.

Each figure is from a process of its own: the peak of its resident set, less what the process had
with all libraries loaded and the backbone built. Writes results/speed/memory.{json,md} after each
network and size, and does not measure again what the file has.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ksm.core.allocator import give_back_freed_blocks, keep_freed_blocks

EVERYWHERE = {"mask_from": None}
WAYS: dict[str, dict[str, Any]] = {
    "fine-tuning, Adam": {},
    "ksm": {"method": {}},
    "ksm, checkpointing": {"method": {}, "checkpointing": True},
    "ksm, pointwise 4": {"method": {"pointwise": 4}},
    "ksm, checkpointing, pointwise 4": {"method": {"pointwise": 4}, "checkpointing": True},
    "ksm from stride 8": {"method": {"mask_from": "stride8"}},
    "ksm everywhere": {"method": EVERYWHERE},
    "ksm everywhere, checkpointing": {"method": EVERYWHERE, "checkpointing": True},
}
SIZES = (64, 128, 224)
ALLOCATORS = ("in use", "held")
STEPS = {"in use": 3, "held": 5}


def one(network: str, size: int, way: str, allocator: str) -> None:
    """Train some steps in this process and print the bytes that they took.

    Args:
        allocator: `in use`: by the environment, the C library gives blocks back when they are
            freed; `held`: as the command line has it.
    """
    chosen = WAYS[way]
    checkpointing = chosen.get("checkpointing", False)
    if allocator == "held":
        keep_freed_blocks()
        if checkpointing:
            give_back_freed_blocks()
    import torch
    from measuring import resident
    from step import BATCH, CLASSES, NETWORKS, as_trained, copied, step_of

    import ksm

    last = torch.channels_last
    backbone = NETWORKS[network]().eval()
    backbone(torch.randn(2, 3, size, size)).sum().backward()  # so that libraries are loaded
    backbone.zero_grad()
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    )
    small = ksm.add_task(torch.nn.Sequential(*small, torch.nn.Linear(4, 4)), 2).train()
    with as_trained(small):  # and ksm's kernels
        small(torch.randn(2, 3, 1, 1).contiguous(memory_format=last)).sum().backward()
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=last)
    with ExitStack() as training:
        if "method" in chosen:
            model = ksm.add_task(backbone, CLASSES, method=ksm.KSM(**chosen["method"]), size=size)
            groups: Any = ksm.parameter_groups(model)
            training.enter_context(as_trained(model, checkpointing))
        else:
            model = copied(backbone)
            groups = model.parameters()
            del backbone
        optimizer = torch.optim.Adam(groups, fused=True)
        step = step_of(model, optimizer, images, arranged="method" in chosen)
        for _ in range(STEPS[allocator]):
            step()
    print(json.dumps({"bytes": resident("VmHWM") - before}))


def measured(*case: str) -> dict[str, Any]:
    """Measure one case in a process of its own; `case`: the arguments of `one`."""
    command = [sys.executable, __file__, "one", *case]
    given = {"MALLOC_MMAP_THRESHOLD_": "65536"} if case[-1] == "in use" else {}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **given}
    )
    return json.loads(done.stdout)


def main(sizes: Sequence[int], networks: Sequence[str], results: Path) -> None:
    file = results.with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for size in sizes:
        for network in networks:
            name = f"{network}, {size} pixels"
            if found.get(name, {}).keys() == WAYS.keys():
                continue
            cases = [(network, str(size), way, each) for way in WAYS for each in ALLOCATORS]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                took = iter(list(pool.map(lambda one: measured(*one), cases)))
            found[name] = {way: {each: next(took) for each in ALLOCATORS} for way in WAYS}
            report(found, results)


def report(found: dict[str, Any], results: Path) -> None:
    """Write what was measured so far."""
    from measuring import write
    from step import BATCH, NETWORKS

    from ksm.compare.report import table
    from ksm.core.text import size as bytes_of

    names = [f"{network}, {size} pixels" for network in NETWORKS for size in SIZES]
    measured = {name: found[name] for name in names if name in found}
    rows: list[list[str]] = []
    for name, case in measured.items():
        rival = case["fine-tuning, Adam"]
        for way, took in case.items():
            cells = [name, way]
            for each in ALLOCATORS:
                share = took[each]["bytes"] / rival[each]["bytes"]
                cells += [bytes_of(took[each]["bytes"]), f"{share:.2f}"]
            rows.append(cells)
    about = (
        f"# Memory of training\n\n{BATCH} images a step, Adam, float32. Peak of the resident set "
        "of a process of its own, less what it had with all libraries loaded and the backbone "
        "built. `in use`: each block of 64 KiB is given back to the system when it is freed: "
        "this is what the step needs at its worst moment, whatever the allocator. `held`: in a "
        "process like that of `ksm learn`, which keeps what it freed, or with `--checkpointing` "
        "gives back blocks of 4 MiB. `ksm`: with its defaults, masks from stride 16 on; "
        "`everywhere`: on all layers, as published. `checkpointing`: blocks of the network are "
        "computed a second time in the backward pass. What `pointwise=4` costs in accuracy is in "
        "results/sizes. One process a figure. Where `held` is less than `in use`, the process had "
        "kept blocks before it began to train."
    )
    rest = ["/ fine-tuning"]
    head = ["network", "training", "in use", *rest, "held", *rest]
    write(results, measured, f"{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    else:
        arguments = argparse.ArgumentParser()
        arguments.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
        arguments.add_argument("--networks", nargs="+", default=["resnet18", "resnet50_1by2"])
        arguments.add_argument("--out", type=Path, default=Path("results/speed/memory"))
        given = arguments.parse_args()
        main(given.sizes, given.networks, given.out)

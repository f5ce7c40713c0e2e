"""How much memory training takes; what it costs in time is in step.py's table.

Each figure is from a process of its own: the peak of its resident set, less what it had with torch
and ksm's compiled functions loaded and the backbone built. Writes results/speed/memory.{json,md}
after each network and size, and leaves out those that the file has.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from ksm.core.allocator import give_back_freed_blocks, keep_freed_blocks

WAYS: dict[str, dict[str, Any]] = {
    "fine-tuning, Adam": {},
    "ksm": {"method": {}},
    "ksm, less": {"method": {}, "memory": "less"},
    "ksm, least": {"method": {}, "memory": "least"},
    "ksm, less, pointwise 4": {"method": {"pointwise": 4}, "memory": "less"},
    "ksm, least, pointwise 4": {"method": {"pointwise": 4}, "memory": "least"},
    "ksm from stride 8": {"method": {"mask_from": "stride8"}},
    "ksm everywhere": {"method": {"mask_from": None}},
    "ksm everywhere, less": {"method": {"mask_from": None}, "memory": "less"},
    "ksm everywhere, least": {"method": {"mask_from": None}, "memory": "least"},
}
SIZES = (64, 128, 224)
ALLOCATORS = ("in use", "held")
STEPS = {"in use": 3, "held": 5}
RESULTS = Path("results/speed/memory")


def one(network: str, size: int, way: str, allocator: str) -> None:
    """Train some steps in this process and print what it took.

    Args:
        allocator: `in use`: the environment has it that blocks are given back at once; `held`: what
            the command line asks for.
    """
    chosen = WAYS[way]
    if allocator == "held":
        keep_freed_blocks()
        if chosen.get("memory") == "least":
            give_back_freed_blocks()
    import torch
    from measuring import resident
    from step import BATCH, CLASSES, NETWORKS, copied, step_of

    import ksm
    from ksm.train.checkpointing import within
    from ksm.train.memory_format import ordered

    backbone = NETWORKS[network]().eval()
    backbone(torch.randn(2, 3, size, size)).sum().backward()  # so that libraries are loaded
    backbone.zero_grad()
    bare = resident("VmRSS")
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    )
    small = ksm.add_task(torch.nn.Sequential(*small, torch.nn.Linear(4, 4)), 2).train()
    last = torch.channels_last
    with within(small, "less") as run:  # and numba, where it is installed
        run(torch.randn(2, 3, 1, 1).contiguous(memory_format=last)).sum().backward()
    del run
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=last)
    if "method" in chosen:
        model = ksm.add_task(backbone, CLASSES, method=ksm.KSM(**chosen["method"]), size=size)
        groups: Any = ksm.parameter_groups(model)
    else:
        model = copied(backbone)
        groups = model.parameters()
        del backbone
    optimizer = torch.optim.Adam(groups, fused=True)
    memory = chosen.get("memory", "most")
    model.train()
    with ordered(model, last, frozen=memory == "most"), within(model, memory) as run:
        step = step_of(model, optimizer, images, within=run)
        for _ in range(STEPS[allocator]):
            step()
    print(json.dumps({"bytes": resident("VmHWM") - before, "compiled": before - bare}))


def measured(*case: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *case]
    given = {"MALLOC_MMAP_THRESHOLD_": "65536"} if case[-1] == "in use" else {}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **given}
    )
    return json.loads(done.stdout)


def main() -> None:
    from step import NETWORKS

    file = RESULTS.with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for size in SIZES:
        for network in NETWORKS:
            name = f"{network}, {size} pixels"
            if name in found:
                continue
            cases = [(network, str(size), way, each) for way in WAYS for each in ALLOCATORS]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                took = iter(list(pool.map(lambda one: measured(*one), cases)))
            found[name] = {way: {each: next(took) for each in ALLOCATORS} for way in WAYS}
            report(found)


def report(found: dict[str, Any]) -> None:
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
        "built. `in use`: each block of 64 KiB is given back to the system when it is freed, so "
        "that this is what the step needs at its worst moment, whatever the allocator. `held`: by "
        "a process as `ksm learn` has it, which keeps what it freed, or with `--memory least` "
        "gives back blocks of 4 MiB. `ksm`: with its defaults, masks from stride 16 on; "
        "`everywhere`: on all layers, as published. `less` and `least`: `--memory`; what is "
        "quickly made again is not kept, or blocks of the network are computed a second time. "
        "What `pointwise=4` costs in accuracy is in results/sizes. One process a figure. Where "
        "`held` is less than `in use`, the process had kept blocks before it began to train."
    )
    compiled = [one["held"]["compiled"] for case in measured.values() for one in case.values()]
    about += (
        f" Loading what numba compiled takes {bytes_of(int(median(compiled)))} more, once in a "
        "process that trains ksm's masks, and is not counted."
    )
    rest = ["/ fine-tuning"]
    head = ["network", "training", "in use", *rest, "held", *rest]
    write(RESULTS, measured, f"{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    else:
        main()

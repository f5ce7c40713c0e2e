"""How much memory training takes, and what saving some of it costs in time.

Each figure is the peak of the resident set of a process of its own, less what it had with torch
loaded and the backbone built. Writes results/speed/memory.{json,md}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import resident, write
from step import BATCH, CLASSES, NETWORKS, copied, step_of

import ksm
from ksm.compare.report import table
from ksm.display import size as bytes_of
from ksm.lean import lean

WAYS: dict[str, dict[str, Any]] = {
    "fine-tuning, Adam": {},
    "ksm": {"method": {}},
    "ksm, lean": {"method": {}, "lean": True},
    "ksm, pointwise 4, lean": {"method": {"pointwise": 4}, "lean": True},
    "ksm from layer2": {"method": {"mask_from": "layer2"}},
    "ksm from layer2, lean": {"method": {"mask_from": "layer2"}, "lean": True},
    "ksm from layer3": {"method": {"mask_from": "layer3"}},
    "ksm from layer3, lean": {"method": {"mask_from": "layer3"}, "lean": True},
}
STEPS = 6


def one(network: str, size: int, way: str) -> None:
    """Train some steps in this process and print what it took."""
    backbone = NETWORKS[network]().eval()
    backbone(torch.randn(2, 3, size, size)).sum().backward()  # so that libraries are loaded
    backbone.zero_grad()
    before = resident("VmRSS")
    images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    chosen = WAYS[way]
    if "method" in chosen:
        model = ksm.add_task(backbone, CLASSES, method=ksm.KSM(**chosen["method"]))
        groups: Any = ksm.parameter_groups(model)
    else:
        model = copied(backbone)
        groups = model.parameters()
        del backbone
    step = step_of(model, torch.optim.Adam(groups, fused=True), images)
    times: list[float] = []
    with lean(model) if chosen.get("lean") else nullcontext():
        for _ in range(STEPS):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
    print(json.dumps({"bytes": resident("VmHWM") - before, "seconds": median(times[2:])}))


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    rows: list[list[str]] = []
    for network in NETWORKS:
        for size in (64, 128, 224):
            for way in WAYS:
                command = [sys.executable, __file__, network, str(size), way]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.setdefault(f"{network}, {size} pixels", {})[way] = json.loads(done.stdout)
    for case, ways in found.items():
        rival = ways["fine-tuning, Adam"]
        for way, took in ways.items():
            rows.append(
                [
                    case,
                    way,
                    bytes_of(took["bytes"]),
                    f"{took['bytes'] / rival['bytes']:.2f}",
                    f"{took['seconds'] / rival['seconds']:.2f}",
                ]
            )
    about = (
        f"# Memory of training\n\n{BATCH} images a step, Adam, float32. Peak of the resident set "
        "of a process of its own, less what it had with torch loaded and the backbone built; time "
        f"is the median of {STEPS - 2} steps of that process, beside fine-tuning's. `lean`: blocks "
        "are computed a second time going back. What starting the mask at `layer2` or `layer3` "
        "costs in accuracy is in results/stages. One process a figure, under the allocator's "
        "defaults: from run to run figures differ by up to a tenth."
    )
    head = ["network", "training", "bytes", "/ fine-tuning", "time / fine-tuning"]
    write(Path("results/speed/memory"), found, f"{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main()

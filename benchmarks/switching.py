"""How long it takes to switch tasks, and how much memory a thousand of them take.

The rival, in the same run, is a copy of the masked weights: no switch of weights can do with less.
Writes results/speed/switching.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import Times, in_turns, ms, over, untrained, write
from safetensors.torch import load
from torch import nn
from torchvision.models import resnet18, resnet50

import ksm
from ksm import KSM, Bank
from ksm.bank.taskfile import pack, unpack
from ksm.compare.report import table
from ksm.core.text import size
from ksm.core.unpacking import Unpacking
from ksm.infer.hotswap import Place

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50_1by2": lambda: ksm.backbone("resnet50_1by2"),
    "resnet18": lambda: resnet18(weights=None),
    "resnet50": lambda: resnet50(weights=None),
}
METHODS = {
    "ksm": KSM(mask_from=None),
    "ksm, pointwise 4": KSM(mask_from=None, pointwise=4),
}
MANY = 1000


@torch.no_grad()
def switching(backbone: nn.Module, method: KSM, repeats: int) -> tuple[Times, Times]:
    """Seconds of each way from one task to another: one after another, and each after the task
    that is switched from classified some images."""
    tasks = [untrained(backbone, f"t{i}", method) for i in range(2)]
    packed = [pack(task) for task in tasks]
    first = unpack(packed[0], Path("t0"))[0]
    place = Place.of(backbone, first.on(backbone), first, packed[0])
    if place is None or not place.write(packed[1]):
        raise RuntimeError("these tasks do not switch in place")
    tensors = load(packed[0].unpack("mask"))
    values = method.factor_values(tensors)
    unpacking = Unpacking([method.cut(layer) for layer in place.layers], values)
    masks = [mask.clone() for mask in unpacking.masks(tensors["mask/units"], values)]
    turn = 0

    def from_packed() -> None:
        nonlocal turn
        turn = 1 - turn
        place.write(packed[turn])

    def copy() -> None:
        for frozen, folded in zip(place.frozen, place.folded, strict=True):
            folded.copy_(frozen)

    def from_mask() -> None:
        for frozen, folded, mask in zip(place.frozen, place.folded, masks, strict=True):
            torch.mul(frozen, mask, out=folded)

    works = {"copy": copy, "from mask": from_mask, "from packed": from_packed}
    found = in_turns(works, repeats)
    found |= in_turns({"new fold": lambda: first.on(backbone)}, 3)
    images = torch.randn(32, 3, 64, 64)
    return found, in_turns(works, repeats // 2, before=lambda: place.model(images))


def memory(folder: Path) -> dict[str, int]:
    """Bytes that a process of its own takes with the backbone, and with `MANY` tasks more."""
    script = (
        "import json, sys\n"
        "import ksm\n"
        "from pathlib import Path\n"
        "def resident():\n"
        "    text = Path('/proc/self/status').read_text()\n"
        "    return 1024 * int(text.split('VmRSS:')[1].split()[0])\n"
        "engine = ksm.Engine(ksm.backbone('resnet50_1by2'), keep=2)\n"
        "paths = sorted(Path(sys.argv[1]).glob('*.safetensors'))\n"
        "engine.add(paths[0])\n"
        "before = resident()\n"
        "for path in paths[1:]: engine.add(path)\n"
        "print(json.dumps({'backbone': before, 'with tasks': resident()}))\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def many(method: KSM) -> dict[str, int]:
    """`memory`, with the sizes of the files."""
    backbone = ksm.backbone("resnet50_1by2")
    with tempfile.TemporaryDirectory() as folder:
        path = Bank(folder).save(untrained(backbone, "t0", method))
        content = path.read_bytes()
        for i in range(1, MANY + 1):
            Path(folder, f"t{i}.safetensors").write_bytes(content)
        return {"file": len(content), "tasks": MANY, **memory(Path(folder))}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--repeats", type=int, default=100)
    repeats = arguments.parse_args().repeats
    found: dict[str, Any] = {"switching": {}}
    rows: list[list[str]] = []
    for network, make in NETWORKS.items():
        backbone = make().eval()
        for name, method in METHODS.items():
            times, used = switching(backbone, method, repeats)
            found["switching"][f"{network}, {name}"] = {"alone": times, "after use": used}
            rows.append([f"{network}, {name}"])
            for each in (times, used):
                rows[-1] += [
                    ms(each["copy"]),
                    over(each["from mask"], each["copy"]),
                    over(each["from packed"], each["copy"]),
                    ms(each["from packed"]),
                ]
            rows[-1].append(f"{1000 * median(times['new fold']):.0f}")
    found["memory"] = many(KSM(mask_from=None))
    grown = found["memory"]["with tasks"] - found["memory"]["backbone"]
    files = MANY * found["memory"]["file"]
    about = (
        "# Switching\n\nFrom one task to another in an `Engine`; ms, median and middle half. "
        "Ratios are to a copy of the masked weights in the same turn. `used`: before each, the "
        "task that is switched from classified 32 images of 64 pixels, as in use; without, the "
        "same memory is written again and again, and a small network's weights stay in the "
        "processor's cache. `new fold`: a new module, with `Task.on`.\n\n"
        f"Memory: {MANY} registered tasks took {size(grown)} more, {grown / files:.3f} of the "
        f"bytes of their files ({size(files)})."
    )
    head = [
        "network, masks",
        "copy", "from mask / copy", "from packed / copy", "from packed",
        "used: copy", "from mask / copy", "from packed / copy", "from packed",
        "new fold",
    ]  # fmt: skip
    write(Path("results/speed/switching"), found, f"{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()

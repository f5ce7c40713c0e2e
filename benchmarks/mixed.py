"""How long a batch takes whose images belong to different tasks.

Compared on one frozen ResNet-50 of half width at 64 pixels, 32 images (or 8) of several tasks:
`ksm.Mixed` with each of its strategies; each task's own model on its images, one after another,
which is what one would write without it; and one task's model on the whole batch, which no way of
running several tasks can be expected to beat. Writes results/speed/mixed.{json,md}.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from ksm.measured import machine
from measuring import in_turns, ms, over, untrained, write
from torch import Tensor, nn

import ksm
from ksm import KSM
from ksm.compare.report import table
from ksm.infer.mixed import Strategy

BACKBONE, SIZE = "resnet50_1by2", 64
BATCHES = ((8, 4), (4, 8), (2, 16), (8, 1))
PLAIN, FLOOR = "each task's own model", "one task, whole batch"


@torch.no_grad()
def batch_of(
    backbone: nn.Module, tasks: list[ksm.Task], each: int, repeats: int
) -> dict[str, object]:
    """Times of all ways for `each` images of each task, in random order."""
    models = {task.name: task.on(backbone) for task in tasks}
    order = torch.randperm(len(tasks) * each).tolist()
    names = [tasks[i % len(tasks)].name for i in order]
    images = torch.randn(len(names), 3, SIZE, SIZE)

    def plain() -> list[Tensor]:
        logits: dict[int, Tensor] = {}
        for name, model in models.items():
            mine = [i for i, other in enumerate(names) if other == name]
            logits.update(zip(mine, model(images[mine]), strict=True))
        return [logits[i] for i in range(len(names))]

    mixed = {strategy: ksm.Mixed(backbone, tasks, strategy) for strategy in get_args(Strategy)}
    one = models[tasks[0].name]
    ways: dict[str, Callable[[], object]] = {
        **{f"Mixed, {name}": lambda m=m: m(images, names) for name, m in mixed.items()},
        PLAIN: plain,
        FLOOR: lambda: one(images),
    }
    expected = torch.stack(plain())
    off = max(float((torch.stack(m(images, names)) - expected).abs().max()) for m in mixed.values())
    return {
        "tasks": len(tasks),
        "images_each": each,
        "largest_difference": off / float(expected.abs().max()),
        "seconds": in_turns(ways, repeats),
    }


def layers_of(cache: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What Mixed measured: kind of layer, then kind of batch, then seconds of both strategies."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, times in json.loads((cache / "mixed.json").read_text()).items():
        if "loop" not in times:  # one pass against each task by itself
            continue
        layer, _, batch = kind.removeprefix(f"{machine(torch.device('cpu'))}, ").partition(", ")
        found.setdefault(layer.removesuffix(" float32"), {})[batch] = times
    return found


def markdown(found: dict[str, Any]) -> str:
    batches, layers = found["batches"], found["layers"]
    parts = [
        f"# Mixed batches\n\n{BACKBONE} at {SIZE} pixels; {found['repeats']} turns, median and "
        f"middle half. *Times faster* is against {PLAIN}, within a turn.\n",
    ]
    for batch in batches:
        parts.append(f"## {batch['tasks']} tasks, {batch['images_each']} images each\n")
        seconds = batch["seconds"]
        rows = [[name, ms(t, ".1f"), over(seconds[PLAIN], t)] for name, t in seconds.items()]
        parts.append(table(["", "ms", "times faster"], rows) + "\n")
        parts.append(
            f"Largest difference of logits: {batch['largest_difference']:.1e} of the "
            "largest logit.\n"
        )
    parts.append("## Layers: ms in a loop / grouped\n")
    kinds = sorted({kind for batches in layers.values() for kind in batches})
    parts.append(
        table(
            ["layer", *kinds],
            [
                [
                    layer,
                    *(
                        f"{1000 * times['loop']:.2f} / {1000 * times['grouped']:.2f}"
                        if times
                        else ""
                        for times in (batches.get(kind) for kind in kinds)
                    ),
                ]
                for layer, batches in layers.items()
            ],
        )
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    backbone = ksm.backbone(BACKBONE).eval()
    torch.manual_seed(0)
    tasks = [
        untrained(backbone, f"task {i}", KSM(mask_from=None))
        for i in range(max(n for n, _ in BATCHES))
    ]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["KSM_CACHE"] = cache  # so that layers are measured now, and not long ago
        batches = [batch_of(backbone, tasks[:n], each, repeats) for n, each in BATCHES]
        layers = layers_of(Path(cache))
    found: dict[str, Any] = {"repeats": repeats, "batches": batches, "layers": layers}
    write(Path("results/speed/mixed"), found, markdown(found))


if __name__ == "__main__":
    main()

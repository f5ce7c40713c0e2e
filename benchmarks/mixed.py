"""How long a batch takes whose images belong to different tasks.

Compared on one frozen ResNet-50 of half width at 64 pixels, 32 images (or 8) of several tasks:
`ksm.Mixed`; each task's own model on its images, one after another, which is what one would write
without `ksm.Mixed`; and one task's model on the whole batch, which no way of running several tasks
can be expected to beat. Writes results/speed/mixed.{json,md}.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import in_turns, ms, over, untrained, write
from torch import Tensor, nn

import ksm
from ksm import KSM
from ksm.compare.report import table

BACKBONE, SIZE = "resnet50_1by2", 64
BATCHES = ((8, 4), (4, 8), (2, 16), (8, 1))
MIXED, PLAIN, FLOOR = "ksm.Mixed", "each task's own model", "one task, whole batch"
METHODS = {"from stride 16": KSM(), "from the input": KSM(mask_from=None)}


@torch.no_grad()
def batch_of(
    backbone: nn.Module, tasks: list[ksm.Task], each: int, repeats: int
) -> dict[str, object]:
    """Time all ways for `each` images of each task, in random order."""
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

    mixed = ksm.Mixed(backbone, tasks)
    one = models[tasks[0].name]
    ways: dict[str, Callable[[], object]] = {
        MIXED: lambda: mixed(images, names),
        PLAIN: plain,
        FLOOR: lambda: one(images),
    }
    expected = torch.stack(plain())
    off = float((torch.stack(mixed(images, names)) - expected).abs().max())
    return {
        "tasks": len(tasks),
        "images_each": each,
        "largest_difference": off / float(expected.abs().max()),
        "seconds": in_turns(ways, repeats),
    }


def markdown(found: dict[str, Any]) -> str:
    parts = [
        f"# Mixed batches\n\n{BACKBONE} at {SIZE} pixels; {found['repeats']} turns, median and "
        f"middle half. *Times faster* is against {PLAIN}, within a turn.\n",
    ]
    for start, batches in found["batches"].items():
        for batch in batches:
            seconds = batch["seconds"]
            rows = [[name, ms(t, ".1f"), over(seconds[PLAIN], t)] for name, t in seconds.items()]
            parts += [
                f"## Masks {start}, {batch['tasks']} tasks, {batch['images_each']} images each\n",
                table(["", "ms", "times faster"], rows) + "\n",
                f"Largest difference of logits: {batch['largest_difference']:.1e} of the "
                "largest logit.\n",
            ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    backbone = ksm.backbone(BACKBONE)
    torch.manual_seed(0)
    found: dict[str, Any] = {"repeats": repeats, "batches": {}}
    for start, method in METHODS.items():
        most = max(n for n, _ in BATCHES)
        tasks = [untrained(backbone, f"task {i}", method) for i in range(most)]
        found["batches"][start] = [batch_of(backbone, tasks[:n], e, repeats) for n, e in BATCHES]
    write(Path("results/speed/mixed"), found, markdown(found))


if __name__ == "__main__":
    main()

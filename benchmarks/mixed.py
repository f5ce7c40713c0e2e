"""How long a batch takes whose images belong to different tasks.

    python benchmarks/mixed.py [--repeats 30] [--threads N] [--out results/speed]

Compared on one frozen ResNet-50 of half width at 64 pixels, 32 images (or 8) of several tasks:
`ksm.Mixed` with each of its strategies; each task's own model on its images, one after another,
which is what one would write without it; and one task's model on the whole batch, which no way of
running several tasks can be expected to beat. Within a round each way runs once, in an order that
changes from round to round, so that what else the machine does falls on all of them alike; ratios
are taken within a round. The tasks are made up: masks, BatchNorm and heads are random.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

import ksm
from ksm.compare.report import table
from ksm.measured import machine
from ksm.mixed import Strategy

BACKBONE, SIZE, CLASSES = "resnet50_1by2", 64, 10
BATCHES = ((8, 4), (4, 8), (2, 16), (8, 1))
PLAIN, FLOOR = "each task's own model", "one task, whole batch"


def made_up(backbone: nn.Module, name: str, seed: int) -> ksm.Task:
    """A task with about a third of its kernels off and a BatchNorm and head of its own."""
    torch.manual_seed(seed)
    model = ksm.add_task(backbone, CLASSES)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".score"):
                parameter.copy_(7e-3 + 5e-3 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.mul_(1 + 0.2 * torch.rand_like(buffer))
    return ksm.Task.of(model.eval(), name, [str(i) for i in range(CLASSES)])


def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for run in ways.values():  # not counted; Mixed measures its layers here
        run()
        run()
    for _ in range(repeats):
        names.append(names.pop(0))
        for name in names:
            begin = time.perf_counter()
            ways[name]()
            found[name].append(time.perf_counter() - begin)
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


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
    found = timed(ways, repeats)
    return {
        "tasks": len(tasks),
        "images_each": each,
        "largest_difference": off / float(expected.abs().max()),
        "seconds": found,
        "ratio_to_plain": {
            name: quartiles([p / s for p, s in zip(found[PLAIN], times, strict=True)])
            for name, times in found.items()
        },
    }


def layers_of(cache: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What Mixed measured: kind of layer, then kind of batch, then seconds of both strategies."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, times in json.loads((cache / "mixed.json").read_text()).items():
        layer, _, batch = kind.removeprefix(f"{machine(torch.device('cpu'))}, ").partition(", ")
        found.setdefault(layer.removesuffix(" float32"), {})[batch] = times
    return found


def markdown(result: dict[str, object]) -> str:
    batches, layers = result["batches"], result["layers"]
    assert isinstance(batches, list) and isinstance(layers, dict)
    parts = [
        "# Mixed batches\n",
        f"{BACKBONE} at {SIZE} px on {result['machine']}, {result['cores']} cores; "
        f"{result['repeats']} rounds. Median (quartiles). *Times faster* is against {PLAIN}, "
        "within a round.\n",
    ]
    for batch in batches:
        parts.append(f"## {batch['tasks']} tasks, {batch['images_each']} images each\n")
        rows: list[list[str]] = []
        for name, times in batch["seconds"].items():
            low, mid, high = (1000 * value for value in quartiles(times))
            less, ratio, more = batch["ratio_to_plain"][name]
            faster = f"{ratio:.2f} ({less:.2f} to {more:.2f})"
            rows.append([name, f"{mid:.1f} ({low:.1f} to {high:.1f})", faster])
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
    parser.add_argument("--repeats", type=int, default=30, help="rounds (at least 2)")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    backbone = ksm.backbone(BACKBONE).eval()
    tasks = [made_up(backbone, f"task {i}", i) for i in range(max(n for n, _ in BATCHES))]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["KSM_CACHE"] = cache  # so that layers are measured now, and not long ago
        batches = [batch_of(backbone, tasks[:n], each, given.repeats) for n, each in BATCHES]
        layers = layers_of(Path(cache))
    result: dict[str, object] = {
        "machine": machine(torch.device("cpu")),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "backbone": BACKBONE,
        "size": SIZE,
        "repeats": given.repeats,
        "batches": batches,
        "layers": layers,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "mixed.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.out / "mixed.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()

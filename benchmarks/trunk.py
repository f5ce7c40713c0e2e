"""What a shared trunk saves: many tasks on an image, and a training step, by where the mask starts.

Writes `trunk.json` and `trunk.md`. Accuracies come from `ksm bench stages --out
results/stages/resnet50_1by2`, where that was run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import in_turns, ms, over, untrained, write
from torch import Tensor, nn
from torch.nn import functional

import ksm
from ksm import KSM, AllTasks, add_task, parameter_groups
from ksm.compare.metrics import paired
from ksm.compare.report import Results, table, text
from ksm.core.text import size
from ksm.core.trunk import split

BACKBONE, PIXELS, CLASSES, TASKS, BATCH = "resnet50_1by2", 64, 8, 5, 32
STARTS = (None, "layer1", "layer2", "layer3", "layer4")
STAGES = Path("results/stages") / BACKBONE


@torch.no_grad()
def inference(backbone: nn.Module, start: str | None, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds of five tasks on one batch: apart, each a folded model, and together."""
    tasks = [untrained(backbone, f"task {i}", KSM(mask_from=start)) for i in range(TASKS)]
    apart, together = [one.on(backbone) for one in tasks], AllTasks(backbone, tasks)
    images = torch.randn(batch, 3, PIXELS, PIXELS)
    found = together(images)
    same = [torch.equal(found[t.name], m(images)) for t, m in zip(tasks, apart, strict=True)]
    if not all(same):
        raise RuntimeError(f"the outputs of {same.count(False)} tasks differ, from {start}")
    return in_turns(
        {
            "apart": lambda: [model(images) for model in apart],
            "together": lambda: together(images),
        },
        repeats,
    )


def step_of(model: nn.Module, trained: nn.Module, inputs: Tensor) -> Callable[[], object]:
    """One step of training: forward, backward, and Adam's."""
    optimizer = torch.optim.Adam(parameter_groups(model), fused=True)
    labels = torch.arange(len(inputs)) % CLASSES

    def step() -> None:
        functional.cross_entropy(trained(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def kept_for_backward(step: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of a step, the model's own tensors aside."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())


def training(backbone: nn.Module, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of a step: `whole`, and from each stage on images and on kept features."""
    images = torch.randn(BATCH, 3, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)
    works: dict[str, Callable[[], object]] = {}
    bytes_kept: dict[str, int] = {}
    feature: dict[str, int] = {}
    for start in STARTS:
        model = add_task(backbone, CLASSES, method=KSM(mask_from=start))
        rest = None if start is None else split(model, start, "fc", images.shape[1:])
        steps = {f"{start or 'none'}": step_of(model, model.train(), images)}
        if start is not None:
            if rest is None:
                raise RuntimeError(f"{BACKBONE} has no trunk before {start}")
            (features,) = rest.trunk(images)
            steps[f"{start}, kept"] = step_of(model, rest.train(), features)
            feature[start] = features[0].numel() * features.element_size()
        for name, step in steps.items():
            bytes_kept[name] = kept_for_backward(step, model)
        works |= steps
    return {"seconds": in_turns(works, repeats), "kept": bytes_kept, "feature": feature}


def lost() -> dict[str, str]:
    """Points of average test accuracy lost by each start, paired with the mask from the input."""
    if not (STAGES / "cells").is_dir():
        return {}
    results = Results.of(STAGES)
    whole = results.accuracies("ksm")
    pairs = {s: paired(whole, results.accuracies(f"ksm-from={s}")) for s in STARTS if s}
    return {start: f"{text(found, '+')} ({len(found)})" for start, found in pairs.items() if found}


def markdown(found: dict[str, Any]) -> str:
    head = ["mask from", "one image: apart, ms", "together, ms", "times faster"]
    head += [f"{BATCH} images: apart, ms", "together, ms", "times faster"]
    body: list[list[str]] = []
    for start, batches in found["inference"].items():
        line = [start]
        for times in batches.values():
            line += [f"{1000 * median(times[how]):.1f}" for how in ("apart", "together")]
            line.append(over(times["apart"], times["together"]))
        body.append(line)
    train = found["training"]
    whole, rows = train["seconds"]["none"], list[list[str]]()
    for name, times in train["seconds"].items():
        start = name.removesuffix(", kept")
        rows.append(
            [
                name,
                ms(times, ".0f"),
                over(whole, times),
                size(train["kept"][name]),
                size(train["feature"][start]) if name != start else "-",
                found["lost"].get(start, "-") if name != "none" else "0",
            ]
        )
    return "\n".join(
        [
            f"# A shared trunk: {BACKBONE} at {PIXELS} pixels",
            "",
            f"{TASKS} tasks with random masks. Median over {found['repeats']} turns, in which all "
            "works alternate; in brackets the middle half. Outputs together and apart are equal to "
            "the bit.",
            "",
            f"## {TASKS} tasks on the same images",
            "",
            table(head, body),
            "",
            f"## A training step of {BATCH} images",
            "",
            "`kept`: on the trunk's outputs, computed once before the first epoch. Memory is what "
            "autograd keeps for the backward pass, the model's own tensors aside; an image's "
            "outputs are kept twice where images are mirrored. Accuracy lost is the average's over "
            "five tasks, in points against a mask from the input, paired by seed and task (number "
            f"of seeds), from `{STAGES}`.",
            "",
            table(
                ["mask from", "ms", "times faster", "memory", "outputs an image", "accuracy lost"],
                rows,
            ),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    backbone = ksm.backbone(BACKBONE)
    found: dict[str, Any] = {
        "repeats": repeats,
        "inference": {
            start or "none": {
                batch: inference(backbone, start, batch, repeats) for batch in (1, BATCH)
            }
            for start in STARTS
        },
        "training": training(backbone, repeats),
        "lost": lost(),
    }
    write(Path("results/speed/trunk"), found, markdown(found))


if __name__ == "__main__":
    main()

"""A start for a task's masks and normalisations from the earlier task that suits its images best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ksm.clone import replace, share
from ksm.data.features import Examples
from ksm.methods._masked import layer_masks
from ksm.methods.ksm import SoftMask
from ksm.pack import length, unpack
from ksm.task import Task, origin


@torch.no_grad()
def separation(features: nn.Module, train: Examples, val: Examples) -> float:
    """Accuracy on `val` of the class whose mean feature in `train` is nearest, by cosine."""

    def found(images: Examples) -> tuple[Tensor, Tensor]:
        parts = [
            (features(images.inputs(pixels)).flatten(1), label)
            for pixels, label in DataLoader(images, 64, generator=torch.Generator())
        ]
        values, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return values, labels

    values, labels = found(train)
    middle = values.mean(0)
    classes = int(labels.max()) + 1
    means = torch.stack([(values[labels == c] - middle).mean(0) for c in range(classes)])
    others, truth = found(val)
    near = nn.functional.normalize(others - middle) @ nn.functional.normalize(means).T
    return (near.argmax(1) == truth).float().mean().item()


def nearest(
    backbone: nn.Module, tasks: Sequence[Task], train: Examples, val: Examples
) -> Task | None:
    """The task whose features separate the classes best; None if the backbone's own do."""
    scores: list[tuple[float, Task | None]] = []
    for task in (None, *tasks):
        model = task.on(backbone) if task else share(backbone).eval()
        head = task.backbone.head if task else "fc"
        replace(model, head, nn.Identity())
        scores.append((separation(model, train, val), task))
    print([(round(100 * each, 1), task and task.name) for each, task in scores])
    return max(scores, key=lambda each: each[0])[1]


@torch.no_grad()
def warm(model: nn.Module, task: Task) -> None:
    """Let the model start as a task: off units below the threshold by their level."""
    known = origin(model)
    head = known.description.head
    masks = [mask for _, mask in layer_masks(model)]
    values = task.method.factor_values(task.tensors)  # pyright: ignore
    base = values.shape[-1]
    at = 0
    packed = task.tensors["mask/units"]
    for mask in masks:
        assert isinstance(mask, SoftMask)
        count = mask.score.numel()
        size = length(count, base)
        digits = unpack(packed[at : at + size], base, count).reshape(mask.score.shape).long()
        at += size
        m = mask.method
        factor = values[digits]
        reach = m.start - m.tau
        off = m.tau - reach * (1 - factor / m.alpha) - 0.1 * reach
        mask.score.copy_(torch.where(digits == 0, torch.tensor(m.start), off))
    for name, tensor in task.tensors.items():
        key = name.removeprefix("own/")
        if name.startswith("own/") and not key.startswith(f"{head}."):
            parent, _, child = key.rpartition(".")
            getattr(model.get_submodule(parent), child).copy_(tensor)

"""How good a model is on labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from ksm.data.features import Examples
from ksm.train.objective import Classification, Objective

BATCH = 64
"""Images at a time."""


def device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def evaluate(
    model: nn.Module, images: Examples, objective: Objective | None = None, batch: int = BATCH
) -> dict[str, Any]:
    """Return the figures of a model on images; see `Objective.measure`.

    The model's mode is not changed: put it in evaluation mode first. Masked weights are made once
    for all images, by torch's cache for parametrizations, which is the whole process's: train no
    other model in another thread meanwhile.

    Args:
        objective: None: classification, an output a class.
    """
    batches = _outputs(model, images, batch)
    if objective is None:
        first = next(batches)
        objective = Classification(first[0].shape[1])
        return objective.measure(item for part in ([first], batches) for item in part)
    return objective.measure(batches)


@torch.no_grad()
def _outputs(model: nn.Module, images: Examples, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    where = next(model.parameters()).device
    with parametrize.cached():
        # A DataLoader draws a number even to go in order: not from the caller's generator.
        for pixels, target in DataLoader(images, batch, generator=torch.Generator()):
            yield model(images.inputs(pixels.to(where))).float().cpu(), target

"""How good a model is on labelled images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from ksm.data.features import Examples

BATCH = 64
"""Images at a time."""


def device() -> torch.device:
    """The accelerator, if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


@torch.no_grad()
def evaluate(model: nn.Module, images: Examples, batch: int = BATCH) -> dict[str, Any]:
    """Accuracy and loss of a model with one output a class.

    The model's mode is not changed: put it in evaluation mode first. Masked weights are made once
    for all images, by torch's cache for parametrizations, which is the whole process's: train no
    other model in another thread meanwhile.

    Returns:
        `accuracy` (in [0, 1]), `loss` (cross-entropy, nats), `images` (count), and `correct` and
        `count` (a list each, by class).
    """
    device = next(model.parameters()).device
    correct, count, loss = torch.zeros(0), torch.zeros(0), 0.0
    with parametrize.cached():
        # A DataLoader draws a number even to go in order: not from the caller's generator.
        for pixels, label in DataLoader(images, batch, generator=torch.Generator()):
            outputs = model(images.inputs(pixels.to(device))).float().cpu()
            if not count.numel():
                correct, count = torch.zeros(outputs.shape[1]), torch.zeros(outputs.shape[1])
            loss += functional.cross_entropy(outputs, label, reduction="sum").item()
            hit = (outputs.argmax(1) == label).float()
            correct.index_add_(0, label, hit)
            count.index_add_(0, label, torch.ones_like(hit))
    total = int(count.sum())
    return {
        "accuracy": float(correct.sum()) / total,
        "loss": loss / total,
        "images": total,
        "correct": [int(value) for value in correct],
        "count": [int(value) for value in count],
    }

"""Classes and probabilities for images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ksm.data.load import centre, normalise, read
from ksm.errors import KsmError
from ksm.task import Task


@dataclass(frozen=True)
class Prediction:
    """Classes with their probabilities, most probable first."""

    file: Path
    task: str
    classes: list[tuple[str, float]]


@torch.no_grad()
def predict(
    task: Task,
    model: nn.Module,
    files: Sequence[str | os.PathLike[str]],
    top: int | None = None,
    batch: int = 32,
) -> list[Prediction]:
    """Predictions of one task for image files, in their order.

    Args:
        model: from `task.on(backbone)`, on any device.
        top: how many classes; None for all.

    Raises:
        KsmError: a file is not there or cannot be read; the message names it.
    """
    device = next(model.parameters()).device
    paths = [Path(file) for file in files]
    found: list[Prediction] = []
    for begin in range(0, len(paths), batch):
        part = paths[begin : begin + batch]
        pixels = torch.stack([centre(_read(path, task), task.preprocess.size) for path in part])
        probabilities = model(normalise(pixels.to(device), task.preprocess)).float().softmax(1)
        for path, row in zip(part, probabilities.cpu(), strict=True):
            value, index = row.topk(min(top or len(row), len(row)))
            ranked = zip(index.tolist(), value.tolist(), strict=True)
            classes = [(task.classes[i], p) for i, p in ranked]
            found.append(Prediction(path, task.name, classes))
    return found


def _read(path: Path, task: Task) -> torch.Tensor:
    if path.is_dir():
        raise KsmError(f"{path} is a folder: expected image files, such as {path / '*.jpg'}")
    if not path.exists():
        raise KsmError(f"no such image: {path}")
    if not path.is_file():
        raise KsmError(f"{path} is no file: expected an image")
    try:
        return read(path, task.preprocess)
    except KsmError as error:
        raise KsmError(f"{path}: {error}") from None

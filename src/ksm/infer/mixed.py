"""A batch whose images belong to different tasks: the trunk that tasks share runs once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ksm.core.names import listed
from ksm.core.trunk import Rest
from ksm.errors import KsmError
from ksm.infer.all_tasks import AllTasks
from ksm.task import Task


class Mixed:
    """Several tasks of one backbone, for batches whose images belong to different tasks.

    The trunk that tasks share runs once for the images of all of them; what comes after it runs
    for each task on the task's own images. Logits of an image are those of `task.on(backbone)` up
    to rounding.

    Tensors stay where the backbone's are at this moment. Several threads may call it; their passes
    run one after another.

    Args:
        backbone: only read.
        tasks: with names that differ.

    Raises:
        KsmError: no task, two of one name, or a task of another backbone.
    """

    def __init__(self, backbone: nn.Module, tasks: Sequence[Task]) -> None:
        self._tasks = AllTasks(backbone, tasks)
        self._names = [task.name for task in tasks]
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Logits of each image by its own task.

        Args:
            images: shape (n, 3, h, w), float32, on the backbone's device, normalised as each
                image's task wants it.
            names: the name of a task for each image.

        Returns:
            n tensors of shape (classes of the image's task,), in the order of the images.

        Raises:
            KsmError: images of another shape, another number of names, or a name of no task here.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise KsmError(f"images have shape {tuple(images.shape)}: expected (n, 3, h, w)")
        if len(names) != len(images):
            raise KsmError(f"{len(names)} task names for {len(images)} images: give one an image")
        if unknown := [name for name in names if name not in self._names]:
            raise KsmError(f"no task {unknown[0]!r} here; the tasks are: {listed(self._names)}")
        logits: dict[int, Tensor] = {}
        with self._lock:
            for group in self._tasks.groups(images.shape[1:]):
                places = [i for i, name in enumerate(names) if name in group]
                if not places:
                    continue
                mine = images if len(places) == len(images) else images[places]
                first = next(iter(group.values()))
                features = first.trunk(mine) if isinstance(first, Rest) else (mine,)
                for name in dict.fromkeys(names[i] for i in places):
                    rows = [row for row, i in enumerate(places) if names[i] == name]
                    outputs = group[name](*(feature[rows] for feature in features))
                    logits.update(zip((places[row] for row in rows), outputs, strict=True))
        return [logits[i] for i in range(len(images))]

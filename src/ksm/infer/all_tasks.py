"""Many tasks for the same images: the trunk that tasks share runs once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ksm.core.trunk import Rest, shares, split
from ksm.errors import KsmError
from ksm.task import Task

log = logging.getLogger("ksm")


class AllTasks:
    """Many tasks of one backbone for the same images; a trunk that tasks share runs once.

    Tasks with the same `mask_from` share the layers before that module. Each task holds only the
    tensors that differ from the backbone's. Tensors are on the backbone's device: move the backbone
    first. For one thread at a time.

    At the first images of a size each task with a trunk is run whole and without its trunk, on two
    random images. Where the two outputs are not equal to the bit, the task runs whole.

    Args:
        backbone: only read.
        tasks: with different names.

    Raises:
        KsmError: there is no task, two have the same name, or the backbone is not theirs.
    """

    def __init__(self, backbone: nn.Module, tasks: Sequence[Task]) -> None:
        if not tasks:
            raise KsmError("there is no task to run: give at least one")
        name, count = Counter(task.name for task in tasks).most_common(1)[0]
        if count > 1:
            raise KsmError(f"{count} tasks are named {name!r}: give tasks with names that differ")
        self.tasks = tuple(tasks)
        self._backbone = backbone
        self._models = [task.on(backbone) for task in tasks]
        self._plans: dict[torch.Size, list[dict[str, nn.Module]]] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits (n, classes) of each task, by its name, in the order of the tasks.

        They are equal to those of `task.on(backbone)`, on the CPU to the bit.

        Args:
            images: shape (n, 3, height, width), float32, normalised.

        Raises:
            KsmError: the images have another shape.
        """
        check_images(images)
        found: dict[str, Tensor] = {}
        for group in self.groups(images.shape[1:]):
            first = next(iter(group.values()))
            features = first.trunk(images) if isinstance(first, Rest) else (images,)
            for name, model in group.items():  # a network may write to its inputs
                found[name] = model(*(feature.clone() for feature in features))
        return {task.name: found[task.name] for task in self.tasks}

    @torch.no_grad()
    def groups(self, size: torch.Size) -> list[dict[str, nn.Module]]:
        """Group the tasks by shared trunk, each group its models by task name.

        The model of a task with a trunk is a `ksm.core.trunk.Rest`; a task without one is a group
        of its own.

        Args:
            size: of an image, (3, height, width).
        """
        if size not in self._plans:
            self._plans[size] = self._plan(size)
        return self._plans[size]

    def _plan(self, size: torch.Size) -> list[dict[str, nn.Module]]:
        starts = Counter(task.method.mask_from for task in self.tasks)
        groups: dict[object, dict[str, nn.Module]] = {}
        for task, model in zip(self.tasks, self._models, strict=True):
            start, head = task.method.mask_from, task.backbone.head
            rest = None
            if (
                start is not None
                and starts[start] > 1
                and shares(model, self._backbone, start, head)
            ):
                rest = split(model, start, head, size)
                if rest is None:
                    log.info("task %s runs whole: it cannot be split at %s", task.name, start)
            key = (start, rest.needed) if rest else task.name
            groups.setdefault(key, {})[task.name] = rest or model
        return list(groups.values())


def check_images(images: Tensor) -> None:
    """Refuse images of another shape than (n, 3, h, w).

    Raises:
        KsmError: the message has both shapes.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise KsmError(f"images have shape {tuple(images.shape)}: expected (n, 3, h, w)")

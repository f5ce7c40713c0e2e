"""A batch whose images belong to different tasks: the trunk that tasks share runs once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ksm.core.task_names import listed
from ksm.core.trunk import Rest
from ksm.errors import KsmError
from ksm.infer.all_tasks import AllTasks, check_images
from ksm.task import Task


class Mixed:
    """Several tasks of one backbone, for batches whose images belong to different tasks.

    The trunk that tasks share runs once, for the images of all of them. The layers after the trunk
    run for each task on the task's own images. Logits of an image are those of `task.on(backbone)`
    up to rounding, if the network treats each image by itself, as networks in evaluation mode do.

    Tensors stay on the device where the backbone's are when the object is made. Several threads may
    call the object; their batches run one after another.

    Args:
        backbone: only read.
        tasks: with different names.

    Raises:
        KsmError: no task, two of one name, or a task of another backbone.
    """

    def __init__(self, backbone: nn.Module, tasks: Sequence[Task]) -> None:
        self._tasks = AllTasks(backbone, tasks)
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Return the logits of each image by its own task.

        Args:
            images: shape (n, 3, h, w), float32, on the backbone's device, each normalised for its
                own task.
            names: the name of a task for each image.

        Returns:
            n tensors of shape (classes of the image's task,), in the order of the images.

        Raises:
            KsmError: images of another shape, another number of names, the name of an unknown
                task, or a network whose outputs are no logits.
        """
        check_images(images)
        if len(names) != len(images):
            raise KsmError(f"{len(names)} task names for {len(images)} images: give one an image")
        known = [task.name for task in self._tasks.tasks]
        if unknown := set(names) - set(known):
            raise KsmError(f"no task {min(unknown)!r} here; the tasks are: {listed(known)}")
        logits: dict[int, Tensor] = {}
        with self._lock:
            for group in self._tasks.groups(images.shape[1:]):
                places = [i for i, name in enumerate(names) if name in group]
                if places:
                    found = _logits(group, images[places], [names[i] for i in places])
                    logits.update(zip(places, found, strict=True))
        return [logits[i] for i in range(len(images))]


def _logits(group: dict[str, nn.Module], images: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Return the logits of images whose tasks share a trunk, or of one task."""
    first = group[names[0]]
    features = first.trunk(images) if isinstance(first, Rest) else (images,)
    logits: dict[int, Tensor] = {}
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        outputs = group[name](*(feature[rows] for feature in features))
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(rows):
            model = first.model if isinstance(first, Rest) else first
            kind = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise KsmError(
                f"{type(model).__name__} gives {kind} for {len(rows)} images: expected logits, a "
                "tensor of shape (n, classes)"
            )
        logits.update(zip(rows, outputs, strict=True))
    return [logits[row] for row in range(len(names))]

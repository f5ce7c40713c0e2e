"""A method's phases, one after another: what turns a fresh task model into a learned one."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from torch import Tensor, nn

from ksm.data.features import KEPT, Examples, Features
from ksm.data.load import Images
from ksm.errors import KsmError
from ksm.evaluation import BATCH, device
from ksm.memory import blocks
from ksm.methods import Outcome, Phase
from ksm.order import layout_of
from ksm.task import origin, restore, snapshot
from ksm.training import Training, fit
from ksm.trunk import split
from ksm.watch import Watcher


class Run:
    """Training of one task, and what it took.

    Args:
        train, val: images.
        training, watcher: see `ksm.learn`.
        memory: bytes that a trunk's outputs may take; 0: the trunk runs at each step.
    """

    def __init__(
        self, train: Images, val: Images, training: Training, watcher: Watcher, memory: int = 0
    ) -> None:
        self.train = train
        self.val = val
        self.training = training
        self.watcher = watcher
        self.memory = memory
        self.epochs: list[dict[str, Any]] = []
        """A record for each epoch, those of a network that was then found too small too."""
        self.stopped: str | None = None
        """Why a phase was cut short, if one was."""
        self.seconds = 0.0

    def go_through(self, model: nn.Module) -> Outcome:
        """Go through the phases of the model's method; the model ends as the task, in evaluation
        mode, and the outcome returned is the one that it has.

        Raises:
            KsmError: as `ksm.training.fit`, or interrupted before there was anything to keep.
            ksm.methods.Grow: the method wants a larger network.
        """
        known = origin(model)
        epochs = self.training.epochs_for(len(self.train))
        course = known.method.phases(model, known.description.head, epochs)
        try:
            trained, train, val = self._above_trunk(model)
            phase = next(course)
            while True:
                outcome, interrupted = self._fit(model, phase, trained, train, val)
                if interrupted and not phase.keeps:
                    course.throw(KeyboardInterrupt())
                if interrupted or outcome is None:
                    break
                phase = course.send(outcome)
        except StopIteration as end:
            outcome = end.value
        except KeyboardInterrupt:
            outcome = None
        if outcome is None:
            raise KsmError("interrupted before there was anything to keep")
        restore(model, outcome.state)
        model.eval()
        return outcome

    def _above_trunk(self, model: nn.Module) -> tuple[nn.Module, Examples, Examples]:
        """What is trained, and on what: the model on images; or what comes after its trunk on the
        trunk's outputs, where they can be computed once and kept."""
        known = origin(model)
        start, head = known.method.mask_from, known.description.head
        whole = model, self.train, self.val
        if not self.memory or start is None or self.train.augment not in KEPT:
            return whole
        above = [model.get_submodule(start[:at]) for at, sign in enumerate(start) if sign == "."]
        if self.training.memory == "least" and set(above) & set(blocks(model)):
            return whole  # a block that is partly trunk cannot be computed twice without the trunk
        began = time.perf_counter()
        model.to(where := device())
        rest = split(model, start, head, self.train.shape)
        if rest is None or len(rest.needed) != 1:
            return whole
        shape = rest.shapes[rest.needed[0]]
        if sum(Features.size(images, shape) for images in (self.train, self.val)) > self.memory:
            return whole
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.training.precision)

        def features(images: Images, batch: int, layout: torch.memory_format) -> Features:
            def trunk(inputs: Tensor) -> Tensor:
                with torch.autocast(where.type, dtype, enabled=dtype is not None):
                    return rest.trunk(inputs.contiguous(memory_format=layout))[0]

            return Features.of(images, trunk, batch, where)

        # As training and validation would feed the whole model, so that the bits are the same: the
        # order of values counts, and whether an image comes by itself, as in training none does.
        count, least = len(self.train), self.training.batch
        batch = next(n for n in itertools.count(least) if count % n != 1 or n > count)
        try:
            train = features(self.train, batch, layout_of(model, self.train.shape))
            val = features(self.val, BATCH, torch.contiguous_format)
        except torch.OutOfMemoryError:
            return whole
        self.seconds += time.perf_counter() - began
        return rest, train, val

    def _fit(
        self, model: nn.Module, phase: Phase, trained: nn.Module, train: Examples, val: Examples
    ) -> tuple[Outcome | None, bool]:
        """The phase's outcome, in which the model then is, and whether it was interrupted."""
        best: list[Outcome] = []

        def keep(record: dict[str, Any]) -> None:
            best[:] = [Outcome(record["val_accuracy"], snapshot(model), record)]

        if phase.start is not None:
            restore(model, phase.start)
        history = fit(
            trained,
            phase,
            train,
            val,
            self.training,
            head=model.get_submodule(origin(model).description.head),
            done=len(self.epochs),
            on_best=keep,
            on_epoch=self.watcher.epoch,
            on_step=self.watcher.step,
        )
        self.epochs += history.epochs
        self.seconds += history.seconds
        self.stopped = history.stopped or self.stopped
        if not best:
            return None, True
        restore(model, best[0].state)
        return best[0], history.stopped == "interrupted"

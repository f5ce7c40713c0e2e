"""A method's phases, one after another: what turns a fresh task model into a learned one."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

import torch
from torch import Tensor, nn

from ksm.core.trunk import split
from ksm.data.features import KEPT, Examples, Features
from ksm.data.load import Images
from ksm.errors import KsmError
from ksm.methods import Outcome, Phase
from ksm.task import Origin, origin, restore, snapshot
from ksm.train.callbacks import Callback
from ksm.train.checkpointing import blocks
from ksm.train.evaluate import BATCH, device
from ksm.train.loop import fit
from ksm.train.memory_format import memory_format_of
from ksm.train.objective import Objective
from ksm.train.settings import Training

log = logging.getLogger("ksm")


class Run:
    """Training of one task, and what it took.

    Args:
        train, val: images.
        training, callback: see `ksm.learn`.
        objective: what is minimised and measured.
        memory: bytes that a trunk's outputs may take; 0: the trunk runs at each step.
    """

    def __init__(
        self,
        train: Images,
        val: Images,
        training: Training,
        objective: Objective,
        callback: Callback,
        memory: int = 0,
    ) -> None:
        self.train = train
        self.val = val
        self.training = training
        self.objective = objective
        self.callback = callback
        self.memory = memory
        self.epochs: list[dict[str, Any]] = []
        """A record for each epoch, those of a network that was then found too small too."""
        self.stopped: str | None = None
        """Why a phase was cut short, if one was."""
        self.seconds = 0.0
        self.trunk = "run at each step"
        """Whether the trunk's outputs were kept, or why not."""

    def go_through(self, model: nn.Module) -> Outcome:
        """Go through the phases of the model's method; the model ends as the task, in evaluation
        mode, and the outcome returned is the one that it has.

        Raises:
            KsmError: as `ksm.train.loop.fit`, or interrupted before there was anything to keep.
            ksm.methods.Grow: the method wants a larger network.
        """
        known = origin(model)
        epochs = self.training.epochs_for(len(self.train))
        phases = known.method.phases(model, known.description.head, epochs)
        try:
            trained, train, val = self._above_trunk(model, known)
            phase = next(phases)
            while True:
                outcome, interrupted = self._fit(model, phase, trained, train, val)
                if interrupted and not phase.keeps:
                    phases.throw(KeyboardInterrupt())
                if interrupted or outcome is None:
                    break
                phase = phases.send(outcome)
        except StopIteration as end:
            outcome = end.value
        except KeyboardInterrupt:
            outcome = None
        if outcome is None:
            raise KsmError("interrupted before there was anything to keep")
        restore(model, outcome.state)
        model.eval()
        return outcome

    def _above_trunk(self, model: nn.Module, known: Origin) -> tuple[nn.Module, Examples, Examples]:
        """What is trained, and on what: the model on images; or what comes after its trunk on the
        trunk's outputs, where they can be computed once and kept."""
        start, head = known.method.mask_from, known.description.head
        if start is None:
            return self._whole(model, "none: the task starts at the input")
        if not self.memory:
            return self._whole(model, "run at each step: no memory is left to keep its outputs")
        if self.train.augment not in KEPT:
            return self._whole(model, f"run at each step: augmented by {self.train.augment}")
        above = [model.get_submodule(start[:at]) for at, sign in enumerate(start) if sign == "."]
        if self.training.checkpointing and set(above) & set(blocks(model)):
            # a block that is partly trunk cannot be computed twice without the trunk
            return self._whole(model, "run at each step: it ends inside of a checkpointed block")
        began = time.perf_counter()
        model.to(where := device())
        rest = split(model, start, head, self.train.shape)
        if rest is None or len(rest.needed) != 1:
            return self._whole(model, "run at each step: the network cannot be split there")
        shape = rest.shapes[rest.needed[0]]
        if sum(Features.size(images, shape) for images in (self.train, self.val)) > self.memory:
            return self._whole(model, "run at each step: its outputs need more memory than is left")
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.training.precision)

        def features(images: Images, batch: int, order: torch.memory_format) -> Features:
            def trunk(inputs: Tensor) -> Tensor:
                with torch.autocast(where.type, dtype, enabled=dtype is not None):
                    return rest.trunk(inputs.contiguous(memory_format=order))[0]

            return Features.of(images, trunk, batch, where)

        # As training and validation would feed the whole model, so that the bits are the same: the
        # order of values counts, and whether an image comes by itself, as in training none does.
        count, least = len(self.train), self.training.batch
        batch = next(n for n in itertools.count(least) if count % n != 1 or n > count)
        try:
            train = features(self.train, batch, memory_format_of(model, self.train.shape))
            val = features(self.val, BATCH, torch.contiguous_format)
        except torch.OutOfMemoryError:
            return self._whole(model, "run at each step: out of memory for its outputs")
        self.seconds += time.perf_counter() - began
        self.trunk = "run once, outputs kept"
        return rest, train, val

    def _whole(self, model: nn.Module, why: str) -> tuple[nn.Module, Examples, Examples]:
        self.trunk = why
        log.info("trunk: %s", why)
        return model, self.train, self.val

    def _fit(
        self, model: nn.Module, phase: Phase, trained: nn.Module, train: Examples, val: Examples
    ) -> tuple[Outcome | None, bool]:
        """The phase's outcome, in which the model then is, and whether it was interrupted."""
        best: list[Outcome] = []

        def keep(score: float, record: dict[str, Any]) -> None:
            best[:] = [Outcome(score, snapshot(model), record)]

        if phase.start is not None:
            restore(model, phase.start)
        history = fit(
            trained,
            phase,
            train,
            val,
            self.training,
            self.objective,
            done=len(self.epochs),
            on_best=keep,
            on_epoch=self.callback.epoch,
            on_step=self.callback.step,
        )
        self.epochs += history.epochs
        self.seconds += history.seconds
        self.stopped = history.stopped or self.stopped
        if not best:
            return None, True
        restore(model, best[0].state)
        return best[0], history.stopped == "interrupted"

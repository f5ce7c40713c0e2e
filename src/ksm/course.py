"""A method's phases, one after another: what turns a fresh task model into a learned one."""

from __future__ import annotations

from typing import Any

from torch import nn

from ksm.data.load import Images
from ksm.errors import KsmError
from ksm.methods import Outcome, Phase
from ksm.task import origin, restore, snapshot
from ksm.training import Training, fit
from ksm.watch import Watcher


class Run:
    """Training of one task, and what it took.

    Args:
        train, val: images.
        training, watcher: see `ksm.learn`.
    """

    def __init__(self, train: Images, val: Images, training: Training, watcher: Watcher) -> None:
        self.train = train
        self.val = val
        self.training = training
        self.watcher = watcher
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
            phase = next(course)
            while True:
                outcome, interrupted = self._fit(model, phase)
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

    def _fit(self, model: nn.Module, phase: Phase) -> tuple[Outcome | None, bool]:
        """The phase's outcome, in which the model then is, and whether it was interrupted."""
        best: list[Outcome] = []

        def keep(record: dict[str, Any]) -> None:
            best[:] = [Outcome(record["val_accuracy"], snapshot(model), record)]

        if phase.start is not None:
            restore(model, phase.start)
        history = fit(
            model,
            phase,
            self.train,
            self.val,
            self.training,
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

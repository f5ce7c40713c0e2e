"""One training loop, on any device that accelerate knows. It knows nothing of masks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ksm.data.features import Examples
from ksm.errors import KsmError
from ksm.methods import Phase
from ksm.train.checkpointing import checkpointed
from ksm.train.cuda_graph import Recorded
from ksm.train.evaluate import evaluate
from ksm.train.memory_format import memory_format_of, ordered
from ksm.train.objective import Objective
from ksm.train.precise_bn import precise_bn
from ksm.train.schedule import share
from ksm.train.settings import Training
from ksm.train.state import State


@dataclass
class Progress:
    """Where a run is; handed to a display after each step.

    Args:
        phase: name of the method's phase.
        epoch, step: counted from 0 within the phase and the epoch.
        images_per_second: over the epoch so far.
        seconds_left: of the training steps, by the pace so far.
        loss: mean of the epoch so far.
        best: score of the best epoch so far; None before the first.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    seconds_left: float
    loss: float
    best: float | None


@dataclass(frozen=True)
class History:
    """What a run did: a record for each epoch, and whether it was cut short."""

    epochs: list[dict[str, Any]]
    stopped: str | None
    seconds: float


def fit(
    model: nn.Module,
    phase: Phase,
    train: Examples,
    val: Examples,
    settings: Training,
    objective: Objective,
    *,
    done: int = 0,
    saved: dict[str, Any] | None = None,
    on_best: Callable[[float, dict[str, Any]], None],
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_state: Callable[[State], None] = lambda state: None,
) -> History:
    """Train for one phase and keep the epoch that is best on `val`; the last if the phase asks.

    Better is a higher score of the objective, or the same with a lower loss. Ctrl-C ends the run
    at once, what was best stays; the settings' patience ends it after an epoch.

    Args:
        phase: how long, and the parameter groups with their learning rates.
        objective: the loss, and the figures of the validation split.
        done: epochs of earlier phases; the records count on from there.
        saved: from `State.state_dict`, of the same phase: the run goes on from there.
        on_best: called with the score and the epoch's record when the model is the best so far, in evaluation
            mode.
        on_epoch: called with each epoch's record.
        on_state: called after each epoch, when the state can be saved.

    Raises:
        KsmError: fewer than two training images, a loss that is not finite, an output that is no
            tensor, a precision that the device lacks, several processes, no memory left, or no
            CUDA graph.
    """
    if len(train) < 2:
        raise KsmError(f"{len(train)} training images: expected at least 2")
    accelerator = _accelerator(settings, len({g.get("optimizer", "adam") for g in phase.groups}))
    drop_last = len(train) % settings.batch == 1  # BatchNorm cannot train on one image
    steps = len(train) // settings.batch + (0 if drop_last else len(train) % settings.batch > 0)
    state = State.begin(phase, settings, phase.epochs * steps, accelerator.device)
    loader: Any = DataLoader(
        train,
        settings.batch,
        shuffle=True,
        generator=state.generator,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        drop_last=drop_last,
    )
    prepared, loader, *optimizers = accelerator.prepare(model, loader, *state.optimizers)
    if saved is not None:
        state.load_state_dict(prepared, saved)
    objective = objective.to(accelerator.device)
    run = _Run(prepared, phase, settings, objective, state, accelerator, loader, optimizers, steps)
    stopped: str | None = None
    before, began = state.seconds, time.perf_counter()
    try:
        memory_format = memory_format_of(prepared, train.shape)
        while state.epoch < phase.epochs:
            loss, pace = run.train(train, memory_format, on_step)
            prepared.eval()
            precise_bn(prepared, train, settings.batch, settings.precise_bn, state.generator)
            figures = evaluate(prepared, val, objective)
            state.seconds = before + time.perf_counter() - began
            record = run.recorded(loss, pace, figures, done)
            key = (objective.score(figures), -figures["loss"])
            last = state.epoch + 1 == phase.epochs
            if (not phase.last or last) and (state.best is None or key > state.best):
                on_best(key[0], record)
                state.best, state.best_epoch = key, state.epoch
            state.records.append(record)
            state.epoch += 1
            on_epoch(record)
            on_state(state)
            since = (
                state.epoch - 1 - (state.epoch if state.best_epoch is None else state.best_epoch)
            )
            if settings.patience and since >= settings.patience:
                stopped = f"no better validation {objective.metric} for {settings.patience} epochs"
                break
    except KeyboardInterrupt:
        stopped = "interrupted"
    except torch.OutOfMemoryError as error:
        raise KsmError(
            f"out of memory on {accelerator.device}: lower the batch or the size of the images, "
            "or train with checkpointing"
        ) from error
    accelerator.free_memory()
    return History(state.records, stopped, before + time.perf_counter() - began)


def _accelerator(settings: Training, optimizers: int) -> Accelerator:
    known = AcceleratorState._shared_state.get("_mixed_precision", settings.precision)
    if known != settings.precision:
        AcceleratorState._reset_state()  # accelerate keeps a process to its first precision
    accelerator = Accelerator(mixed_precision=settings.precision)
    if settings.graph and accelerator.device.type != "cuda":
        raise KsmError(f"graph needs a CUDA GPU, and this trains on {accelerator.device.type}")
    if accelerator.num_processes > 1:
        raise KsmError("training in several processes is not supported: start one process")
    if settings.precision == "fp16" and optimizers > 1:  # they would share one gradient scale
        raise KsmError("precision fp16 goes with one kind of optimizer, not two: take no or bf16")
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise KsmError("precision fp16 needs an accelerator; on the CPU take no or bf16")
    return accelerator


@dataclass
class _Run:
    """One phase under training: the model, and what an epoch needs beside the state."""

    model: nn.Module
    phase: Phase
    settings: Training
    objective: Objective
    state: State
    accelerator: Accelerator
    loader: Any
    optimizers: list[Any]
    steps: int

    def train(
        self,
        images: Examples,
        memory_format: torch.memory_format,
        on_step: Callable[[Progress], None],
    ) -> tuple[float, float]:
        """Go through the images once: mean loss, and images a second."""
        self.model.train()
        twice = checkpointed(self.model) if self.settings.checkpointing else nullcontext()
        with ordered(self.model, memory_format), self.phase.during(), twice:
            return self._steps(images, memory_format, on_step)

    def _steps(
        self,
        images: Examples,
        memory_format: torch.memory_format,
        on_step: Callable[[Progress], None],
    ) -> tuple[float, float]:
        passes: Callable[..., Tensor] = self._passes
        if self.settings.graph and self.phase.repeats:
            passes = Recorded(self._passes, self.model.parameters())
        epoch, epochs, steps = self.state.epoch, self.phase.epochs, self.steps
        total = torch.zeros((), device=self.accelerator.device)
        seen, began, shown = 0, time.perf_counter(), 0.0
        for step, (pixels, target) in enumerate(self.loader):
            at = epoch * steps + step
            if self.phase.before_step:
                self.phase.before_step(share(at, epochs * steps))
            loss = passes(images.inputs(pixels).contiguous(memory_format=memory_format), target)
            for optimizer, schedule in zip(self.optimizers, self.state.schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            total += loss * len(target)
            seen += len(target)
            now = time.perf_counter()
            if now - shown < 0.25 and step + 1 < steps:
                continue  # reading the loss would wait for the device
            shown = now
            mean = total.item() / seen
            if not math.isfinite(mean):
                raise KsmError(
                    f"the loss is {mean} in epoch {epoch + 1}, step {step + 1}: lower the "
                    "learning rates"
                )
            spent = self.state.seconds + now - began
            left = spent / (at + 1) * (epochs * steps - at - 1)
            best = self.state.best[0] if self.state.best else None
            pace = seen / (now - began)
            on_step(Progress(self.phase.name, epoch, epochs, step, steps, pace, left, mean, best))
        return total.item() / seen, seen / (time.perf_counter() - began)

    def _passes(self, inputs: Tensor, target: Tensor) -> Tensor:
        """The forward and the backward pass of a batch; returns its loss."""
        outputs = self.model(inputs)
        if not isinstance(outputs, Tensor):
            raise KsmError(
                f"{type(self.model).__name__} gives a {type(outputs).__name__} in training: "
                "expected a tensor; turn its auxiliary outputs off"
            )
        loss = self.objective.loss(outputs.float(), target)
        penalty = self.phase.penalty
        self.accelerator.backward(loss + penalty() if penalty else loss)
        return loss.detach()

    def recorded(
        self, loss: float, pace: float, figures: dict[str, Any], done: int
    ) -> dict[str, Any]:
        """The record of the epoch that just ended, for people and for JSON."""
        epoch = self.state.epoch
        if not math.isfinite(figures["loss"]):
            raise KsmError(
                f"the validation loss is {figures['loss']} in epoch {epoch + 1}: lower the "
                "learning rates"
            )
        metric = self.objective.metric
        return {
            "phase": self.phase.name,
            "epoch": done + epoch + 1,
            "loss": loss,
            f"val_{metric}": figures[metric],
            "val_loss": figures["loss"],
            "images_per_second": pace,
            "seconds": self.state.seconds,
        }

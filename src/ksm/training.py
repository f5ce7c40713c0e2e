"""One training loop, on any device that accelerate knows. It knows nothing of masks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from ksm.clone import Held
from ksm.compiled import compiled
from ksm.data.features import Examples
from ksm.data.load import AUGMENTS, Augment
from ksm.errors import KsmError
from ksm.evaluation import evaluate
from ksm.memory import MEMORIES, Memory, within
from ksm.order import layout_of, ordered
from ksm.recorded import Recorded

if TYPE_CHECKING:
    from ksm.methods import Method, Phase

FUSED = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
"""Devices on which torch takes an optimizer's step in one kernel."""


@dataclass(frozen=True)
class Training:
    """Settings of a training run.

    Args:
        epochs: passes over the training images; None: as many as 400 steps take, 10 ... 60.
        batch: images a step.
        warmup: share of all steps in which the learning rates rise from 0; then they follow a
            half cosine down to 0, a step at a time.
        drops: shares of the run, rising; where there are any, the learning rates fall to a tenth
            at each, instead of the cosine.
        label_smoothing: in [0, 1).
        balance: weigh each class by the inverse of its share of the training images.
        settle: batches from which BatchNorm statistics are estimated afresh before each
            validation; 0: the running averages are used as they are.
        memory: most, less or least, which takes more time; see `ksm.memory`.
        compile: let torch compile the steps, see `ksm.compiled`; images that are left over when an
            epoch is cut into batches are then left out, since their step would be another graph.
        graph: record a step as a CUDA graph and replay it, see `ksm.recorded`; phases of a method
            whose steps are not all alike are trained as usual. Not for networks that draw or
            count in Python while they train.
        patience: stop after so many epochs without a better validation accuracy; None: never.
        augment, min_area: see `ksm.data.load.Images`.
        precision: "no", "bf16" or "fp16", as in accelerate.
        workers: processes that load images; 0: the training process itself.
        seed: of the head's start, the order of the images, and the augmentation.
    """

    epochs: int | None = None
    batch: int = 32
    warmup: float = 0.1
    drops: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    balance: bool = False
    settle: int = 16
    memory: Memory = "most"
    compile: bool = False
    graph: bool = False
    patience: int | None = None
    augment: Augment = "flip"
    min_area: float = 0.8
    precision: str = "no"
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for value, least, what in [
            (self.epochs, 1, "epochs"),
            (self.batch, 2, "batch"),
            (self.patience, 1, "patience"),
            (self.settle, 0, "settle"),
            (self.workers, 0, "workers"),
        ]:
            if value is not None and value < least:
                raise KsmError(f"{what} is {value}: expected at least {least}")
        for value, what in [
            (self.warmup, "warmup"),
            (self.label_smoothing, "label smoothing"),
        ]:
            if not 0 <= value < 1:
                raise KsmError(f"{what} is {value}: expected at least 0 and less than 1")
        if list(self.drops) != sorted(self.drops) or not all(0 < at < 1 for at in self.drops):
            raise KsmError(f"drops are {self.drops}: expected rising values between 0 and 1")
        if not 0 <= self.seed < 2**63:
            raise KsmError(f"seed is {self.seed}: expected a whole number from 0 to 2^63 - 1")
        if not 0 < self.min_area <= 1:
            raise KsmError(f"min_area is {self.min_area}: expected a value from 0 to 1")
        if self.augment not in AUGMENTS:
            raise KsmError(f"augment {self.augment!r}: expected one of {', '.join(AUGMENTS)}")
        if self.precision not in ("no", "bf16", "fp16"):
            raise KsmError(f"precision {self.precision!r}: expected no, bf16 or fp16")
        if self.memory not in MEMORIES:
            raise KsmError(f"memory {self.memory!r}: expected one of {', '.join(MEMORIES)}")
        for asked, what in [(self.compile, "compile"), (self.graph, "graph")]:
            if self.memory != "most" and asked:
                raise KsmError(f"memory {self.memory!r} and {what} do not go together: choose one")
        if self.compile and self.graph:
            raise KsmError("compile and graph do not go together: choose one")
        if self.balance and self.label_smoothing and self.graph:  # torch counts in Python for both
            raise KsmError("balance with label smoothing does not go with graph: leave one out")

    @classmethod
    def released(cls, method: Method | type[Method], **settings: Any) -> Training:
        """The schedule with which a method was published; `settings` replaces some."""
        return cls(**{**method.published_training, **settings})

    def epochs_for(self, images: int) -> int:
        """How many epochs a data set of so many training images gets."""
        if self.epochs is not None:
            return self.epochs
        return min(60, max(10, math.ceil(400 * self.batch / images)))


@dataclass
class Progress:
    """Where a run is; handed to a display after each step.

    Args:
        phase: name of the method's phase.
        epoch, step: counted from 0 within the phase and the epoch.
        images_per_second: over the epoch so far.
        seconds_left: of the training steps, by the pace so far.
        loss: mean of the epoch so far.
        val_accuracy: of the last validation; None before the first.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    seconds_left: float
    loss: float
    val_accuracy: float | None


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
    *,
    head: nn.Module | None = None,
    done: int = 0,
    on_best: Callable[[dict[str, Any]], None],
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> History:
    """Train for one phase and keep the epoch that is best on `val`; the last if the phase asks.

    Better is a higher validation accuracy, or the same with a lower loss. Ctrl-C ends the run
    at once, what was best stays; the settings' patience ends it after an epoch.

    Args:
        phase: how long, and the parameter groups with their learning rates.
        head: of the model, for `settings.compile`; see `ksm.compiled`.
        done: epochs of earlier phases; the records count on from there.
        on_best: called with the epoch's record when the model is the best so far, in evaluation
            mode.
        on_epoch: called with each epoch's record.

    Raises:
        KsmError: fewer than two training images, a loss that is not finite, an output that is no
            tensor, a precision that the device lacks, several processes, no memory left, no
            compiler, or no CUDA graph.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if len(train) < 2:
        raise KsmError(f"{len(train)} training images: expected at least 2")
    known = AcceleratorState._shared_state.get("_mixed_precision", settings.precision)
    if known != settings.precision:
        AcceleratorState._reset_state()  # accelerate keeps a process to its first precision
    accelerator = Accelerator(mixed_precision=settings.precision)
    if settings.graph and accelerator.device.type != "cuda":
        raise KsmError(f"graph needs a CUDA GPU, and this trains on {accelerator.device.type}")
    if accelerator.num_processes > 1:
        raise KsmError("training in several processes is not supported: start one process")
    made = _optimizers(phase.groups, accelerator.device)
    if settings.precision == "fp16" and len(made) > 1:  # they would share one gradient scale
        raise KsmError("precision fp16 goes with one kind of optimizer, not two: take no or bf16")
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise KsmError("precision fp16 needs an accelerator; on the CPU take no or bf16")
    generator = torch.Generator().manual_seed(settings.seed)
    loader: Any = DataLoader(
        train,
        settings.batch,
        shuffle=True,
        generator=generator,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        drop_last=len(train) % settings.batch == 1  # BatchNorm cannot train on one image
        or (settings.compile and len(train) > settings.batch),
    )
    prepared, loader, *optimizers = accelerator.prepare(model, loader, *made)
    weight = _class_weights(train, accelerator.device) if settings.balance else None
    epochs, steps = phase.epochs, len(loader)
    warmup = round(settings.warmup * epochs * steps)
    factor = (
        tenths(epochs * steps, warmup, settings.drops if phase.drops else ())
        if settings.drops
        else cosine(epochs * steps, warmup)
    )
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in optimizers]

    records: list[dict[str, Any]] = []
    best: tuple[float, float] | None = None
    best_epoch: int | None = None
    stopped: str | None = None
    began = time.perf_counter()

    def train_once(
        run: Callable[[Tensor], object], epoch: int, layout: torch.memory_format
    ) -> tuple[float, float]:
        """Go through the images once: mean loss, and images a second."""

        def passes(inputs: Tensor, label: Tensor) -> Tensor:
            outputs = run(inputs)
            if not isinstance(outputs, Tensor):
                raise KsmError(
                    f"{type(model).__name__} gives a {type(outputs).__name__} in training: "
                    "expected a tensor; turn its auxiliary outputs off"
                )
            loss = functional.cross_entropy(
                outputs.float(), label, weight, label_smoothing=settings.label_smoothing
            )
            accelerator.backward(loss + phase.penalty() if phase.penalty else loss)
            return loss.detach()

        there_and_back: Callable[..., Tensor] = passes
        if settings.graph and phase.repeats:
            there_and_back = Recorded(passes, model.parameters())
        total = torch.zeros((), device=accelerator.device)
        seen, epoch_began, shown = 0, time.perf_counter(), 0.0
        for step, (pixels, label) in enumerate(loader):
            at = epoch * steps + step
            if phase.before_step:
                phase.before_step(share(at, epochs * steps))
            inputs = train.inputs(pixels).contiguous(memory_format=layout)
            loss = there_and_back(inputs, label)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            total += loss * len(label)
            seen += len(label)
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
            left = (now - began) / (at + 1) * (epochs * steps - at - 1)
            accuracy = best[0] if best else None
            pace = seen / (now - epoch_began)
            on_step(Progress(phase.name, epoch, epochs, step, steps, pace, left, mean, accuracy))
        return total.item() / seen, seen / (time.perf_counter() - epoch_began)

    try:
        layout = layout_of(prepared, train.shape)
        for epoch in range(epochs):
            prepared.train()
            way = (
                compiled(prepared, head) if settings.compile else within(prepared, settings.memory)
            )
            with ordered(prepared, layout, frozen=settings.memory == "most"), way as run:
                loss, pace = train_once(run, epoch, layout)
            prepared.eval()
            settle(prepared, train, settings.batch, settings.settle, generator)
            found = evaluate(prepared, val)
            if not math.isfinite(found["loss"]):
                raise KsmError(
                    f"the validation loss is {found['loss']} in epoch {epoch + 1}: lower the "
                    "learning rates"
                )
            record = {
                "phase": phase.name,
                "epoch": done + epoch + 1,
                "loss": loss,
                "val_accuracy": found["accuracy"],
                "val_loss": found["loss"],
                "images_per_second": pace,
                "seconds": time.perf_counter() - began,
            }
            key = (found["accuracy"], -found["loss"])
            records.append(record)
            if (not phase.last or epoch + 1 == epochs) and (best is None or key > best):
                on_best(record)
                best, best_epoch = key, epoch
            on_epoch(record)
            if (
                settings.patience
                and best_epoch is not None
                and epoch - best_epoch >= settings.patience
            ):
                stopped = f"no better validation accuracy for {settings.patience} epochs"
                break
    except KeyboardInterrupt:
        stopped = "interrupted"
    except torch.OutOfMemoryError as error:
        raise KsmError(
            f"out of memory on {accelerator.device}: lower the batch or the size of the images"
        ) from error
    accelerator.free_memory()
    return History(records, stopped, time.perf_counter() - began)


@torch.no_grad()
def settle(
    model: nn.Module, images: Examples, batch: int, batches: int, generator: torch.Generator
) -> None:
    """Re-estimate BatchNorm statistics as plain averages over some batches of training images.

    While a model changes, its running averages lag behind it; masks that switch whole kernels make
    that lag large. Wu and Johnson (arXiv 2105.07576) call the remedy precise BatchNorm. The model
    is in evaluation mode before and after; norms whose statistics are frozen are left alone.

    Args:
        batch, batches: images a batch, and how many batches at most.
        generator: draws the images.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not isinstance(module, Held)
    ]
    if not norms or not batches:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain average
    batch = min(batch, len(images))
    loader: Any = DataLoader(images, batch, shuffle=True, generator=generator, drop_last=True)
    device = next(model.parameters()).device
    with parametrize.cached():
        for pixels, _ in itertools.islice(loader, batches):
            model(images.inputs(pixels.to(device)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def share(step: int, steps: int) -> float:
    """How far a run is at a step: 0 at the first, 1 at the last; 1 if there is but one."""
    return step / (steps - 1) if steps > 1 else 1.0


def tenths(steps: int, warmup: int, drops: tuple[float, ...]) -> Callable[[int], float]:
    """Factor of the learning rate at a step: a line from 0 to 1 in `warmup`, then 1, and a tenth
    of what it was at each of the shares `drops` of all steps."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.1 ** sum(step >= round(at * steps) for at in drops)

    return factor


def cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: a line from 0 to 1 in `warmup`, then a half cosine."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


def _optimizers(groups: list[dict[str, Any]], device: torch.device) -> list[torch.optim.Optimizer]:
    """One optimizer a kind that the groups ask for; Adam where they do not say."""
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    wanted: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        options = {key: value for key, value in group.items() if key != "optimizer"}
        wanted.setdefault(group.get("optimizer", "adam"), []).append(options)
    fused = device.type in FUSED
    return [kinds[kind](options, fused=fused) for kind, options in wanted.items()]


def _class_weights(images: Examples, device: torch.device) -> Tensor:
    labels = torch.tensor([label for _, label in images.samples])
    count = torch.bincount(labels).float()
    return (len(labels) / (len(count) * count)).to(device)

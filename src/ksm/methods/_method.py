"""What a method is: how it makes a frozen clone trainable, trains it, and stores the task."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ksm.core.clone import find, hold
from ksm.core.stride import coarse_from, stride_of
from ksm.errors import KsmError

Tensors = Mapping[str, Tensor]
"""What a task file holds of a task, by name."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training, with an optimizer and a schedule of its own.

    Args:
        name: for the display and the log.
        epochs: how many.
        groups: parameter groups, as from `Method.groups`.
        keeps: whether an epoch of this phase can be the task. An interrupted run ends with the
            best of such an epoch.
        last: the outcome is that of the last epoch, not of the best one.
        penalty: added to the loss at each step, a scalar tensor; None for none.
        decays: whether the rates fall where `ksm.Training.milestones` says so, or stay.
        start: state that the model is put in first; None: as it stands.
        before_step: called before each step with the share of the phase that is done, from 0 at the
            first to 1 at the last.
        repeats: whether all steps are the same work, but for numbers that stay where they are.
        during: entered while steps are trained, left before each validation.
    """

    name: str
    epochs: int
    groups: list[dict[str, Any]]
    keeps: bool = True
    last: bool = False
    decays: bool = True
    start: dict[str, Tensor] | None = None
    before_step: Callable[[float], None] | None = None
    penalty: Callable[[], Tensor] | None = None
    repeats: bool = True
    during: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Outcome:
    """What a phase ended with.

    Args:
        score: on the validation split; larger is better. Of a classification its accuracy, in
            [0, 1].
        state: of the model then; see `ksm.task.snapshot`.
        record: of the epoch, for people and for JSON.
    """

    score: float
    state: dict[str, Tensor]
    record: dict[str, Any]


Course = Generator[Phase, Outcome, Outcome]


class Grow(KsmError):
    """Raised in `attach` and `phases`: the task shall start again in a network of another size.

    Args:
        size: in sizes of the backbone.
    """

    def __init__(self, size: float) -> None:
        super().__init__(f"grow to {size:g} times the backbone's size")
        self.size = size


@dataclass(frozen=True)
class Method:
    """Base of all methods; a method's fields are its settings, stored in the task file.

    `published` and `published_training` are the settings under which the method was published,
    of the method itself and of `ksm.Training`; None where there is no such publication.

    Args:
        lr: learning rate of normalisation and head.
        mask_from: qualified name of the module where the task starts. Modules registered before
            it are the trunk, which no task changes. `strideN`: where maps have 1/N of the image's
            side, see `ksm.core.stride`; a task then has that module's name. None, and `stride1`: the
            task starts at the input.
    """

    name: ClassVar[str]
    published: ClassVar[Mapping[str, Any] | None] = None
    published_training: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings that had another name in earlier versions, which files still have: old to new."""
    builds_on_tasks: ClassVar[bool] = False
    """Whether a task uses what the tasks before it learned, and so needs their files."""

    lr: float = 3e-3
    mask_from: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, list):  # as JSON gives a tuple
                object.__setattr__(self, name, tuple(value))
            elif isinstance(field.default, float) and type(value) is int:
                object.__setattr__(self, name, float(value))
            elif name.endswith("lr") and not 0 < value < math.inf:
                raise KsmError(f"{name} {value}: expected a number greater than 0")
        start: Any = self.mask_from
        if not isinstance(start, str | None):
            raise KsmError(f"mask_from {start!r}: expected a module's name or strideN")
        stride_of(self.mask_from)

    @classmethod
    def released(cls, **settings: Any) -> Self:
        """The published settings; `settings` replaces some.

        Raises:
            KsmError: the method was not published under settings of its own.
        """
        if cls.published is None:
            raise KsmError(f"method {cls.name} has no released recipe")
        return cls(**{**cls.published, **settings})

    def placed(self, model: nn.Module, head: str, size: int) -> Self:
        """With the module of this model in place of a stride as `mask_from`; see
        `ksm.core.stride.coarse_from`. Where the user says which layers, by `target_modules`, none."""
        stride = stride_of(self.mask_from)
        if stride is None:
            return self
        chosen = getattr(self, "target_modules", None) is not None
        start = None if chosen else coarse_from(model, head, stride, size)
        return dataclasses.replace(self, mask_from=start)

    def attach(self, model: nn.Module, head: str, earlier: Sequence[Tensors] = ()) -> Iterable[str]:
        """Make `model`, a frozen clone with a new head at `head`, trainable.

        Args:
            earlier: tensors of the tasks that this one builds on, the oldest first.

        Returns:
            Names of the modules whose tensors the task now owns, the head aside.
        """
        raise NotImplementedError

    def groups(self, model: nn.Module, head: str) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, each with its learning rate.

        A group with the key `optimizer` asks for that one ("adam" or "sgd"); other keys are the
        optimizer's own options.
        """
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": self.lr}]

    def trained(self, model: nn.Module) -> int:
        """How many numbers are trained; before training."""
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def phases(self, model: nn.Module, head: str, epochs: int) -> Course:
        """How a task is trained in `epochs` epochs: one phase after another.

        After each phase the model stands at the phase's best epoch, and the generator is sent that
        outcome; the one that it returns is the task. An interrupt in a phase that does not keep
        is raised inside the generator.
        """
        return (yield Phase("train", epochs, self.groups(model, head)))

    def pack(self, model: nn.Module) -> dict[str, Tensor]:
        """What must be stored beside the owned tensors, by name."""
        return {}

    def folded(
        self, network: nn.Module, head: str, tensors: Tensors, earlier: Sequence[Tensors] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the plain weights that `pack` stands for: qualified name and tensor of each.

        Args:
            network: the backbone, or a wider network of its kind; only read.
            head: qualified name of the head, whose tensors are not among them.
            tensors: of the task, from `pack`.
            earlier: of the tasks that this one builds on, the oldest first.
        """
        return iter(())

    def part_of(self, name: str) -> str:
        """Return the part of a task file that holds the tensor `name` from `pack`: by default what
        stands before the first slash, such as `mask` of `mask/units`."""
        return name.partition("/")[0]

    def summary(self, model: nn.Module) -> dict[str, Any]:
        """Figures on what was learned, ready for JSON; empty where there is nothing to tell."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The fields and the name, ready for JSON."""
        return {"name": self.name, **dataclasses.asdict(self)}


def trunk(model: nn.Module, mask_from: str | None) -> frozenset[str]:
    """Names of the modules registered before `mask_from`, which no task changes.

    Raises:
        KsmError: there is no module of that name.
    """
    if mask_from is None:
        return frozenset()
    find(model, mask_from, "start of the mask (mask_from; stride1: all layers)")
    return frozenset(
        itertools.takewhile(lambda name: name != mask_from, (n for n, _ in model.named_modules()))
    )


def hold_trunk(model: nn.Module, mask_from: str | None) -> frozenset[str]:
    """Hold the modules registered before `mask_from` in evaluation mode, and name them.

    Raises:
        KsmError: there is no module of that name.
    """
    before = trunk(model, mask_from)
    for name in before:
        if name and not (mask_from or "").startswith(f"{name}."):
            hold(model.get_submodule(name))
    return before


def others(model: nn.Module, known: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are trained and are not among those known."""
    ids = {id(parameter) for parameter in known}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in ids]


def matches(name: str, targets: str | tuple[str, ...] | None) -> bool:
    """Whether a module name is among the targets: all (None), a regex on the whole name (str), or
    suffixes of dotted names (tuple), as in PEFT's `target_modules`.

    Raises:
        KsmError: the regex is not valid.
    """
    if targets is None:
        return True
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise KsmError(f"target_modules {targets!r} is not a valid regex: {error}") from None
    return any(name == target or name.endswith(f".{target}") for target in targets)

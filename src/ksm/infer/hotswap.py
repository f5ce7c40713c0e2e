"""Writing a packed task over another one, in the module into which that was folded."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ksm.bank.taskfile import Packed
from ksm.core.backbone import new_head
from ksm.core.clone import replace
from ksm.core.units import Units
from ksm.core.unpacking import Unpacking
from ksm.methods._masked import Masked
from ksm.methods._method import Tensors
from ksm.task import Task

_STORED = {"F16": torch.float16, "F32": torch.float32}


@dataclass
class Place:
    """A folded module of a masked task, laid out so that another task is written over it fast.

    Args:
        key: what another task must have in common with the one folded here.
        model: the module.
        frozen, folded: the weights of the masked layers, in order: the backbone's, and `M * W`.
        layers: those layers.
        norms: how the file's part `norm` holds the normalisations.
        numbers: theirs, into which the module's tensors are views; in its dtype.
        writing: of masks, for each method that was met and the shape of its values.
    """

    key: tuple[Any, ...]
    backbone: nn.Module
    model: nn.Module
    frozen: list[Tensor]
    folded: list[Tensor]
    layers: list[nn.Module]
    norms: _Norms
    numbers: Tensor
    writing: dict[tuple[Masked, torch.Size], Writing]

    @classmethod
    def of(cls, backbone: nn.Module, model: nn.Module, task: Task, packed: Packed) -> Place | None:
        """The place of a task that was just folded into `model`; None where only a new fold will
        do: the method has no masks, the network was widened, or it has normalisations of more
        dimensions or of several precisions."""
        method = task.method
        if not isinstance(method, Masked) or task.grown != 1 or not _plain(packed):
            return None
        head = task.backbone.head
        whole = _part(packed)
        norms = _Norms.of(whole)
        if norms is None or (precision := norms.precision(model)) is None:
            return None
        numbers = norms.numbers(whole).to(next(model.parameters()).device, precision)
        norms.bind(model, numbers)
        layers = method.layers(model, head)
        place = cls(
            key=(head, method.mask_from, method.target_modules),
            backbone=backbone,
            model=model,
            frozen=[_weight(backbone.get_submodule(name)) for name in layers],
            folded=[_weight(layer) for layer in layers.values()],
            layers=list(layers.values()),
            norms=norms,
            numbers=numbers,
            writing={},
        )
        place._writing(method, task.tensors)  # so that no switch has to prepare it
        return place

    @torch.no_grad()
    def write(self, packed: Packed) -> bool:
        """Make the module that of another task, if that fits here; tell whether it did.

        Nothing is checked that the file's digest vouches for. Where a file does not fit in spite of
        that, an error of any kind leaves the module half written: it must not be used then.
        """
        use = packed.use
        method = use.method
        if not isinstance(method, Masked) or use.grown != 1 or not _plain(packed):
            return False
        whole = _part(packed)
        key = (use.head, method.mask_from, method.target_modules)
        if not self.norms.fit(whole) or self.key != key:
            return False
        tensors = load(packed.unpack("mask"))
        writing, values = self._writing(method, tensors)
        writing.write(tensors["mask/units"], values)
        self.numbers.copy_(self.norms.numbers(whole))
        self._write_head(use.head, use.classes, load(packed.unpack("head")))
        return True

    def _writing(self, method: Masked, tensors: Tensors) -> tuple[Writing, Tensor]:
        values = method.factor_values(tensors)
        key = method, values.shape
        if key not in self.writing:
            cuts = [method.cut(one) for one in self.layers]
            alike = (one for one in self.writing.values() if one.fits(cuts, values))
            new = next(alike, None) or Writing(cuts, self.frozen, self.folded, values)
            self.writing[key] = new
        return self.writing[key], values

    def _write_head(self, name: str, classes: int, tensors: dict[str, Tensor]) -> None:
        head = self.model.get_submodule(name)
        if next(head.parameters()).shape[0] != classes:
            with torch.random.fork_rng(devices=[]):  # its start values are not used
                head = new_head(self.backbone, name, classes).requires_grad_(False).eval()
            replace(self.model, name, head)
        for key, parameter in head.named_parameters():
            found = tensors[f"own/{name}.{key}"]
            if found.shape != parameter.shape:
                raise ValueError(f"{name}.{key} has shape {tuple(found.shape)}")
            parameter.copy_(found)


class Writing:
    """Writes `M * W` into these layers, again and again over the same memory.

    Args:
        cuts: of the layers, in order.
        frozen, folded: their weights: the backbone's, and where the product goes.
        values: of the digits, as from `Masked.factor_values`, for their shape.
    """

    def __init__(
        self,
        cuts: Sequence[Units],
        frozen: Sequence[Tensor],
        folded: Sequence[Tensor],
        values: Tensor,
    ) -> None:
        self.cuts, self.shape = list(cuts), values.shape
        self.unpacking = Unpacking(cuts, values)
        self.layers = list(zip(frozen, folded, strict=True))

    def fits(self, cuts: Sequence[Units], values: Tensor) -> bool:
        """Whether masks that are cut like this, with so many values, can be written too."""
        return self.cuts == list(cuts) and self.shape == values.shape

    def write(self, packed: Tensor, values: Tensor) -> None:
        """Write a mask.

        Args:
            packed: uint8, on the CPU.
            values: of the shape that was promised.

        Raises:
            KsmError: these are not the bytes of such layers.
        """
        masks = self.unpacking.masks(packed, values)
        for (frozen, folded), mask in zip(self.layers, masks, strict=True):
            torch.mul(frozen, mask.to(frozen), out=folded)


@dataclass(frozen=True)
class _Norms:
    """How the part `norm` holds its tensors: `header` as in safetensors, then their numbers.

    Those of the larger dtypes come first: BatchNorm's counts of batches, which a trained model has
    no use for; then, from byte `start` on, the floating ones.
    """

    header: bytes
    stored: torch.dtype
    start: int

    @classmethod
    def of(cls, whole: bytes) -> _Norms | None:
        """None where the floating numbers are not of one precision, float32 or float16."""
        if not whole:
            return cls(b"", torch.float32, 0)
        end = 8 + struct.unpack("<Q", whole[:8])[0]
        header: dict[str, Any] = json.loads(whole[8:end])
        floating = [one for one in header.values() if one.get("dtype") != "I64"]
        if len(dtypes := {str(one.get("dtype")) for one in floating}) != 1 or dtypes - {*_STORED}:
            return None
        first = min(one["data_offsets"][0] for one in floating)
        return cls(whole[:end], _STORED[dtypes.pop()], end + first)

    def precision(self, model: nn.Module) -> torch.dtype | None:
        """The dtype of the module's own; None where there are several."""
        state = model.state_dict()
        found = {state[name.removeprefix("own/")].dtype for name, _ in self._floating()}
        return found.pop() if len(found) == 1 else None if found else torch.float32

    def _floating(self) -> list[tuple[str, dict[str, Any]]]:
        header: dict[str, Any] = json.loads(self.header[8:] or b"{}")
        return [(name, one) for name, one in header.items() if one["dtype"] in _STORED]

    def fit(self, whole: bytes) -> bool:
        return whole[: len(self.header)] == self.header and bool(whole) == bool(self.header)

    def numbers(self, whole: bytes) -> Tensor:
        if not whole:
            return torch.empty(0)
        return torch.frombuffer(bytearray(whole[self.start :]), dtype=self.stored)

    def bind(self, model: nn.Module, numbers: Tensor) -> None:
        """Make the module's tensors views into their numbers."""
        for name, one in self._floating():
            first = self.start - len(self.header)
            begin, end = ((at - first) // self.stored.itemsize for at in one["data_offsets"])
            view = numbers[begin:end].reshape(one["shape"])
            parent, _, child = name.removeprefix("own/").rpartition(".")
            module = model.get_submodule(parent)
            if isinstance(getattr(module, child), nn.Parameter):
                view = nn.Parameter(view, requires_grad=False)
            setattr(module, child, view)


def _plain(packed: Packed) -> bool:
    """Whether a task is a mask, a head and, perhaps, normalisations, and nothing else."""
    return {"mask", "head"} <= packed.parts.keys() <= {"mask", "norm", "head", "history"}


def _part(packed: Packed) -> bytes:
    return packed.unpack("norm") if "norm" in packed.parts else b""


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.data

"""Writing a packed task over another one, in the module into which that was folded."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ksm.backbones.describe import new_head
from ksm.clone import replace
from ksm.layout import Layout
from ksm.methods import make
from ksm.methods._masked import Masked
from ksm.task import Task
from ksm.taskfile import Packed

_STORED = {"F16": torch.float16, "F32": torch.float32}


@dataclass
class Place:
    """A folded module of a masked task, laid out so that another task is written over it fast.

    Args:
        key: what another task must have in common with the one folded here.
        model: the module.
        frozen, folded: the weights of the masked layers, in order: the backbone's, and `M * W`.
        layers: those layers.
        norms: the numbers of all normalisations, one after another as in the file's part `norm`;
            the module's own are views into it.
        cuts: how a method cuts the layers, for each method that was met.
    """

    key: tuple[Any, ...]
    backbone: nn.Module
    model: nn.Module
    frozen: list[Tensor]
    folded: list[Tensor]
    layers: list[nn.Module]
    norms: Tensor
    cuts: dict[Masked, list[Layout]]

    @classmethod
    def of(cls, backbone: nn.Module, model: nn.Module, task: Task, packed: Packed) -> Place | None:
        """The place of a task that was just folded into `model`; None where only a new fold will
        do: the method has no masks, the network was widened, or its numbers are stored in another
        precision than the module's."""
        method = task.method
        if not isinstance(method, Masked) or task.grown != 1:
            return None
        head = task.backbone.head
        before, norms = _norms(packed)
        norms = norms.to(next(model.parameters()))
        _bind(model, before, norms)
        layers = method.layers(model, head)
        return cls(
            key=(before, head, method.mask_from, method.target_modules),
            backbone=backbone,
            model=model,
            frozen=[_weight(backbone.get_submodule(name)) for name in layers],
            folded=[_weight(layer) for layer in layers.values()],
            layers=list(layers.values()),
            norms=norms,
            cuts={},
        )

    @torch.no_grad()
    def write(self, packed: Packed) -> bool:
        """Make the module that of another task, if that fits here; tell whether it did."""
        meta = packed.header()
        method, head = make(**meta["method"]), meta["backbone"]["head"]
        if not isinstance(method, Masked) or meta.get("grown", 1) != 1:
            return False
        before, norms = _norms(packed)
        if self.key != (before, head, method.mask_from, method.target_modules):
            return False
        if method not in self.cuts:
            self.cuts[method] = [method.cut(layer) for layer in self.layers]
        masks = method.masks(load(packed.unpack("mask")), self.cuts[method])
        for frozen, folded, mask in zip(self.frozen, self.folded, masks, strict=True):
            torch.mul(frozen, mask.to(frozen), out=folded)
        self.norms.copy_(norms)
        self._write_head(head, len(meta["classes"]), load(packed.unpack("head")))
        return True

    def _write_head(self, name: str, classes: int, tensors: dict[str, Tensor]) -> None:
        head = self.model.get_submodule(name)
        if next(head.parameters()).shape[0] != classes:
            with torch.random.fork_rng(devices=[]):  # its start values are not used
                head = new_head(self.backbone, name, classes).requires_grad_(False).eval()
            replace(self.model, name, head)
        for key, parameter in head.named_parameters():
            parameter.copy_(tensors[f"own/{name}.{key}"])


def _norms(packed: Packed) -> tuple[bytes, Tensor]:
    """The part `norm`: what safetensors says before the numbers, and the floating ones."""
    if "norm" not in packed.parts:
        return b"", torch.empty(0)
    whole = packed.unpack("norm")
    begin = 8 + struct.unpack("<Q", whole[:8])[0]
    stored, start = _floating(json.loads(whole[8:begin]))
    return whole[:begin], torch.frombuffer(bytearray(whole[begin + start :]), dtype=stored)


def _floating(header: dict[str, Any]) -> tuple[torch.dtype, int]:
    """The dtype of the floating numbers, and where they start: safetensors puts the larger dtypes
    first, here BatchNorm's counts of batches, which a trained model has no use for."""
    floating = [one for one in header.values() if one["dtype"] in _STORED]
    return _STORED[floating[0]["dtype"]], min(one["data_offsets"][0] for one in floating)


def _bind(model: nn.Module, before: bytes, norms: Tensor) -> None:
    """Make the module's normalisations views into their numbers."""
    header: dict[str, Any] = json.loads(before[8:] or b"{}")
    for name, one in header.items():
        if one["dtype"] not in _STORED:
            continue
        stored, start = _floating(header)
        begin, end = ((at - start) // stored.itemsize for at in one["data_offsets"])
        view = norms[begin:end].reshape(one["shape"])
        parent, _, child = name.removeprefix("own/").rpartition(".")
        module = model.get_submodule(parent)
        if isinstance(getattr(module, child), nn.Parameter):
            view = nn.Parameter(view, requires_grad=False)
        setattr(module, child, view)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.data

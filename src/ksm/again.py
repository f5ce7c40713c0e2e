"""What can be computed again going back is not kept meanwhile.

Autograd keeps what an operation needs for its gradient. Some of that is quickly made again from
what is kept anyway: a masked weight, and what a normalisation and a ReLU made of their inputs.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class _Source:
    """A tensor as it was."""

    tensor: Tensor
    version: int

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError("a tensor that going back needs has been changed in place")
        return self.tensor


@dataclass(frozen=True)
class _Recipe:
    sources: tuple[_Source, ...]
    again: Callable[[], Tensor]

    def get(self) -> Tensor:
        for each in self.sources:
            each.get()
        return self.again()


class _Here(threading.local):
    """Of this thread: what can be made again, by its address; None where all is kept."""

    known: dict[int, tuple[weakref.ref[Tensor], int, _Recipe]] | None = None


_here = _Here()


@contextmanager
def made_again() -> Generator[None]:
    """Keep no tensor for going back, meanwhile, of which `can_be_made_again` was told."""
    before = _here.known
    _here.known = {}
    try:
        with saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _here.known = before


def all_is_kept() -> bool:
    """Whether there is nobody to tell."""
    return torch.compiler.is_compiling() or _here.known is None


def can_be_made_again(made: Tensor, again: Callable[[], Tensor], *sources: Tensor) -> None:
    """Tell how to make a tensor again, to the bit, and from what: going back fails with a
    RuntimeError where one of these was changed in place."""
    known = _here.known
    if known is None:
        return
    address = made.data_ptr()

    def forget(gone: weakref.ref[Tensor]) -> None:
        if address in known and known[address][0] is gone:
            del known[address]

    recipe = _Recipe(tuple(_Source(each, each._version) for each in sources), again)
    known[address] = weakref.ref(made, forget), made._version, recipe


def is_made_again(tensor: Tensor) -> bool:
    """Whether the tensor is not kept."""
    return _recipe(tensor) is not None


def _recipe(tensor: Tensor) -> _Recipe | None:
    found = (_here.known or {}).get(tensor.data_ptr())
    if found is None:
        return None
    reference, version, recipe = found
    made = reference()
    if made is None or made._version != version:
        return None
    same = made.shape == tensor.shape and made.stride() == tensor.stride()
    return recipe if same else None


def _pack(tensor: Tensor) -> _Source | _Recipe:
    return _recipe(tensor) or _Source(tensor, tensor._version)


def _unpack(kept: _Source | _Recipe) -> Tensor:
    return kept.get()

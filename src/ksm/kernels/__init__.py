"""One door to the soft mask of `ksm.mask`, which takes the fastest form that fits.

| form | where | what it saves |
|---|---|---|
| `equations`, of `ksm.mask` | everywhere | nothing: the others are tested against them |
| `few_passes` | training, any device | passes over memory |
| `triton` (`grouped`, `triton_masks`) | training, CUDA | launches: three kernels for all layers |

Forms can differ in the last bits. `noted` says which ones were used, and one line at the log level
INFO says why a faster one was not. `ONLY` names the one form to use, for tests.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ksm import mask
from ksm.kernels import few_passes
from ksm.kernels.grouped import Group, Member, hooked
from ksm.mask import Scaling

Form = Literal["equations", "few_passes", "triton"]
ONLY: Form | None = None
"""The one form to use, beside the equations where it does not fit; None: the fastest."""
GPUS = ("cuda",)
"""Kinds of devices for which Triton compiles."""

_log = logging.getLogger("ksm")
_said: set[str] = set()
_noted: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)


def say(line: str) -> None:
    """Log a line at the level INFO, once after logging is on: masks are asked for at each step."""
    if line not in _said and _log.isEnabledFor(logging.INFO):
        _said.add(line)
        _log.info(line)


def soft_mask(
    score: Tensor,
    *,
    beta: float,
    tau: float,
    temperature: Tensor,
    alpha: float | Tensor,
    scaling: Scaling,
    noise: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Compute `ksm.mask.soft_mask` by the fastest form for one layer.

    Args:
        score: floating, any shape.
        temperature: no dimension, on the scores' device.
        beta, tau, alpha, scaling, noise, values: see `ksm.mask.soft_mask`.
    """
    exact = noise is None and values is None and ONLY in (None, "few_passes")
    if exact and not isinstance(alpha, Tensor) and few_passes.fits(score):
        _note("few_passes")
        return few_passes.soft_mask(
            score, beta=beta, tau=tau, temperature=temperature, alpha=alpha, scaling=scaling
        )
    _note("equations")
    return mask.soft_mask(
        score,
        beta=beta,
        tau=tau,
        temperature=temperature,
        alpha=alpha,
        scaling=scaling,
        noise=noise,
        values=values,
    )


@contextmanager
def grouped(
    model: nn.Module,
    members: Sequence[Member],
    *,
    beta: float,
    tau: float,
    alpha: float,
    scaling: Scaling,
) -> Generator[None]:
    """Make the members' masked weights together in each forward pass of the model in the block.

    This needs a GPU with Triton. Elsewhere, and for members whose layers do not fit, nothing
    changes, and a line at the log level INFO says why.

    Args:
        members: layers with their masks; each mask asks `Member.made` for its weight.
        beta, tau, alpha, scaling: see `ksm.mask.soft_mask`.
    """
    group = _group(members, beta=beta, tau=tau, alpha=alpha, scaling=scaling)
    if group is None:
        yield
        return
    with hooked(model, group):
        yield


def _group(members: Sequence[Member], *, scaling: Scaling, **settings: float) -> Group | None:
    """Return the group of the members that fit; None where there is none."""
    devices = {each.weight.device for each in members}
    if ONLY not in (None, "triton") or not devices:
        return None
    if len(devices) > 1 or next(iter(devices)).type not in GPUS:
        kinds = ", ".join(sorted({each.type for each in devices}))
        say(
            f"masks are made layer by layer: Triton is for one CUDA GPU, the weights are on {kinds}"
        )
        return None
    kernels = triton_for(next(iter(devices)))
    if kernels is None:
        return None
    if scaling not in kernels.SCALINGS:
        say(f"masks are made layer by layer: there is no Triton kernel for scaling {scaling!r}")
        return None
    layers = {each: kernels.Layer(*each.parts) for each in members}
    taken = [each for each, layer in layers.items() if layer.fits()]
    if len(taken) < len(members):
        left = len(members) - len(taken)
        say(f"masks of {left} layers are made one by one: the Triton kernels do not take them")
    if not taken:
        return None
    make = kernels.AllMasked([layers[each] for each in taken], scaling=scaling, **settings)

    def noting() -> Sequence[Tensor]:
        _note("triton")
        return make()

    return Group(taken, noting)


@functools.cache
def triton_for(device: torch.device) -> ModuleType | None:
    """Return `ksm.kernels.triton_masks` where Triton compiles for the device, else None."""
    try:
        found: Any = importlib.import_module("ksm.kernels.triton_masks")
    except Exception as error:  # Triton is not there, or is another than the kernels are for
        say(f"masks are made layer by layer: Triton cannot be used ({error})")
        return None
    if not found.works(device):
        say(f"masks are made layer by layer: Triton cannot compile for {device}")
        return None
    return found


@contextmanager
def noted(forms: dict[str, str]) -> Generator[None]:
    """Write into `forms` what makes the masks in the block.

    Args:
        forms: gets the key `mask`, with the names of the forms in the order of their first use, and
            `triton`, with its version where it is used; neither where no mask is made.
    """
    token = _noted.set(forms)
    try:
        yield
    finally:
        _noted.reset(token)


def _note(form: Form) -> None:
    if torch.compiler.is_compiling():  # torch.compile cannot trace a ContextVar
        return
    forms = _noted.get()
    if forms is None:
        return
    known = forms["mask"].split(", ") if "mask" in forms else []
    if form not in known:
        forms["mask"] = ", ".join([*known, form])
        if form == "triton":
            forms["triton"] = importlib.import_module("triton").__version__

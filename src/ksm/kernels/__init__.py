"""One door to the soft mask of `ksm.mask`, which takes the fastest form that fits.

| form | where | what it saves |
|---|---|---|
| `ksm.mask` | everywhere | nothing: these are the equations |
| `few_passes` | training, any device | passes over memory |
| `grouped`, by `triton_masks` | training, CUDA with Triton | launches: three kernels for all layers |

docs/benchmarks.md has what each form brings. `ONLY` names the one form to use, for tests.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ksm import mask
from ksm.kernels import few_passes
from ksm.kernels.grouped import Group, Member, hooked
from ksm.mask import Scaling

log = logging.getLogger("ksm")

Form = Literal["equations", "few_passes", "triton"]
ONLY: Form | None = None
"""The one form to use where it fits; None: the fastest."""
GPUS = ("cuda",)
"""Kinds of devices for which Triton compiles."""


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
        temperature: of no dimension, on the scores' device.
        beta, tau, alpha, scaling, noise, values: see `ksm.mask.soft_mask`.
    """
    exact = noise is None and values is None and not isinstance(alpha, Tensor)
    if exact and ONLY != "equations" and few_passes.fits(score):
        return few_passes.soft_mask(
            score, beta=beta, tau=tau, temperature=temperature, alpha=alpha, scaling=scaling
        )
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
    """Let the members' masked weights be made together in each forward pass of the model.

    This needs a GPU with Triton. Elsewhere, and for members whose layers do not fit, nothing
    changes, and one line at the log level INFO says so.

    Args:
        members: layers with their masks; each mask asks `Member.made` for its weight.
        beta, tau, alpha, scaling: see `ksm.mask.soft_mask`.
    """
    fit = [each for each in members if each.weight.device.type in GPUS]
    kernels = triton_for(fit[0].weight.device) if fit else None
    if kernels is None or ONLY not in (None, "triton") or scaling not in kernels.SCALINGS:
        yield
        return
    layers = {each: kernels.Layer(*each.parts) for each in fit}
    taken = [each for each, layer in layers.items() if layer.fits()]
    if len(taken) < len(members):
        log.info("masks of %d layers are made one by one", len(members) - len(taken))
    if not taken:
        yield
        return
    make = kernels.AllMasked(
        [layers[each] for each in taken], beta=beta, tau=tau, alpha=alpha, scaling=scaling
    )
    with hooked(model, Group(taken, make)):
        yield


@functools.cache
def triton_for(device: torch.device) -> ModuleType | None:
    """Return `ksm.kernels.triton_masks` where Triton compiles for the device, else None."""
    try:
        found: Any = importlib.import_module("ksm.kernels.triton_masks")
    except Exception as error:  # Triton is not there, or is another than the kernels are for
        log.info("masks without Triton: %s", error)
        return None
    if not found.works(device):
        log.info("masks without Triton: it cannot compile for %s", device)
        return None
    return found


def in_use(device: torch.device) -> Mapping[str, str]:
    """Say which form of the mask trains on the device, and by which version of what."""
    found = {"mask": ONLY or "few_passes"}
    if device.type in GPUS and ONLY in (None, "triton") and triton_for(device):
        found["mask"] = "triton"
        try:
            found["triton"] = version("triton")
        except PackageNotFoundError:
            found["triton"] = "unknown"
    return found

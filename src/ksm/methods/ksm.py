"""Kernel-wise soft masks: a score a kernel, and the task's own normalisation and head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ksm import mask
from ksm.clone import own_norms
from ksm.errors import KsmError
from ksm.layout import GRANULARITIES, Granularity, can_mask, layout
from ksm.methods._method import Method, matches, trunk
from ksm.pack import pack_mask, unpack_mask


@dataclass(frozen=True)
class KSM(Method):
    """Kernel-wise soft masks (arXiv 2009.05668); `KSM.released()` gives the published settings.

    Args:
        score_lr: learning rate of the scores.
        granularity: what a score stands for; see `ksm.layout`.
        beta, tau, temperature, alpha, scaling: see `ksm.mask`.
        start: value of every score at the start.
        noise: add Gumbel noise to the scores while training.
        levels: values that the mask of an off unit can take in evaluation and in the task file,
            2 ... 256; in training it is not rounded.
        target_modules: which layers get a mask: None for every convolution and Linear, a regex on
            the whole name, or a tuple of name suffixes. Never the head.
    """

    name: ClassVar[str] = "ksm"

    score_lr: float = 1e-3
    granularity: Granularity = "kernel"
    beta: float = 1200.0
    tau: float = 5e-3
    temperature: float = 10.0
    alpha: float = 1.0
    scaling: mask.Scaling = "continuous"
    start: float = 1e-2
    noise: bool = False
    levels: int = 16
    target_modules: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):  # as JSON gives it
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        for value, allowed, what in [
            (self.granularity, GRANULARITIES, "granularity"),
            (self.scaling, mask.SCALINGS, "scaling"),
        ]:
            if value not in allowed:
                raise KsmError(f"{what} {value!r}: expected one of {', '.join(allowed)}")
        for name in ("temperature", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise KsmError(f"{name} {getattr(self, name)}: expected a number greater than 0")
        for name in ("tau", "start"):
            if not math.isfinite(getattr(self, name)):
                raise KsmError(f"{name} {getattr(self, name)}: expected a finite number")
        if not 0 <= self.alpha <= 1:
            raise KsmError(f"alpha {self.alpha}: expected a value from 0 to 1")
        if not 2 <= self.levels <= 256:
            raise KsmError(f"levels {self.levels}: expected a whole number from 2 to 256")

    @classmethod
    def released(cls, **settings: Any) -> KSM:
        """The published settings (method and learning rates); `settings` replaces some."""
        published: dict[str, Any] = {
            "lr": 2e-4, "score_lr": 2e-4, "temperature": 100.0, "alpha": 0.5, "scaling": "released"
        }  # fmt: skip
        return cls(**(published | settings))

    @property
    def stored_levels(self) -> int:
        """Levels that a file must tell apart: only one where there is no scaling part."""
        return 1 if self.scaling == "none" else self.levels

    def attach(self, model: nn.Module, head: str) -> Iterable[str]:
        outside = trunk(model, self.mask_from) | {head}
        owned = list(own_norms(model, outside))
        targets = {
            name: module
            for name, module in model.named_modules()
            if can_mask(module) and name not in outside and matches(name, self.target_modules)
        }
        if not targets:
            raise KsmError(
                f"no layer to mask: target_modules {self.target_modules!r} with mask_from "
                f"{self.mask_from!r} fits no convolution or Linear of {type(model).__name__}"
            )
        for name, module in targets.items():
            if parametrize.is_parametrized(module, "weight"):
                raise KsmError(
                    f"the weight of {name} is parametrized already: fold it into a plain weight, "
                    "or leave the layer out with target_modules"
                )
            parametrize.register_parametrization(
                module, "weight", SoftMask(module, self), unsafe=True
            )
        return owned

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        scores = [soft.score for _, soft in soft_masks(model)]
        known = {id(score) for score in scores}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        return [{"params": others, "lr": self.lr}, {"params": scores, "lr": self.score_lr}]

    @torch.no_grad()
    def pack(self, model: nn.Module) -> dict[str, Tensor]:
        packed: dict[str, Tensor] = {}
        for name, soft in soft_masks(model):
            on, fraction = soft.parts()
            level = mask.quantize(fraction, self.levels)
            for part, tensor in pack_mask(on, level, self.stored_levels).items():
                packed[f"mask/{name}/{part}"] = tensor
        return packed

    @torch.no_grad()
    def summary(self, model: nn.Module) -> dict[str, Any]:
        """`layers`, `weights` and `units` under a mask, and the share of units that are `off`."""
        layers = units = weights = off = 0
        for _, soft in soft_masks(model):
            on, _ = soft.parts()
            layers += 1
            units += on.numel()
            weights += math.prod(soft.layout.weight)
            off += int((~on).sum())
        return {"layers": layers, "weights": weights, "units": units, "off": off / units}

    @torch.no_grad()
    def fold(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        names = {name.split("/")[1] for name in tensors if name.startswith("mask/")}
        for name in sorted(names):
            module = model.get_submodule(name)
            cut = layout(module, self.granularity)
            packed = {part: tensors[f"mask/{name}/{part}"] for part in ("on", "off")}
            on, level = unpack_mask(packed, cut.units, self.stored_levels)
            fraction = mask.dequantize(level, self.levels)
            factors = mask.compose(on.float(), on, fraction, self.alpha)
            weight = module.weight
            assert isinstance(weight, Tensor)
            masked = weight * cut.spread(factors.to(weight))
            module.weight = nn.Parameter(masked, requires_grad=False)


class SoftMask(nn.Module):
    """Parametrization of one weight: `W_t = M * W`, with the scores as its parameter.

    Scores have the shape `layout(layer, granularity).units` and dtype float32. In training mode
    the mask is exact; in evaluation mode the off units have the levels that a task file stores.
    """

    def __init__(self, layer: nn.Module, method: KSM) -> None:
        super().__init__()
        self.method = method
        self.layout = layout(layer, method.granularity)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.score = nn.Parameter(torch.full(self.layout.units, method.start, device=weight.device))

    def mask(self) -> Tensor:
        """Factors of the units, shape of the scores."""
        m = self.method
        noise = mask.gumbel_noise(self.score) if m.noise and self.training else None
        return mask.soft_mask(
            self.score,
            beta=m.beta,
            tau=m.tau,
            temperature=m.temperature,
            alpha=m.alpha,
            scaling=m.scaling,
            noise=noise,
            levels=None if self.training else m.levels,
        )

    def parts(self) -> tuple[Tensor, Tensor]:
        """Which units are on (bool), and the fraction of alpha that off units have."""
        m = self.method
        on = mask.is_on(self.score, m.beta, m.tau)
        soft = mask.soft_on(self.score, m.beta, m.tau, m.temperature)
        return on, mask.off_fraction(self.score, on, soft, m.scaling)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.layout.spread(self.mask().to(weight.dtype))


def soft_masks(model: nn.Module) -> Iterator[tuple[str, SoftMask]]:
    """The masks of a task model under training, with the names of their layers."""
    suffix = ".parametrizations.weight.0"
    for name, module in model.named_modules():
        if isinstance(module, SoftMask):
            yield name.removesuffix(suffix), module

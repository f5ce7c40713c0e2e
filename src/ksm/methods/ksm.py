"""Kernel-wise soft masks: a score a kernel, and the task's own normalisation and head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ksm import mask
from ksm.errors import KsmError
from ksm.layout import GRANULARITIES, Granularity
from ksm.methods._masked import LayerMask, Scored, ScoreMask, parts_of
from ksm.methods._method import Course, Phase
from ksm.pack import pack_mask, unpack_mask


@dataclass(frozen=True)
class KSM(Scored):
    """Kernel-wise soft masks (arXiv 2009.05668); `KSM.released()` gives the published settings.

    Args:
        granularity: what a score stands for; see `ksm.layout`.
        beta, tau, temperature, alpha, scaling: see `ksm.mask`.
        temperature_end: the temperature falls to this in the course of training, by the same
            factor a step; 0: it stays.
        learn_alpha: `alpha` is the start of a value a layer that is trained with `lr`.
        noise: add Gumbel noise to the scores while training.
        levels: values that the mask of an off unit can take in evaluation and in the task file,
            2 ... 256; in training it is not rounded.
        score_lr, start, norms, target_modules: see `Scored`.
    """

    name: ClassVar[str] = "ksm"
    published: ClassVar[Mapping[str, Any]] = {
        "lr": 2e-4, "score_lr": 2e-4, "temperature": 100.0, "alpha": 0.5, "scaling": "released"
    }  # fmt: skip
    published_training: ClassVar[Mapping[str, Any]] = {"epochs": 30, "warmup": 0.0, "settle": 0}

    score_lr: float = 2e-3
    granularity: Granularity = "kernel"  # pyright: ignore[reportIncompatibleVariableOverride]
    beta: float = 1200.0
    tau: float = 5e-3
    temperature: float = 10.0
    temperature_end: float = 0.0
    alpha: float = 0.5
    learn_alpha: bool = False
    scaling: mask.Scaling = "minmax"
    noise: bool = False
    levels: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, allowed, what in [
            (self.granularity, GRANULARITIES, "granularity"),
            (self.scaling, mask.SCALINGS, "scaling"),
        ]:
            if value not in allowed:
                raise KsmError(f"{what} {value!r}: expected one of {', '.join(allowed)}")
        for name in ("temperature", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise KsmError(f"{name} {getattr(self, name)}: expected a number greater than 0")
        if not 0 <= self.temperature_end < math.inf:
            raise KsmError(f"temperature_end {self.temperature_end}: expected at least 0")
        if not math.isfinite(self.tau):
            raise KsmError(f"tau {self.tau}: expected a finite number")
        if not 0 <= self.alpha <= 1:
            raise KsmError(f"alpha {self.alpha}: expected a value from 0 to 1")
        if not 2 <= self.levels <= 256:
            raise KsmError(f"levels {self.levels}: expected a whole number from 2 to 256")

    @property
    def stored_levels(self) -> int:
        """Levels that a file must tell apart: only one where there is no scaling part."""
        return 1 if self.scaling == "none" else self.levels

    def phases(self, model: nn.Module, head: str, epochs: int) -> Course:
        before_step = self._annealing(model) if self.temperature_end else None
        groups = self.groups(model, head)
        return (yield Phase("train", epochs, groups, before_step=before_step))

    def _annealing(self, model: nn.Module) -> Callable[[float], None]:
        masks = [mask for _, mask in parts_of(model, SoftMask)]
        ratio = self.temperature_end / self.temperature

        def anneal(share: float) -> None:
            for one in masks:
                one.temperature.fill_(self.temperature * ratio**share)

        return anneal

    def mask_of(self, layer: nn.Module) -> LayerMask:
        return SoftMask(layer, self)

    def factors(self, packed: dict[str, Tensor], units: tuple[int, ...]) -> Tensor:
        on, level = unpack_mask(packed, units, self.stored_levels)
        fraction = mask.dequantize(level, self.levels)
        return mask.compose(on.float(), on, fraction, packed.get("alpha", self.alpha))


class SoftMask(ScoreMask):
    """The mask of one layer, with its scores as the parameter.

    Scores have the shape `layout(layer, granularity).units` and dtype float32. In training mode
    the mask is exact; in evaluation mode the off units have the levels that a task file stores.
    """

    temperature: Tensor

    def __init__(self, layer: nn.Module, method: KSM) -> None:
        super().__init__(layer, method.granularity, method.start)
        self.method = method
        where = self.score.device
        self.register_buffer("temperature", torch.tensor(method.temperature, device=where))
        alpha = torch.tensor(method.alpha, device=where)
        self.alpha = nn.Parameter(alpha) if method.learn_alpha else method.alpha

    def mask(self) -> Tensor:
        m = self.method
        noise = mask.gumbel_noise(self.score) if m.noise and self.training else None
        return mask.soft_mask(
            self.score,
            beta=m.beta,
            tau=m.tau,
            temperature=self.temperature,
            alpha=self.alpha,
            scaling=m.scaling,
            noise=noise,
            levels=None if self.training else m.levels,
        )

    def off(self) -> Tensor:
        return ~mask.is_on(self.score, self.method.beta, self.method.tau)

    def packed(self) -> dict[str, Tensor]:
        m = self.method
        on = ~self.off()
        soft = mask.soft_on(self.score, m.beta, m.tau, self.temperature)
        level = mask.quantize(mask.off_fraction(self.score, on, soft, m.scaling), m.levels)
        packed = pack_mask(on, level, m.stored_levels)
        return {**packed, "alpha": self.alpha} if isinstance(self.alpha, Tensor) else packed

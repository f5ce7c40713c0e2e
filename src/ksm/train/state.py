"""All that changes while a phase is trained, in one object that can be saved and put back."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ksm.methods import Phase
from ksm.train.schedule import cosine, tenths
from ksm.train.settings import Training

FUSED = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
"""Devices on which torch takes an optimizer's step in one kernel."""


@dataclass
class State:
    """Where the training of a phase stands, between two epochs.

    Args:
        optimizers, schedules: one a kind of optimizer that the phase's groups ask for.
        generator: draws the order of the images.
        epoch: epochs that are done.
        best: score and negative loss of the best epoch so far; None before the first.
        best_epoch: its number, from 0.
        records: of the epochs that are done.
        seconds: of training so far.
    """

    optimizers: list[torch.optim.Optimizer]
    schedules: list[torch.optim.lr_scheduler.LambdaLR]
    generator: torch.Generator
    epoch: int = 0
    best: tuple[float, float] | None = None
    best_epoch: int | None = None
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    seconds: float = 0.0

    @classmethod
    def begin(cls, phase: Phase, settings: Training, steps: int, device: torch.device) -> State:
        """Make the state before the first step.

        Args:
            steps: of the whole phase.
        """
        optimizers = _optimizers(phase.groups, device)
        warmup = round(settings.warmup * steps)
        milestones = settings.milestones if phase.decays else ()
        factor = tenths(steps, warmup, milestones) if settings.milestones else cosine(steps, warmup)
        return cls(
            optimizers,
            [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in optimizers],
            torch.Generator().manual_seed(settings.seed),
        )

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return everything that the rest of the phase depends on, ready for `torch.save`: the
        model's tensors, this state, and the random generators of torch, numpy and Python."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
            "optimizers": [each.state_dict() for each in self.optimizers],
            "schedules": [each.state_dict() for each in self.schedules],
            "generator": self.generator.get_state(),
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": cuda,
                "numpy": np.random.get_state(),
                "python": random.getstate(),
            },
            "epoch": self.epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "records": list(self.records),
            "seconds": self.seconds,
        }

    @torch.no_grad()
    def load_state_dict(self, model: nn.Module, saved: dict[str, Any]) -> None:
        """Put back what `state_dict` returned, into the model too.

        Only the model's own tensors are written: those that the backbone shares are equal.
        """
        for name, tensor in model.state_dict().items():
            if not torch.equal(tensor, saved["model"][name].to(tensor.device)):
                tensor.copy_(saved["model"][name])
        for kinds in ("optimizers", "schedules"):
            for each, state in zip(getattr(self, kinds), saved[kinds], strict=True):
                each.load_state_dict(state)
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["random"]["torch"])
        if saved["random"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])
        np.random.set_state(saved["random"]["numpy"])
        random.setstate(saved["random"]["python"])
        self.epoch, self.best, self.best_epoch = saved["epoch"], saved["best"], saved["best_epoch"]
        self.records, self.seconds = list(saved["records"]), saved["seconds"]


def _optimizers(groups: list[dict[str, Any]], device: torch.device) -> list[torch.optim.Optimizer]:
    """One optimizer a kind that the groups ask for; Adam where they do not say."""
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    wanted: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        options = {key: value for key, value in group.items() if key != "optimizer"}
        wanted.setdefault(group.get("optimizer", "adam"), []).append(options)
    fused = device.type in FUSED
    return [kinds[kind](options, fused=fused) for kind, options in wanted.items()]

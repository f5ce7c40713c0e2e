"""Kernel-wise soft masks: one frozen image backbone, a small task file for each new task."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ksm.backbones import backbone
    from ksm.bank import Bank
    from ksm.data.preprocess import Preprocess
    from ksm.engine import Engine
    from ksm.errors import KsmError
    from ksm.learning import learn
    from ksm.methods import (
        BN,
        CPG,
        KSM,
        Finetune,
        LoRA,
        Method,
        PackNet,
        Piggyback,
        Probe,
        RandomMask,
        Scratch,
    )
    from ksm.mixed import Mixed
    from ksm.prediction import predict
    from ksm.task import Task, add_task, parameter_groups
    from ksm.training import Training
    from ksm.trunk import AllTasks

__version__ = "0.1.0"

__all__ = [
    "BN",
    "CPG",
    "KSM",
    "AllTasks",
    "Bank",
    "Engine",
    "Finetune",
    "KsmError",
    "LoRA",
    "Method",
    "Mixed",
    "PackNet",
    "Piggyback",
    "Preprocess",
    "Probe",
    "RandomMask",
    "Scratch",
    "Task",
    "Training",
    "add_task",
    "backbone",
    "learn",
    "parameter_groups",
    "predict",
]

_HOMES = {
    "AllTasks": "ksm.trunk",
    "BN": "ksm.methods",
    "CPG": "ksm.methods",
    "KSM": "ksm.methods",
    "Bank": "ksm.bank",
    "Engine": "ksm.engine",
    "Finetune": "ksm.methods",
    "KsmError": "ksm.errors",
    "LoRA": "ksm.methods",
    "Method": "ksm.methods",
    "Mixed": "ksm.mixed",
    "PackNet": "ksm.methods",
    "Piggyback": "ksm.methods",
    "Preprocess": "ksm.data.preprocess",
    "Probe": "ksm.methods",
    "RandomMask": "ksm.methods",
    "Scratch": "ksm.methods",
    "Task": "ksm.task",
    "Training": "ksm.training",
    "add_task": "ksm.task",
    "backbone": "ksm.backbones",
    "learn": "ksm.learning",
    "parameter_groups": "ksm.task",
    "predict": "ksm.prediction",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import ksm` itself imports no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ksm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]

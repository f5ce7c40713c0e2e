"""The methods, by name. A new one is one file and a line here."""

import dataclasses
from typing import Any

from ksm.errors import KsmError
from ksm.methods._method import Grow, Method, Outcome, Phase
from ksm.methods.bn import BN
from ksm.methods.cpg import CPG
from ksm.methods.finetune import Finetune
from ksm.methods.ksm import KSM
from ksm.methods.lora import LoRA
from ksm.methods.packnet import PackNet
from ksm.methods.piggyback import Piggyback
from ksm.methods.probe import Probe
from ksm.methods.random_mask import RandomMask
from ksm.methods.scratch import Scratch

_ALL = (KSM, Piggyback, PackNet, CPG, LoRA, BN, Probe, RandomMask, Finetune, Scratch)
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in _ALL}

__all__ = [
    "BN",
    "CPG",
    "KSM",
    "METHODS",
    "Finetune",
    "Grow",
    "LoRA",
    "Method",
    "Outcome",
    "PackNet",
    "Phase",
    "Piggyback",
    "Probe",
    "RandomMask",
    "Scratch",
    "make",
]


def make(name: str, recipe: str = "default", **settings: Any) -> Method:
    """A method by name with some of its settings.

    Args:
        recipe: `default`, or `released` for the published settings of a method that has them.

    Raises:
        KsmError: no such method, recipe or setting, or a value that it does not take.
    """
    if name not in METHODS:
        raise KsmError(f"no method named {name!r}: expected one of {', '.join(METHODS)}")
    kind = METHODS[name]
    if recipe not in ("default", "released"):
        raise KsmError(f"no recipe named {recipe!r}: expected default or released")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, value in settings.items():
        if key not in fields:
            raise KsmError(
                f"method {name} has no setting {key!r}: expected one of {', '.join(fields)}"
            )
        missing = value is None and "None" in str(fields[key].type)
        if not missing and not _fits(value, fields[key].default):
            default = fields[key].default
            expected = "name or list of names" if default is None else type(default).__name__
            raise KsmError(f"setting {key} of method {name} is {value!r}: expected a {expected}")
    return kind.released(**settings) if recipe == "released" else kind(**settings)


def _fits(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, type(default))
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, str | list | tuple if default is None else type(default))

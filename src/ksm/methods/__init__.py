"""The methods, by name. A new one is one file and a line here."""

from typing import Any

from ksm.errors import KsmError
from ksm.methods._method import Method
from ksm.methods.bn import BN
from ksm.methods.ksm import KSM
from ksm.methods.probe import Probe

METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (KSM, BN, Probe)}

__all__ = ["BN", "KSM", "METHODS", "Method", "Probe", "make"]


def make(name: str, **settings: Any) -> Method:
    """A method by name with some of its settings.

    Raises:
        KsmError: no such method or setting, or a value that it does not take.
    """
    if name not in METHODS:
        raise KsmError(f"no method named {name!r}: expected one of {', '.join(METHODS)}")
    try:
        return METHODS[name](**settings)
    except TypeError as error:
        raise KsmError(f"method {name}: {error}") from None

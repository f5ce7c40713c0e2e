"""The methods by name: built in, registered, or announced by other packages.

A built-in method is a file of this folder. A method from outside is found by an entry point of the
group `ksm.methods`, by `package.module:Class` where the user gives that, or by `register_method`.
Nothing is imported because a task file names it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ksm.errors import KsmError
from ksm.methods._method import Method

GROUP = "ksm.methods"
"""The group of entry points, each `NAME = "package.module:Class"`."""

Kind = TypeVar("Kind", bound=type[Method])
_registered: dict[str, type[Method]] = {}


def register_method(kind: Kind) -> Kind:
    """Make a method known by its name in this process; also a decorator.

    Raises:
        KsmError: it is no dataclass that derives from `ksm.Method`, has no name of its own, or
            another method has that name.
    """
    name = vars(kind).get("name") if isinstance(kind, type) else None
    if not isinstance(kind, type) or not issubclass(kind, Method) or not isinstance(name, str):
        raise KsmError(
            f"{kind!r} is no method: expected a class that derives from ksm.Method, with a text "
            "as its class attribute `name`"
        )
    if "__dataclass_params__" not in vars(kind):
        raise KsmError(f"method {name!r}: expected @dataclass(frozen=True) on {_place(kind)}")
    if not name.isprintable() or not name or set(name) & set(" :,/="):
        raise KsmError(f"method name {name!r}: expected letters, digits and '-'")
    known = _known(name)
    if known is not None and _place(known) != _place(kind):
        raise KsmError(
            f"method name {name!r} of {_place(kind)} is taken by {_place(known)}: choose another"
        )
    _registered[name] = kind
    return kind


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Args:
        name: of a known method, or `package.module:Class`, which is imported and registered.

    Raises:
        KsmError: there is no such method, or its code cannot be imported.
    """
    if ":" in name:
        return register_method(_imported(name))
    found = _known(name)
    if found is None:
        raise KsmError(
            f"no method named {name!r}: expected one of {', '.join(names())}, or "
            "package.module:Class"
        )
    return found


def names() -> list[str]:
    """Names of the known methods: built-in ones, then those from outside."""
    outside = {*_registered, *_announced()} - {*_built_in()}
    return [*_built_in(), *sorted(outside)]


def source_of(kind: type[Method]) -> str | None:
    """Return `package.module:Class` of a method from outside, None of a built-in one."""
    return None if _built_in().get(kind.name) is kind else _place(kind)


def make(name: str, recipe: str = "default", **settings: Any) -> Method:
    """Make a method by name with some of its settings.

    Args:
        name: see `method_class`.
        recipe: `default`, or `released` for the published settings of a method that has them.
        settings: those of earlier versions are read too; see `Method.renamed`.

    Raises:
        KsmError: no such method, recipe or setting, or a value that the method does not take.
    """
    kind = method_class(name)
    name = kind.name
    if recipe not in ("default", "released"):
        raise KsmError(f"no recipe named {recipe!r}: expected default or released")
    settings = {kind.renamed.get(key, key): value for key, value in settings.items()}
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


def _known(name: str) -> type[Method] | None:
    if name in _built_in():
        return _built_in()[name]
    if name not in _registered and (entry := _announced().get(name)):
        _registered[name] = _loaded(entry)
    return _registered.get(name)


@functools.cache
def _built_in() -> Mapping[str, type[Method]]:
    package = importlib.import_module("ksm.methods")
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_") or info.name == "registry":
            continue
        module = importlib.import_module(f"ksm.methods.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Method) and "name" in vars(value):
                found[value.name] = value
    return found


@functools.cache
def _announced() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _loaded(entry: EntryPoint) -> type[Method]:
    try:
        kind = entry.load()
    except Exception as error:  # the code of another package runs here
        raise KsmError(f"method {entry.name!r} of {entry.value}: {_line(error)}") from error
    if not isinstance(kind, type) or getattr(kind, "name", None) != entry.name:
        raise KsmError(f"entry point {entry.name!r} of {entry.value} is no method of that name")
    return kind


def _imported(reference: str) -> Any:
    module, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's code runs here
        raise KsmError(
            f"method {reference}: {_line(error)}; expected package.module:Class, importable from "
            "here"
        ) from error


def _place(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _fits(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, type(default))
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, str | list | tuple if default is None else type(default))

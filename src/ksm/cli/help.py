"""The look of help texts: neither Python's types nor braces.

What goes into an option or argument is said by its `metavar`.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command of ksm."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return options and arguments, `--help` too."""
        return _without_types(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line: `NAME` for what must be given, `[NAME]` for what may
        be."""
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "") for piece in pieces]


class Group(TyperGroup):
    """A group of commands of ksm."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return options, `--help` too."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if one.param_type_name == "argument":
            one.display_type_rich = _nothing
        elif one.is_flag:
            one.metavar = ""
    return parameters


def _nothing(ctx: Any) -> None:
    """Stands for the type of an argument in its help."""

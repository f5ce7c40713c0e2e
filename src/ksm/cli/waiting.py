"""A sign of life while a person waits."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext


def waiting(text: str) -> AbstractContextManager[object]:
    """Show a spinner and a text on stderr until the block ends; nothing where that is no terminal.

    Print no results inside the block: while the spinner turns, they would go to stderr.
    """
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)

"""The picture beside a task's file: how loss and accuracy went."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ksm.errors import KsmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ksm.task import Task


def draw_curves(task: Task, path: Path, warn: Callable[[str], None]) -> Path | None:
    """Draw the picture beside the task file; return its path, None where there is none.

    Without matplotlib no picture is drawn. A picture that cannot be written costs a warning.
    """
    if find_spec("matplotlib") is None:
        return None
    from ksm.compare.plot import curves

    picture = path.with_suffix(".png")
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.png")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters that the font lacks
            curves(task.record["history"], task.record["best_epoch"], task.name, part)
        part.replace(picture)
    except (KsmError, OSError) as error:
        warn(f"no picture: {error}")
        part.unlink(missing_ok=True)
        return None
    return picture

"""The modules that need a compiler of kernels, numba or Triton, where they work."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def fast(name: str) -> ModuleType | None:
    """A module of ksm that numba or Triton compiles; None without it, with another one than it was
    written for, and where there is no room to keep what was compiled."""
    try:
        return importlib.import_module(f"ksm.{name}")
    except Exception:
        return None

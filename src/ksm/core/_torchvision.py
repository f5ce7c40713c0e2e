"""Importing this module makes `import torchvision`, and so `import timm`, work on any torch.

A torchvision built for CUDA cannot load its compiled library on a torch built for the CPU alone,
and then fails at import because the operators `nms` and `qnms` do not exist. Nothing here needs
the library itself, so the two operators are declared, without a kernel: calling one is an error.
Where the library loads, nothing is declared.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any

import torch

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_PROBE = "_ksm_torchvision_probe"


def _load_compiled_library() -> bool:
    """Run torchvision's own `extension` module, which loads the library if it can.

    It is run under another package name, because torchvision's `__init__` is what fails.
    False if there is no such module to run, so that nothing is known of the library.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.submodule_search_locations is None:
        return False
    probe = types.ModuleType(_PROBE)
    probe.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PROBE] = probe
    try:
        importlib.import_module(f"{_PROBE}.extension")
    except (ImportError, RuntimeError):
        return False  # another layout or a version clash: torchvision's own message is the better
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == _PROBE]:
            del sys.modules[name]
    return True


def _missing() -> tuple[str, ...]:
    return tuple(name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name))


# The library must outlive this module's import: its declarations vanish with the object.
library: Any = None
declared: tuple[str, ...] = ()
"""Names of the operators declared here; empty where torchvision's compiled library loads."""

if "torchvision" not in sys.modules and _missing() and _load_compiled_library():
    # A library that loads may be without `qnms`, and then nothing asks for it.
    declared = _missing() if "nms" in _missing() else ()
    if declared:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for _name in declared:
            library.define(_name + _SCHEMA)

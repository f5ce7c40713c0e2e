"""Import this module before torchvision or timm: both then import on any torch.

A torchvision built for CUDA cannot load its compiled library on a torch built for the CPU alone.
It then fails at import, because the operators `nms` and `qnms` do not exist. ksm needs no compiled
operator: this module declares the two without a kernel, and calling one is an error. Where the
library loads, nothing is declared.
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

    The module runs under another package name, because torchvision's `__init__` is what fails.

    Returns:
        Whether the module could be run; False: nothing is known of the library.
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
        return False  # another layout or a version clash: torchvision's own message says more
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

"""A backbone by its name: packaged, timm, torchvision, or a function of the user's."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from ksm.backbones.packaged import PACKAGED
from ksm.core import _torchvision as _torchvision
from ksm.core.backbone import Description, describe, remember
from ksm.errors import KsmError

DEFAULT = "mobilenetv2"


def is_reference(name: str) -> bool:
    """Whether a backbone's name is `package.module:function`, whose use runs a user's code."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in ("timm", "torchvision")


def backbone(name: str = DEFAULT, pretrained: bool = True) -> nn.Module:
    """A backbone by name, in evaluation mode, described for ksm.

    Args:
        name: a packaged backbone (see `ksm backbones`); a timm or torchvision model, with
            `timm:` or `torchvision:` in front where the name alone would mean another; or
            `package.module:function`, a function without arguments that returns an nn.Module.
        pretrained: load the pretrained weights. A user's function decides for itself.

    Raises:
        KsmError: the name is not known, or the weights cannot be had.
    """
    source, colon, rest = name.partition(":")
    if is_reference(name):
        module = _users(source, rest)
        return remember(module, _renamed(describe(module), name)).eval()
    if not colon and name in PACKAGED:
        packaged = PACKAGED[name]
        description = Description(name, packaged.head, packaged.preprocess)
        return remember(packaged.build(pretrained), description).eval()

    import timm
    import torchvision.models

    bare = rest if colon else name
    if source != "torchvision" and timm.is_model(bare):
        build: Callable[..., Any] = timm.create_model
        module = _load(name, lambda: build(bare, pretrained=pretrained))
        return remember(module, _renamed(describe(module), name)).eval()
    if source != "timm" and bare in torchvision.models.list_models():
        weights = "DEFAULT" if pretrained else None
        module = _load(name, lambda: torchvision.models.get_model(bare, weights=weights))
        return remember(module, _renamed(describe(module), name)).eval()

    known = [*PACKAGED, *timm.list_models(), *torchvision.models.list_models()]
    near = difflib.get_close_matches(bare, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `ksm backbones`"
    raise KsmError(f"no backbone named {name!r}; {hint}")


def _renamed(description: Description, name: str) -> Description:
    return Description(name, description.head, description.preprocess)


def _load(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # the hubs raise errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KsmError(
            f"backbone {name}: could not be loaded ({reason}); its weights come from a model hub, "
            f"the packaged backbones ({', '.join(PACKAGED)}) need only pip"
        ) from error


def _users(module_name: str, function_name: str) -> nn.Module:
    reference = f"{module_name}:{function_name}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except Exception as error:  # it is the user's code that runs here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KsmError(
            f"backbone {reference}: {reason}; expected package.module:function, importable from "
            "here, that returns an nn.Module and needs no argument"
        ) from error
    if not isinstance(made, nn.Module):
        raise KsmError(f"backbone {reference}: returned {type(made).__name__}, expected nn.Module")
    return made

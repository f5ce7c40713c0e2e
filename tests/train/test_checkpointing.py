"""A checkpointed step is the same step, and holds less between its passes."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torchvision.models import mobilenet_v2, resnet18

import ksm
from ksm import KSM, KsmError
from ksm.train.checkpointing import blocks, checkpointed

EVERYWHERE = KSM(mask_from=None)


def trained(model, images, way):
    """Gradients and running statistics after a step, and the bytes saved for going back."""
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with way, saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, dict(model.named_buffers()), sum(saved.values())


@pytest.mark.parametrize("method", [EVERYWHERE, KSM(noise=True, mask_from=None)])
def test_the_same_step_with_less_saved(method):
    backbone = resnet18(weights=None).eval()
    torch.manual_seed(1)
    plain = ksm.add_task(backbone, 5, method=method)
    again = copy.deepcopy(plain)
    images = torch.randn(4, 3, 64, 64)
    gradients, statistics, most = trained(plain, images, contextlib.nullcontext())
    found, others, less = trained(again, images, checkpointed(again))
    assert gradients.keys() == found.keys()
    for name, gradient in gradients.items():
        assert torch.equal(found[name], gradient), name
    for name, buffer in statistics.items():
        assert torch.equal(others[name], buffer), name
    assert less < most / 2
    assert all("forward" not in vars(module) for module in again.modules())


def test_which_blocks():
    model = ksm.add_task(resnet18(weights=None), 5, method=EVERYWHERE)
    assert [type(each).__name__ for each in blocks(model)] == ["BasicBlock"] * 8
    model = ksm.add_task(mobilenet_v2(weights=None), 5, method=EVERYWHERE)
    kinds = {type(each).__name__ for each in blocks(model)}
    assert kinds == {"InvertedResidual"}
    above = ksm.add_task(resnet18(weights=None), 5, method=KSM(mask_from="layer3"))
    assert len(list(blocks(above))) == 4


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(4, 4, 3)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=None))

    def forward(self, x):
        return x + self.inside(x)


def test_a_stage_is_no_block():
    found = list(blocks(nn.Sequential(Stage(), Stage())))
    assert [type(each) for each in found] == [Block] * 6


def test_statistics_that_count_are_counted_once():
    block = Block()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(block, Block(), block))
    again = copy.deepcopy(model)
    images = torch.randn(2, 3, 8, 8)
    model(images).sum().backward()
    with checkpointed(again):
        again(images).sum().backward()
    for (name, buffer), other in zip(model.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert all("forward" not in vars(module) for module in again.modules())


def test_a_network_without_blocks_is_told():
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(KsmError, match="has no blocks to compute twice"), checkpointed(flat):
        pass


class InPlace(Block):
    def forward(self, x):
        return self.inside(nn.functional.silu(x, inplace=True))


def test_a_block_that_changes_its_input_is_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(InPlace(), InPlace()))
    images = torch.randn(2, 3, 8, 8)
    with (
        pytest.raises(KsmError, match="the block InPlace changes its input in place"),
        checkpointed(model),
    ):
        model(images)


def test_a_forward_of_the_block_s_own_comes_back():
    model = ksm.add_task(resnet18(weights=None), 5, method=EVERYWHERE)
    block = next(blocks(model))
    block.forward = own = block.forward
    with checkpointed(model):
        assert block.forward is not own
    assert block.forward is own

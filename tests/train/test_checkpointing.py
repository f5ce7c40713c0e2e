"""Training in less memory gives what it gave, and holds less meanwhile."""

import contextlib
import copy

import ksm.again
import pytest
import torch
from ksm._fast import fast
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torchvision.models import mobilenet_v2, resnet18

import ksm
from ksm import KSM, KsmError
from ksm.train.checkpointing import MEMORIES, blocks, twice, within
from ksm.train.memory_format import ordered

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
    found, others, less = trained(again, images, twice(again))
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
    with twice(again):
        again(images).sum().backward()
    for (name, buffer), other in zip(model.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert all("forward" not in vars(module) for module in again.modules())


def test_a_network_without_blocks_is_told():
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(KsmError, match="has no blocks to compute twice"), twice(flat):
        pass


class InPlace(Block):
    def forward(self, x):
        return self.inside(nn.functional.silu(x, inplace=True))


def test_a_block_that_changes_its_input_is_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(InPlace(), InPlace()))
    images = torch.randn(2, 3, 8, 8)
    with (
        pytest.raises(KsmError, match="the block InPlace changes its input in place"),
        twice(model),
    ):
        model(images)


def test_a_forward_of_the_block_s_own_comes_back():
    model = ksm.add_task(resnet18(weights=None), 5, method=EVERYWHERE)
    block = next(blocks(model))
    block.forward = own = block.forward
    with twice(model):
        assert block.forward is not own
    assert block.forward is own


@pytest.mark.skipif(fast("fused_norm") is None, reason="numba is not installed")
@pytest.mark.parametrize("method", [EVERYWHERE, KSM(), "finetune", "piggyback"])
def test_less_keeps_less_for_the_same_step(method, monkeypatch):
    """A step of `most`, and the same of `less`: gradients, statistics, and the bytes kept."""
    torch.manual_seed(0)
    model = ksm.add_task(resnet18(weights=None), 5, method=method).train()
    images = torch.randn(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    found = []
    for memory in ("most", "less"):
        kept = {}

        def pack(tensor, pack=ksm.again._pack, kept=kept):
            packed = pack(tensor)
            sources = getattr(packed, "sources", (packed,))
            for each in (one.tensor for one in sources):
                kept[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
            return packed

        one = copy.deepcopy(model)
        with monkeypatch.context() as patch:
            patch.setattr("ksm.again._pack", pack)
            way = within(one, memory) if memory == "less" else ksm.again.made_again()
            if memory == "most":  # the same counting, and nothing is known to be made again
                patch.setattr("ksm.again._recipe", lambda tensor: None)
            with ordered(one, torch.channels_last, frozen=memory == "most"), way as run:
                weights = {p.untyped_storage().data_ptr() for p in one.parameters()}
                out = (run or one)(images)
                out.square().mean().backward()
        gradients = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
        bytes_kept = sum(size for place, size in kept.items() if place not in weights)
        found.append((out.detach(), gradients, dict(one.named_buffers()), bytes_kept))
    (out, gradients, buffers, most), (other, others, its, less) = found
    torch.testing.assert_close(other, out, rtol=1e-3, atol=1e-3)
    assert gradients.keys() == others.keys()
    size = sum(each.square().sum() for each in gradients.values())
    off = sum((others[name] - each).square().sum() for name, each in gradients.items())
    assert off < 1e-3 * size
    for name, buffer in buffers.items():
        torch.testing.assert_close(its[name], buffer, rtol=1e-3, atol=1e-3, msg=name)
    assert 0 < less < 0.85 * most


@pytest.mark.parametrize("method", [KSM(scaling="continuous"), KSM(learn_alpha=True), "piggyback"])
def test_masked_weights_are_made_again_to_the_bit(method):
    torch.manual_seed(0)
    model = ksm.add_task(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)), 2, method=method
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(5e-3, 5e-3)
    other = copy.deepcopy(model)
    images = torch.randn(2, 3, 3, 3)
    model(images).square().sum().backward()
    with ksm.again.made_again():
        weight = other[0].weight
        assert ksm.again.is_made_again(weight)
        del weight
        other(images).square().sum().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert one.grad is two.grad is None or torch.equal(one.grad, two.grad)


def test_a_random_mask_is_kept():
    model = ksm.add_task(resnet18(weights=None), 2, method=KSM(noise=True, mask_from=None))
    with ksm.again.made_again():
        assert not ksm.again.is_made_again(model.train().conv1.weight)
        weight = model.eval().conv1.weight
        assert ksm.again.is_made_again(weight)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_weights_stay_where_they_are(frozen):
    """In less memory, and where their masks give the order."""
    if frozen and fast("fused_training") is None:
        pytest.skip("numba is not installed")
    model = ksm.add_task(resnet18(weights=None), 5, method=EVERYWHERE).train()
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    with ordered(model, torch.channels_last, frozen=frozen):
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                assert parameter.data_ptr() == places[name], name


@pytest.mark.skipif(fast("fused_training") is None, reason="numba is not installed")
@pytest.mark.parametrize("memory", MEMORIES)
def test_masked_weights_have_the_order_of_the_images(memory):
    last = torch.channels_last
    model = ksm.add_task(resnet18(weights=None), 5, method=EVERYWHERE).train()
    usual = [set(vars(each)) for each in model.modules()]
    seen = []

    def look(*_):
        weight = model.layer1[0].conv1.weight
        seen.append(weight.is_contiguous(memory_format=last) and not weight.is_contiguous())

    hook = model.maxpool.register_forward_pre_hook(look)
    with ordered(model, last, frozen=memory == "most"), within(model, memory) as run:
        run(torch.randn(2, 3, 32, 32).contiguous(memory_format=last))
        look()
    hook.remove()
    assert all(seen) and len(seen) >= (1 if memory == "less" else 2)
    assert model.layer1[0].conv1.weight.is_contiguous()
    assert [set(vars(each)) for each in model.modules()] == usual


def test_unknown_memory_is_told():
    with pytest.raises(KsmError, match="memory 'all': expected one of most, less, least"):
        ksm.Training(memory="all")

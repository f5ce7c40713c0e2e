"""With all masks made at once a model learns as with each made alone, and afterwards is as it was.

On a GPU where there is one, else in Triton's interpreter.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import ksm
from ksm import KSM
from ksm.memory import within
from ksm.methods.ksm import SoftMask
from ksm.together import together
from test_shortcut import masked as masked_anywhere
from test_shortcut import step

fused = pytest.importorskip("ksm.fused_gpu", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
masked = partial(masked_anywhere, device=DEVICE)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr("ksm.together.DEVICES", (DEVICE,))


def grad_fn(model):
    return type(model[0].weight.grad_fn).__name__


def asked(model, what=grad_fn):
    """What is found out about the model within its forward pass."""
    found = []
    hook = model[1].register_forward_hook(lambda *_: found.append(what(model)))
    out = step(model)
    hook.remove()
    return found, out


def assert_close(one, two):
    torch.testing.assert_close(one[0], two[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("way", ["as it was", "raising"])
def test_the_same_step_and_layers_as_they_were(way):
    model = masked()
    expected = step(model)
    kinds = [type(each) for each in model.modules()]
    inside = [set(vars(each)) for each in model.modules()]
    try:
        with together(model):
            for _ in range(2):
                names, found = asked(model)
                assert "_AllMasked" in names[0]
                assert_close(found, expected)
            assert "_AllMasked" not in grad_fn(model)  # outside of a pass
            if way == "raising":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [type(each) for each in model.modules()] == kinds
    assert [set(vars(each)) for each in model.modules()] == inside
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert_close(step(model), expected)


def test_weights_are_made_once_a_pass_and_not_kept(monkeypatch):
    made = []
    forward = fused._AllMasked.forward
    monkeypatch.setattr(
        fused._AllMasked, "forward", lambda *given: made.append(0) or forward(*given)
    )
    model = masked()
    with together(model):
        step(model)
        made.clear()  # the first may have found out whether it works
        step(model)
        step(model)
        assert len(made) == 2
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 7, 5, 5, device=DEVICE))
        assert len(made) == 3
        step(model)
        assert len(made) == 4


def test_it_follows_the_mask():
    """Its temperature, its rounding, its scores, and evaluation."""
    model = masked(KSM(temperature=20.0, temperature_end=2.0, round_from=0.5))
    other = copy.deepcopy(model)
    masks = [
        [each for each in one.modules() if isinstance(each, SoftMask)] for one in (model, other)
    ]
    with together(model):
        for share in (0.0, 0.25, 0.75):
            for mask in (*masks[0], *masks[1]):
                mask.at(share)
                with torch.no_grad():
                    mask.score += 1e-4
            names, found = asked(model)
            assert ("_AllMasked" in names[0]) == (share < 0.5)
            assert_close(found, step(other))
        for mask in masks[0]:
            mask.score.data = mask.score.data.clone()
            mask.rounds = False
        for mask in masks[1]:
            mask.rounds = False
        assert_close(step(model), step(other))
        model.eval(), other.eval()
        assert_close(step(model), step(other))


def test_where_not_all_fit():
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(8, 6, 3, padding=1), nn.ConvTranspose2d(6, 6, 3, padding=1), nn.Flatten(),
        nn.Linear(150, 2),
    )  # fmt: skip
    model = ksm.add_task(backbone.to(DEVICE), 3, head="3").train()
    expected = step(model)
    with together(model):
        names, found = asked(model)
        assert "_AllMasked" in names[0]
        assert_close(found, expected)


@pytest.mark.parametrize("method", [KSM(noise=True), KSM(learn_alpha=True), ksm.Piggyback()])
def test_masks_that_are_left(method):
    model = masked(method)
    kinds = [type(each) for each in model.modules()]
    with together(model):
        assert [type(each) for each in model.modules()] == kinds


@pytest.mark.parametrize("memory", ["most", "less", "least"])
def test_training_takes_it_where_nothing_is_saved(memory):
    backbone = nn.Sequential(
        nn.Conv2d(8, 6, 3), nn.Sequential(Block(), Block()), nn.Flatten(), nn.Linear(54, 2)
    ).to(DEVICE)
    model = ksm.add_task(backbone, 3, head="3").train()
    expected = step(model)
    with within(model, memory):
        names, found = asked(model)
        assert ("_AllMasked" in names[0]) == (memory == "most")
    assert_close(found, expected)


def test_where_triton_cannot_compile(monkeypatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    fused.works.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(fused._AllMasked, "forward", fail)
        model = masked()
        expected = step(model)
        with together(model):
            assert_close(step(model), expected)
    fused.works.cache_clear()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


def test_a_second_pass_before_going_back():
    model = masked()
    inputs = [torch.randn(2, 8, 5, 5, device=DEVICE) for _ in range(2)]

    def both():
        for parameter in model.parameters():
            parameter.grad = None
        (model(inputs[0]).square().sum() + model(inputs[1]).square().sum()).backward()
        return model(inputs[0]).detach(), [p.grad for p in model.parameters() if p.grad is not None]

    expected = both()
    with together(model):
        assert_close(both(), expected)

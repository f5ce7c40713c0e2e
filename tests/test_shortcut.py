"""By a shortcut a layer has the same masked weight, and afterwards it is as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import ksm
from ksm import KSM
from ksm._fast import fast
from ksm.memory import within
from ksm.methods.ksm import SoftMask
from ksm.shortcut import short

needs_numba = pytest.mark.skipif(fast("fused_training") is None, reason="numba is not installed")


def masked(method=None, make=lambda: nn.Conv2d(8, 6, 3), device="cpu"):
    """A network of two such layers with random scores."""
    torch.manual_seed(0)
    backbone = nn.Sequential(make(), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(72, 4))
    model = ksm.add_task(backbone.to(device), 3, method=method or KSM(), head="4").train()
    for module in model.modules():
        if isinstance(module, SoftMask):
            nn.init.normal_(module.score, 5e-3, 5e-3)
    return model


def masks_of(model):
    return [each for each in model.modules() if isinstance(each, SoftMask)]


def in_the_course(*models):
    """Shares of a training, with the masks as they are then, and scores that move."""
    for share in (0.0, 0.25, 0.75):
        for mask in (each for model in models for each in masks_of(model)):
            mask.at(share)
            with torch.no_grad():
                mask.score += 1e-4
        yield share


def step(model):
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(1)
    out = model(torch.randn(2, 8, 5, 5).to(next(model.parameters()).device))
    out.square().sum().backward()
    return out, [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(one, two):
    assert torch.equal(one[0], two[0]) and len(one[1]) == len(two[1])
    assert all(map(torch.equal, one[1], two[1]))


@needs_numba
@pytest.mark.parametrize("way", ["as it was", "raising"])
def test_the_same_step_and_layers_as_they_were(way):
    model = masked()
    expected = step(model)
    kinds = [type(each) for each in model.modules()]
    inside = [set(vars(each)) for each in model.modules()]
    try:
        with short(model):
            assert type(model[0]) is type(model[2]) and type(model[0]) not in kinds
            assert isinstance(model[0], nn.Conv2d) and parametrize.is_parametrized(model[0])
            assert "_Masked" in type(model[0].weight.grad_fn).__name__
            for _ in range(2):
                assert_same(step(model), expected)
            if way == "raising":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [type(each) for each in model.modules()] == kinds
    assert [set(vars(each)) for each in model.modules()] == inside
    assert_same(step(model), expected)


@needs_numba
@pytest.mark.parametrize("memory", ["most", "less"])
def test_training_takes_it(memory):
    model = masked()
    kind = type(model[0])
    with within(model, memory):
        assert type(model[0]) is not kind
    assert type(model[0]) is kind


@needs_numba
def test_it_follows_the_mask():
    """Its temperature, its rounding, its scores, and evaluation."""
    model = masked(KSM(temperature=20.0, temperature_end=2.0, round_from=0.5))
    other = copy.deepcopy(model)
    with short(model):
        for _ in in_the_course(model, other):
            assert_same(step(model), step(other))
        for mask in masks_of(model):
            mask.score.data = mask.score.data.clone()
        assert_same(step(model), step(other))
        model.eval(), other.eval()
        assert_same(step(model), step(other))


LEFT = {
    "noise": (KSM(noise=True), nn.Conv2d),
    "learned alpha": (KSM(learn_alpha=True), nn.Conv2d),
    "transposed": (KSM(target_modules="0"), nn.ConvTranspose2d),
    "another method": (ksm.Piggyback(), nn.Conv2d),
}


@pytest.mark.parametrize("name", LEFT)
def test_masks_without_one_are_left(name):
    method, kind = LEFT[name]
    model = masked(method, lambda: kind(8, 6, 3, padding=2 if kind is nn.ConvTranspose2d else 0))
    kinds = [type(each) for each in model.modules()]
    with short(model):
        assert [type(each) for each in model.modules()] == kinds


def test_without_numba(monkeypatch):
    monkeypatch.setattr("ksm.methods.ksm.fast", lambda name: None)
    model = masked()
    kinds = [type(each) for each in model.modules()]
    with short(model):
        assert [type(each) for each in model.modules()] == kinds


@pytest.mark.parametrize("where", ["mask", "parametrization"])
def test_hooks_are_called(where):
    model, calls = masked(), []
    part = model[0].parametrizations.weight
    part = part[0] if where == "mask" else part
    part.register_forward_hook(lambda *given: calls.append(0))
    with short(model):
        step(model)
    assert calls == [0]


def test_what_else_is_parametrized_still_is():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    model = masked()
    parametrize.register_parametrization(model[0], "weight", Half())
    parametrize.register_parametrization(model[2], "bias", Half())
    parametrize.register_parametrization(model[4], "weight", Half())
    expected = step(model)
    with short(model):
        assert_same(step(model), expected)

"""Compiled masked weights and their gradients are those of the equations, and are left where they
do not fit."""

import copy
import math
import os
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.testing._internal.two_tensor import TwoTensor

import ksm
from conftest import tiny
from ksm import KSM, direct, mask
from ksm._fast import fast
from ksm.layout import layout
from ksm.methods.ksm import SoftMask
from test_direct import LAYERS
from test_mask import SETTINGS

fused = pytest.importorskip("ksm.fused_training", exc_type=ImportError)

SCALINGS = ("minmax", "released", "none")
ORDERS = (torch.contiguous_format, torch.channels_last)
CUTS = {
    "one weight": lambda: nn.Conv2d(1, 1, 1),
    "pointwise": lambda: nn.Conv2d(13, 11, 1),
    "pointwise, large": lambda: nn.Conv2d(261, 301, 1),
    "three": lambda: nn.Conv2d(7, 13, 3),
    "three, large": lambda: nn.Conv2d(67, 61, 3),
    "three, wide": lambda: nn.Conv2d(64, 16, 3),
    "flat": lambda: nn.Conv2d(17, 5, (1, 3)),
    "seven": lambda: nn.Conv2d(3, 9, 7),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(37, 37, 3, groups=37),
    "conv1d": lambda: nn.Conv1d(5, 6, 3),
    "conv3d": lambda: nn.Conv3d(3, 4, 2),
}


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def plain(weight, score, **chosen):
    made = mask.soft_mask(score, **chosen)
    return weight * made.repeat_interleave(weight.shape[1] // score.shape[1], 1)


def both(weight, score, upstream, **chosen):
    """Masked weights and the scores' gradients: compiled, and of the equations."""
    found = []
    for function in (fused.masked, plain):
        leaf = score.clone().requires_grad_()
        made = function(weight, leaf, **chosen)
        made.backward(upstream)
        assert leaf.grad.stride() == leaf.stride()
        found.append((made, leaf.grad))
    assert found[0][0].stride() == weight.stride()
    return found


def check(weight, score, upstream, **chosen):
    (made, gradient), (expected, other) = both(weight, score, upstream, **chosen)
    torch.testing.assert_close(made, expected, rtol=2e-7, atol=0)
    terms = (upstream * weight).abs().reshape(*score.shape[:2], -1).sum(2).view_as(score)
    bound = terms * chosen["beta"] / chosen["temperature"]  # of the sum, before it is rounded
    assert ((gradient - other).abs() <= 1e-6 * bound + 1e-5 * other.abs()).all()
    return made, gradient


def scores_of(units):
    generator = torch.Generator().manual_seed(0)
    return 5e-3 + 5e-3 * torch.randn(units, generator=generator)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("part", [1, 300, fused.PART])
@pytest.mark.parametrize("name", CUTS)
def test_any_shape(name, part, order, threads, monkeypatch):
    monkeypatch.setattr(fused, "PART", part)
    torch.manual_seed(0)
    layer = CUTS[name]()
    weight = layer.weight.detach()
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=order)
    check_cut(weight, KSM().cut(layer))


@pytest.mark.parametrize("part", [1, 300, fused.PART])
@pytest.mark.parametrize("name", CUTS)
def test_masked_weights_in_another_order(name, part, threads, monkeypatch):
    """They and the gradients have the values that they have in the weights' own order."""
    monkeypatch.setattr(fused, "PART", part)
    torch.manual_seed(0)
    layer = CUTS[name]()
    weight, upstream = layer.weight.detach(), torch.randn_like(layer.weight)
    score = scores_of(KSM().cut(layer).units)
    last = torch.channels_last
    turns = weight.dim() == 4
    for scaling in SCALINGS:
        found = []
        for order in (torch.preserve_format, last):
            leaf = score.clone().requires_grad_()
            made = fused.masked(weight, leaf, order, **SETTINGS[0], scaling=scaling)
            assert not turns or made.is_contiguous(
                memory_format=torch.contiguous_format if order == torch.preserve_format else last
            )
            made.backward(upstream.contiguous(memory_format=last) if turns else upstream)
            found.append((made, leaf.grad))
        assert torch.equal(found[0][0], found[1][0])
        bound = 1e-6 * float(found[0][1].abs().max())
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=bound)


def test_units_of_several_kernels_and_weights_in_that_order_stay_in_their_own():
    last = torch.channels_last
    for build, method in [
        (lambda: nn.Conv2d(16, 8, 3), KSM(granularity="group")),
        (lambda: nn.Conv2d(16, 8, 3).to(memory_format=last), KSM()),
        (lambda: nn.Conv2d(24, 11, 1), KSM(pointwise=4)),
        (lambda: nn.Linear(37, 9), KSM(granularity="channel")),
    ]:
        weight = build().weight.detach()
        score = scores_of(method.cut(build()).units).requires_grad_()
        made = fused.masked(weight, score, last, **SETTINGS[0], scaling="minmax")
        assert made.stride() == weight.stride()
        torch.testing.assert_close(made, plain(weight, score, **SETTINGS[0], scaling="minmax"))


UNITS = {
    "several kernels": (lambda: nn.Conv2d(24, 11, 1), KSM(pointwise=4)),
    "many kernels, large": (lambda: nn.Conv2d(512, 301, 1), KSM(pointwise=16)),
    "groups of kernels": (lambda: nn.Conv2d(16, 8, 3), KSM(granularity="group")),
    "groups of kernels, 3d": (lambda: nn.Conv3d(16, 5, 2), KSM(granularity="group")),
    "channels": (lambda: nn.Conv2d(17, 8, 3), KSM(granularity="channel")),
    "outputs": (lambda: nn.Linear(37, 9), KSM(granularity="channel")),
    "parts of one output": (lambda: nn.Linear(36, 1), KSM()),
}


@pytest.mark.parametrize("part", [1, 300, fused.PART])
@pytest.mark.parametrize("name", UNITS)
def test_units_of_several_kernels(name, part, threads, monkeypatch):
    monkeypatch.setattr(fused, "PART", part)
    torch.manual_seed(0)
    build, method = UNITS[name]
    layer = build()
    check_cut(layer.weight.detach(), method.cut(layer))


def check_cut(weight, cut):
    score, upstream = scores_of(cut.units), torch.randn_like(weight)
    for scaling in SCALINGS:
        assert fused.fits(weight, score, cut, scaling)
        for chosen in SETTINGS:
            check(weight, score, upstream, **chosen, scaling=scaling)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("chosen", [*SETTINGS, {**SETTINGS[0], "alpha": 0.0}])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_without_a_range_and_their_like(layer, chosen, scaling, monkeypatch):
    monkeypatch.setattr(fused, "PART", 1)
    torch.manual_seed(0)
    count = LAYERS[layer].numel()
    for shape in [(1, count), (count, 1)]:
        score = LAYERS[layer].view(*shape, 1, 1)
        for size in (1, 2):
            weight = torch.randn(*shape, size, size)
            for order in ORDERS:
                one = weight.contiguous(memory_format=order)
                check(one, score, torch.randn_like(one), **chosen, scaling=scaling)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.sampled_from(SCALINGS),
    st.sampled_from(ORDERS),
    st.booleans(),
)
def test_any_scores(values, scaling, order, tall):
    score = torch.tensor(values).view(*((-1, 1) if tall else (1, -1)), 1, 1)
    weight = torch.ones(*score.shape[:2], 2, 2).contiguous(memory_format=order)
    made, _ = check(weight, score, weight, **SETTINGS[0], scaling=scaling)
    assert (made[(score >= SETTINGS[0]["tau"]).expand_as(made)] == 1).all()


def test_the_exponential_is_exact_to_the_last_bits():
    score = torch.linspace(-1, 1, 200_001).view(1, -1, 1, 1).requires_grad_()
    weight = torch.ones_like(score, requires_grad=False)
    chosen = {"beta": 86.0, "tau": 0.0, "temperature": 1.0, "alpha": 0.5, "scaling": "minmax"}
    fused.masked(weight, score, **chosen).sum().backward()
    logit = 86.0 * score.detach().double()
    expected = 86.0 * torch.sigmoid(-logit) * torch.sigmoid(logit)
    near = logit.abs() < 8  # beyond, the rounding of the logit counts
    found = score.grad.double()
    torch.testing.assert_close(found[near], expected[near], rtol=1e-6, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, -math.inf])
@pytest.mark.parametrize("at", [0, 20])  # in a vector, and after the last
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_no_number_stays_none(order, at, bad):
    weight = torch.randn(2, 21, 3, 3).contiguous(memory_format=order)
    for others in (scores_of((*weight.shape[:2], 1, 1)), torch.full((2, 21, 1, 1), 1e-3)):
        others[1, at] = bad
        (made, gradient), (expected, other) = both(
            weight, others, weight, **SETTINGS[0], scaling="minmax"
        )
        assert torch.equal(made.isfinite(), expected.isfinite())
        assert not made.isfinite().all()
        assert torch.equal(gradient.isfinite(), other.isfinite())


def test_infinite_scores_and_gradients_as_in_the_equations():
    weight = torch.randn(3, 17, 3, 3)
    score, upstream = scores_of((*weight.shape[:2], 1, 1)), torch.randn_like(weight)
    score[1, 2] = math.inf
    upstream[0, 1, 2, 2], upstream[2, 3, 0, 0] = math.nan, math.inf
    (made, gradient), (expected, other) = both(
        weight, score, upstream, **SETTINGS[0], scaling="minmax"
    )
    torch.testing.assert_close(made, expected, rtol=2e-7, atol=0)
    assert torch.equal(gradient.isfinite(), other.isfinite())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["pointwise", "three", "depthwise", "seven"])
def test_gradients_in_another_order(name, order):
    torch.manual_seed(0)
    weight = CUTS[name]().weight.detach().contiguous(memory_format=order)
    score = scores_of((*weight.shape[:2], 1, 1))
    chosen = {**SETTINGS[0], "scaling": "minmax"}
    for upstream in [
        torch.randn(weight.shape),
        torch.randn(weight.shape).contiguous(memory_format=torch.channels_last),
        torch.randn(weight.shape[::-1]).permute(3, 2, 1, 0),
        torch.randn(()).expand_as(weight),
    ]:
        check(weight, score, upstream, **chosen)


@pytest.mark.parametrize(("order", "inputs"), [(ORDERS[1], 6), (ORDERS[0], 6), (ORDERS[0], 2)])
def test_saved_tensors_in_another_order(order, inputs):
    weight = torch.randn(5, 6, 3, 3).contiguous(memory_format=order)
    upstream = torch.randn_like(weight)
    score = scores_of((5, inputs, 1, 1))
    found = []
    for unpack in (lambda x: x, *(lambda x, o=o: x.clone(memory_format=o) for o in ORDERS),
                   lambda x: torch.stack([x, x], -1)[..., 0]):  # fmt: skip
        leaf = score.clone().requires_grad_()
        with saved_tensors_hooks(lambda x: x, unpack):
            made = fused.masked(weight, leaf, **SETTINGS[0], scaling="minmax")
        made.backward(upstream)
        found.append(leaf.grad)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_it_has_no_second_derivative():
    weight = torch.randn(5, 6, 3, 3)
    score = scores_of((*weight.shape[:2], 1, 1)).requires_grad_()
    made = fused.masked(weight, score, **SETTINGS[0], scaling="minmax")
    (gradient,) = torch.autograd.grad(made.square().sum(), score, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def masked_layer(layer, method):
    layer.weight.requires_grad_(False)
    added = SoftMask(layer, method)
    parametrize.register_parametrization(layer, "weight", added, unsafe=True)
    return layer, added


def taken(layer):
    """The name of what made the layer's weight."""
    return type(layer.weight.grad_fn).__name__


@pytest.mark.parametrize("scaling", mask.SCALINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 3])
def test_training_takes_it_where_it_fits(size, order, scaling):
    method = KSM(scaling=scaling, pointwise=4)
    layer, _ = masked_layer(nn.Conv2d(8, 6, size).to(memory_format=order), method)
    assert ("_Masked" in taken(layer.train())) == (scaling in SCALINGS)
    assert "_Masked" not in taken(layer.eval())


OTHERS = {
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3), KSM()),
    "linear": (lambda: nn.Linear(8, 8), KSM()),
    "groups of kernels, apart": (
        lambda: nn.Conv2d(16, 8, 3).to(memory_format=torch.channels_last),
        KSM(granularity="group"),
    ),
    "elements": (lambda: nn.Conv2d(16, 8, 3), KSM(granularity="element")),
    "uneven groups": (lambda: nn.Conv2d(18, 8, 1), KSM(pointwise=4)),
    "noise": (lambda: nn.Conv2d(16, 8, 3), KSM(noise=True)),
    "rounded": (lambda: nn.Conv2d(16, 8, 3), KSM(round_from=0.0)),
    "alpha": (lambda: nn.Conv2d(16, 8, 3), KSM(learn_alpha=True)),
    "double": (lambda: nn.Conv2d(16, 8, 3).double(), KSM()),
    "half": (lambda: nn.Conv2d(16, 8, 3).half(), KSM()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_training_leaves_it_elsewhere(name):
    build, method = OTHERS[name]
    layer, added = masked_layer(build(), method)
    assert "_Masked" not in taken(layer.train())
    nn.init.normal_(added.score, 5e-3, 5e-3)
    weight = layer.parametrizations.weight.original
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = layer.weight
        torch.manual_seed(0)
        expected = weight * added.layout.spread(added.mask().to(weight.dtype))
    assert torch.equal(found, expected)


def test_weights_that_are_trained_or_lie_in_no_order_are_left():
    layer, added = masked_layer(nn.Conv2d(8, 6, 3), KSM())
    original = layer.parametrizations.weight.original
    fit = (added.score, added.layout, "minmax")
    assert fused.fits(original, *fit)
    assert not fused.fits(original.permute(0, 1, 3, 2), *fit)
    assert not fused.fits(original.to("meta"), *fit)
    original.requires_grad_()
    assert not fused.fits(original, *fit)
    layer.weight.sum().backward()
    assert original.grad is not None


def step(model, images):
    """Gradients of a step in training."""
    model(images).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def without():
    fast.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(ksm, "fused_training")
        patch.setitem(sys.modules, "ksm.fused_training", None)
        yield
    fast.cache_clear()


def test_training_without_numba(without, monkeypatch):
    model = ksm.add_task(tiny(), 3, method=KSM()).train()
    for each in model.modules():
        if isinstance(each, SoftMask):
            nn.init.normal_(each.score, 5e-3, 5e-3)
    images = torch.randn(4, 3, 32, 32)
    other = copy.deepcopy(model)
    assert fast("fused_training") is None and "_Masked" not in taken(model.body)
    expected = step(model, images)
    monkeypatch.setattr(ksm.methods.ksm, "fast", lambda name: fused)
    assert "_Masked" in taken(other.body)
    found = step(other, images)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_compilers_see_the_equations(monkeypatch):
    layer, added = masked_layer(nn.Conv2d(8, 6, 3), KSM())
    nn.init.normal_(added.score, 5e-3, 5e-3)
    images = torch.randn(2, 8, 5, 5)
    expected = layer(images)
    monkeypatch.setattr(fused, "masked", None)
    monkeypatch.setattr(direct, "soft_mask", None)
    compiled = torch.compile(layer.train(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected)


def test_tracing_and_what_only_looks_like_a_tensor_do_not_fit():
    weight, score = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 1, 1)
    cut = layout(nn.Conv2d(4, 8, 3), "kernel")
    assert fused.fits(weight, score, cut, "minmax")
    other = TwoTensor(weight, weight.clone())
    assert not fused.fits(other, score, cut, "minmax")
    found = []
    make_fx(lambda x: found.append(fused.fits(weight, score, cut, "minmax")) or x + 1)(score)
    assert found == [False]


def test_no_thread_of_torch_is_ended():
    def threads():
        torch.ones(2**20).add_(1)
        return set(os.listdir("/proc/self/task"))

    weight, score = torch.randn(64, 64, 3, 3), torch.randn(64, 64, 1, 1)
    cut = layout(nn.Conv2d(64, 64, 3), "kernel")
    assert weight.numel() // fused.PART == 2
    torch.set_num_threads(3)
    try:
        before = threads()
        assert fused.fits(weight, score, cut, "minmax")
        fused.masked(weight, score, **SETTINGS[0], scaling="minmax")
        assert threads() == before
    finally:
        torch.set_num_threads(1)

"""The joined operation is BatchNorm, addition and clamp: values, gradients and statistics."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ksm.again import is_made_again, made_again

fused = pytest.importorskip("ksm.fused_norm", exc_type=ImportError)

LIMITS = {"plain": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def norm_of(channels, momentum=0.1, eps=1e-5):
    norm = nn.BatchNorm2d(channels, momentum=momentum, eps=eps)
    with torch.no_grad():
        for each in (norm.weight, norm.bias, norm.running_mean):
            each.copy_(torch.randn(channels))
        norm.running_var.copy_(torch.rand(channels) + 0.1)
    return norm


def check(shape, limits, added, momentum=0.1, eps=1e-5, mean=0.0, scale=1.0, seed=0):
    torch.manual_seed(seed)
    norm = norm_of(shape[1], momentum, eps)
    exact = nn.BatchNorm2d(shape[1], momentum=momentum, eps=eps).double()
    exact.load_state_dict(norm.state_dict())
    inputs = last(torch.randn(shape) * scale + mean).requires_grad_()
    other = last(torch.randn(shape)).requires_grad_() if added else None
    upstream = torch.randn(shape)
    operation = fused.Normalized(norm, *limits)
    assert operation.fits(inputs, other)
    made = operation(inputs, other)
    assert made.is_contiguous(memory_format=torch.channels_last)
    before = exact(inputs.double()) + (0 if other is None else other.double())
    expected = before.clamp(*limits)
    dims = (0, 2, 3)
    inverse = (inputs.detach().double().var(dims, correction=0) + eps).rsqrt().view(1, -1, 1, 1)
    digits = 1 + inputs.detach().abs().amax(dims, keepdim=True) * inverse  # as many are lost
    rounding = 2e-6 * digits * (expected.detach().abs().max() + 1)
    assert ((made - expected).abs() <= rounding).all()
    for limit in limits:  # on which side of a limit a value is, is for its last bits to say
        upstream[(before - limit).abs() < 2 * rounding] = 0
    leaves = [inputs, *([other] if added else [])]
    found = torch.autograd.grad(made, [*leaves, norm.weight, norm.bias], upstream)
    wanted = torch.autograd.grad(expected, [*leaves, exact.weight, exact.bias], upstream.double())
    most = upstream.abs().max()
    terms = [most * inverse * (1 + norm.weight.abs().view(1, -1, 1, 1))]
    terms += [most] * added + [upstream.abs().sum(dims) + 1] * 2
    for one, two, term in zip(found, wanted, terms, strict=True):
        bound = rounding if one.dim() == 4 else rounding.flatten()
        assert ((one - two).abs() <= bound * term).all()
    return norm, exact


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 5, 7, 2), (8, 64, 24, 24), (32, 300, 5, 5)])
def test_values_and_gradients(shape, limits, added, threads):
    check(shape, LIMITS[limits], added)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9),
    st.booleans(), st.sampled_from(sorted(LIMITS)), st.integers(0, 99),
)  # fmt: skip
def test_any_shape(images, channels, height, width, added, limits, seed):
    if images * height * width > 1:
        check((images, channels, height, width), LIMITS[limits], added, seed=seed)


@pytest.mark.parametrize("added", [False, True])
def test_parts_and_threads_change_nothing_but_last_bits(added, threads, monkeypatch):
    monkeypatch.setattr(fused, "PART", 64)
    check((4, 37, 9, 5), LIMITS["relu"], added)


@pytest.mark.parametrize(("mean", "scale"), [(1000.0, 1.0), (-30.0, 0.01), (0.0, 1e4)])
def test_far_from_zero(mean, scale):
    check((8, 16, 8, 8), LIMITS["plain"], False, mean=mean, scale=scale)


@pytest.mark.parametrize("value", [10.0, -100.0, 1e3, 1e4])
@pytest.mark.parametrize("at", [0, 3, -1])
def test_one_value_far_from_the_others(at, value):
    """In a corner, as what is beside a border can be."""
    torch.manual_seed(0)
    inputs = last(torch.randn(8, 16, 32, 32))
    inputs.permute(0, 2, 3, 1).view(-1, 16)[at] = value
    found = {}
    for way in ("double", "torch", "ours"):
        norm = nn.BatchNorm2d(16, momentum=1.0)
        if way == "double":
            norm.double()(inputs.double())
        else:
            (fused.Normalized(norm, *LIMITS["plain"]) if way == "ours" else norm)(inputs)
        found[way] = norm.running_var
    far = {way: (found[way] / found["double"] - 1).abs().max() for way in ("torch", "ours")}
    assert far["ours"] <= 2 * far["torch"] + 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_running_statistics_are_torch_s(momentum):
    norm, other = norm_of(5, momentum), nn.BatchNorm2d(5, momentum=momentum)
    other.load_state_dict(norm.state_dict())
    operation = fused.Normalized(norm, *LIMITS["relu"])
    for scale in (1, 3, 0.5):
        inputs = last(torch.randn(6, 5, 4, 4) * scale + scale)
        operation(inputs)
        other(inputs)
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(norm.named_buffers())[name], buffer, msg=name)
    assert norm.num_batches_tracked == 3


def test_tensors_of_the_norm_may_be_others_at_the_next_call():
    norm, other = norm_of(5), nn.BatchNorm2d(5)
    operation = fused.Normalized(norm, *LIMITS["relu"])
    inputs = last(torch.randn(6, 5, 4, 4))
    operation(inputs)
    other.load_state_dict(norm.state_dict())
    for name, buffer in list(norm.named_buffers()):
        setattr(norm, name, buffer.clone())
    norm.weight = nn.Parameter(norm.weight.detach().clone())
    norm.bias.data = norm.bias.data.clone()
    torch.testing.assert_close(operation(inputs), other(inputs).relu())
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(norm.named_buffers())[name], buffer, msg=name)


@pytest.mark.parametrize("way", [made_again, nullcontext])
@pytest.mark.parametrize("added", [False, True])
def test_tensors_of_the_norm_may_be_others_when_it_goes_back(added, way):
    """Weights of the same values at another place, as `to` puts them."""
    norm = norm_of(16)
    inputs, upstream = last(torch.randn(4, 16, 8, 8)), last(torch.randn(4, 16, 8, 8))
    other = last(inputs * 2) if added else None
    found = []
    for moved in (False, True):
        leaf = inputs.clone(memory_format=torch.preserve_format).requires_grad_()
        weight = torch.ones(16, 16, 1, 1, requires_grad=True)
        with way():
            made = fused.Normalized(norm, *LIMITS["relu"])(leaf, other)
            out = nn.functional.conv2d(made, weight)
            before = [each.data for each in norm.parameters()] if moved else []
            for each, old in zip(norm.parameters(), before, strict=moved):
                each.data = old.clone()
                old.fill_(1e3)
            out.backward(upstream)
        found.append((leaf.grad, weight.grad))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_a_channel_that_is_constant_and_one_that_is_no_number():
    inputs = torch.randn(4, 3, 4, 4)
    inputs[:, 0] = 7.25
    inputs[2, 1, 0, 0] = math.nan
    norm = norm_of(3)
    bias = norm.bias[0].item()
    made = fused.Normalized(norm, *LIMITS["plain"])(last(inputs))
    assert (made[:, 0] == bias).all()
    assert made[:, 1].isnan().all() and norm.running_mean[1].isnan()
    assert made[:, 2].isfinite().all() and norm.running_mean[2].isfinite()


def test_what_was_added_is_not_made_again_from_what_is_made_again():
    """Else each of a row of blocks would be made from the first."""
    operation = fused.Normalized(norm_of(4), *LIMITS["relu"])
    inputs = last(torch.randn(2, 4, 3, 3)).requires_grad_()
    with made_again():
        row = [inputs]
        for _ in range(4):
            row.append(operation(inputs, row[-1]))
        assert [is_made_again(each) for each in row] == [False, True, False, True, False]
        assert is_made_again(operation(inputs))


def test_what_does_not_fit():
    operation = fused.Normalized(norm_of(4), *LIMITS["relu"])
    inputs = last(torch.randn(2, 4, 3, 3))
    assert operation.fits(inputs, None) and operation.fits(inputs, inputs)
    assert not operation.fits(torch.randn(2, 4, 3, 3), None)
    assert not operation.fits(inputs.double(), None)
    assert not operation.fits(inputs.bfloat16(), None)
    assert not operation.fits(last(torch.randn(1, 4, 1, 1)), None)
    assert not operation.fits(inputs, last(torch.randn(1, 4, 3, 3)))
    assert not operation.fits(inputs[0], None)
    assert not operation.fits(inputs.to("meta"), None)
    assert not operation.fits(nn.Parameter(inputs), None)


@pytest.mark.parametrize(
    "settings",
    [{"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"dtype": torch.half}],
    ids=str,
)
def test_a_norm_that_cannot_be(settings):
    assert fused.can(nn.BatchNorm2d(4))
    assert not fused.can(nn.BatchNorm2d(4, **settings))


def test_the_gradient_has_any_strides():
    torch.manual_seed(0)
    norm = norm_of(4)
    inputs = last(torch.randn(2, 4, 3, 3)).requires_grad_()
    operation = fused.Normalized(norm, *LIMITS["relu"])
    upstream = torch.randn(2, 4, 3, 3)
    (one,) = torch.autograd.grad(operation(inputs), inputs, upstream)
    (two,) = torch.autograd.grad(operation(inputs), inputs, last(upstream))
    (sums,) = torch.autograd.grad(operation(inputs).sum(), inputs)
    assert torch.equal(one, two) and sums.shape == inputs.shape

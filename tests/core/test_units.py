"""Units of every kind of layer against plain loops: weights, gradients, and what a unit is."""

import numpy as np
import pytest
import torch
from torch import nn

import reference
from ksm.core.clone import share
from ksm.core.units import GRANULARITIES, can_mask, units_of
from ksm.methods.ksm import KSM, SoftMask

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(5, 6, 3), "conv", (2, 5, 9)),
    "conv2d": (lambda: nn.Conv2d(11, 6, 3), "conv", (2, 11, 6, 6)),
    "conv2d without bias": (lambda: nn.Conv2d(3, 4, (1, 3), bias=False), "conv", (2, 3, 6, 6)),
    "pointwise": (lambda: nn.Conv2d(9, 5, 1), "conv", (2, 9, 4, 4)),
    "pointwise transposed": (lambda: nn.ConvTranspose2d(6, 4, 1), "transposed", (2, 6, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 2), "conv", (2, 3, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), "conv", (2, 8, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), "conv", (2, 6, 5, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), "transposed", (2, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(18, 4, 3), "transposed", (2, 18, 4, 4)),
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(6, 9, 2, groups=3),
        "transposed",
        (2, 6, 4, 4),
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), "transposed", (2, 2, 3, 3, 3)),
    "linear": (lambda: nn.Linear(10, 7), "linear", (3, 10)),
    "small linear": (lambda: nn.Linear(3, 2), "linear", (3, 3)),
}


@pytest.mark.parametrize("scaling", ["continuous", "minmax"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("pointwise", [1, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_masked_layer_agrees_with_the_reference(name, granularity, scaling, pointwise):
    build, kind, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build()
    groups = getattr(layer, "groups", 1)
    settings = {"granularity": granularity, "scaling": scaling, "pointwise": pointwise}
    soft = SoftMask(layer, KSM(**settings, temperature=10.0, alpha=0.8))
    cut = (kind, granularity, groups, pointwise)
    units = reference.unit_shape(kind, granularity, tuple(layer.weight.shape), groups, pointwise)
    assert tuple(soft.score.shape) == units
    with torch.no_grad():
        soft.score.copy_(5e-3 + 1e-2 * torch.randn(units))

    masked = soft(layer.weight.detach())
    values = soft.score.detach().double().numpy()
    rule = (1200.0, 5e-3, 10.0, 0.8, scaling)
    factors = reference.mask(values, *rule)
    weight = layer.weight.detach().double().numpy()
    expected = reference.masked_weight(weight, factors, *cut)
    assert np.abs(masked.detach().numpy() - expected).max() < 1e-6

    upstream = torch.randn_like(masked)
    (masked * upstream).sum().backward()
    slope = reference.mask_gradient(values, *rule)
    closed = reference.score_gradient(weight, upstream.numpy(), slope, *cut)
    scale = np.abs(closed).max()
    assert np.abs(soft.score.grad.numpy() - closed).max() < 1e-5 * scale

    layer.weight = nn.Parameter(masked.detach(), requires_grad=False)
    assert layer(torch.randn(shape)).isfinite().all()


def test_a_unit_of_a_transposed_convolution_is_one_connection():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    cut = units_of(layer, "kernel")
    factors = torch.ones(cut.units)
    factors[4, 1] = 0  # output 4 is the second of group 1, whose second input is input 3
    off = (cut.spread(factors).expand_as(layer.weight) == 0).nonzero()
    assert off[:, :2].unique(dim=0).tolist() == [[3, 1]]


def test_what_can_be_masked():
    from timm.layers import Conv2dSame

    assert can_mask(Conv2dSame(3, 4, 3)) and can_mask(nn.Linear(2, 2))
    assert not can_mask(nn.BatchNorm2d(3)) and not can_mask(share(nn.Sequential()))

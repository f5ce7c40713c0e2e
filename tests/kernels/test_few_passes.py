"""The mask in few passes is the mask of the equations, with its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ksm import KSM, mask
from ksm.kernels import few_passes
from ksm.methods.ksm import SoftMask
from test_mask import SETTINGS

TAU = torch.tensor(5e-3).item()
LAYERS = {
    "spread": (5e-3 + 1e-2 * torch.randn(13, 7, 1, 1, generator=torch.Generator())).flatten(),
    "all on": torch.tensor([1e-2, 2e-2, 3e-2]),
    "all off": torch.tensor([-1e-2, 1e-3, 4e-3]),
    "one off": torch.tensor([1e-2, 1e-3, 2e-2]),
    "equal": torch.full((5,), 1e-2),
    "equal, off": torch.full((5,), 1e-3),
    "at the threshold": torch.tensor([5e-3, 4.9999997e-3, 5.0000005e-3, 0.0]),
    "one": torch.tensor([1e-3]),
    "off below 0": torch.tensor([-1e-2, -3e-3, 1e-2, -5e-3]),
    "huge": torch.tensor([-1e30, 1e30, 0.0]),
    "no range in float32": torch.tensor([0.0, 1e-42, 1e-2]),
    "hardly a range": torch.tensor([1e-40, 3e-40, 1e-2]),
}


def both(score, upstream, scaling, chosen):
    found = []
    chosen = {**chosen, "temperature": torch.tensor(chosen["temperature"])}
    for function in (few_passes.soft_mask, mask.soft_mask):
        leaf = score.clone().requires_grad_()
        made = function(leaf, **chosen, scaling=scaling)
        (made * upstream).sum().backward()
        found.append((made.detach(), leaf.grad))
    return found


@pytest.mark.parametrize("scaling", mask.SCALINGS)
@pytest.mark.parametrize("chosen", [*SETTINGS, {**SETTINGS[0], "alpha": 0.0}])
@pytest.mark.parametrize("layer", LAYERS)
def test_mask_and_gradient_are_those_of_the_equations(scaling, chosen, layer):
    score = LAYERS[layer]
    upstream = torch.linspace(-1, 1, score.numel()) + 0.1
    (found, gradient), (expected, other) = both(score, upstream, scaling, chosen)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.sampled_from(mask.SCALINGS),
)
def test_any_scores(values, scaling):
    score = torch.tensor(values)
    (found, gradient), (expected, other) = both(score, torch.ones_like(score), scaling, SETTINGS[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)
    assert (found[score >= TAU] == 1).all()


@pytest.mark.parametrize(
    "method, training, taken",
    [
        (KSM(), True, True),
        (KSM(scaling="continuous", granularity="group"), True, True),
        (KSM(), False, False),
        (KSM(round_from=0.0), True, False),
        (KSM(noise=True), True, False),
        (KSM(learn_alpha=True), True, False),
    ],
)
def test_training_takes_it_where_it_holds(method, training, taken):
    layer = SoftMask(nn.Conv2d(16, 8, 3), method).train(training)
    nn.init.normal_(layer.score, 5e-3, 5e-3)
    with torch.random.fork_rng():
        found = layer.mask()
    assert ("_SoftMask" in type(found.grad_fn).__name__) == taken


def test_what_is_no_number_stays_none():
    score = torch.tensor([1e-3, torch.nan, 1e-2, 2e-3])
    chosen = {**SETTINGS[0], "temperature": torch.tensor(100.0)}
    found = few_passes.soft_mask(score, **chosen, scaling="minmax")
    assert not found.isfinite().all()


def test_other_dtypes_take_the_equations():
    layer = SoftMask(nn.Conv2d(16, 8, 3), KSM()).half()
    assert layer.mask().dtype == torch.float16

"""Weight gradients from a part of a batch are those of that part, and nothing else is touched."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import ksm
from ksm.sampled import sampled


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, bias=False), nn.ReLU(),
        nn.Conv2d(8, 4, 1, bias=False), nn.Flatten(), nn.Linear(4 * 6 * 6, 5),
    ).double()  # fmt: skip


def gradients(model, images, upstream):
    images = images.clone().requires_grad_()
    model.zero_grad()
    (model(images) * upstream).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"images": images.grad}


@pytest.mark.parametrize("share, count", [(1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_weight_gradients_are_those_of_the_first_images_in_proportion(share, count):
    model = network()
    model[0].bias.requires_grad_(False)
    images = torch.randn(8, 3, 16, 16, dtype=torch.double)
    upstream = torch.randn(8, 5, dtype=torch.double)
    whole = gradients(model, images, upstream)
    part = gradients(model, images[:count], upstream[:count])
    with sampled(model, share):
        found = gradients(model, images, upstream)
    for name, gradient in whole.items():
        weight = name in ("0.weight", "2.weight", "4.weight")
        expected = part[name] * 8 / count if weight else gradient
        torch.testing.assert_close(found[name], expected)


def test_layers_that_it_does_not_know_are_left_alone_and_all_is_as_it_was_after():
    class Own(nn.Conv2d):
        def _conv_forward(self, inputs, weight, bias):
            return super()._conv_forward(inputs, weight, bias)

    model = nn.Sequential(
        Own(3, 4, 3),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="circular"),
    )
    images = torch.randn(4, 3, 16, 16)
    whole = gradients(model, images, 1)
    with sampled(model, 0.5):
        found = gradients(model, images, 1)
    assert all(torch.equal(found[name], gradient) for name, gradient in whole.items())
    assert not any("_conv_forward" in vars(layer) for layer in model)


def test_masks_learn_from_a_part():
    model = ksm.add_task(resnet18(weights=None).eval(), 5)
    images = torch.randn(8, 3, 64, 64)
    with sampled(model, 0.5):
        convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
        assert all("_conv_forward" in vars(each) for each in convolutions)
        model(images).square().sum().backward()
    scores = [p for name, p in model.named_parameters() if name.endswith("score")]
    assert all(p.grad.isfinite().all() and p.grad.any() for p in scores)

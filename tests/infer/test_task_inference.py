"""Which task an image belongs to: the formulas, and that statistics tell unlike images apart."""

import math

import pytest
import torch
from torch import nn

from conftest import tiny
from ksm import KsmError
from ksm.infer.task_inference import entropy, statistics


def test_the_distance_is_the_divergence_by_hand():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).eval()
    norm.running_mean = torch.tensor([0.5, -1.0])
    norm.running_var = torch.tensor([2.0, 0.25])
    images = torch.randn(4, 2, 5, 6)
    found = statistics(model, images)
    for i, image in enumerate(images.double()):
        total = 0.0
        for channel in range(2):
            values = image[channel].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values) + norm.eps
            wide = float(norm.running_var[channel]) + norm.eps
            shift = (mean - float(norm.running_mean[channel])) ** 2
            part = (variance / wide + shift / wide - 1 - math.log(variance / wide)) / 2
            total += min(part, 10)
        assert float(found[i]) == pytest.approx(total / 2, rel=1e-4)
    log = model(images).log_softmax(1)
    expected = -(log.exp() * log).sum(1) / math.log(3)
    torch.testing.assert_close(entropy(model, images), expected.detach())


def test_images_like_those_that_a_task_saw_fit_it_better():
    """Two copies of one network, whose statistics come from dark and from bright images."""
    dark, bright = (torch.randn(64, 3, 32, 32) * 0.5 + shift for shift in (-2.0, 2.0))
    models = [tiny(), tiny()]
    for model, images in zip(models, (dark, bright), strict=True):
        model.norm1.momentum = model.norm2.momentum = None
        model.train()(images)
        model.eval()
    for images, right in ((dark, 0), (bright, 1)):
        distances = torch.stack([statistics(model, images) for model in models])
        assert (distances.argmin(0) == right).float().mean() > 0.95


def test_hooks_are_taken_away_and_outputs_unchanged():
    model = tiny().eval()
    before = model(torch.ones(1, 3, 32, 32))
    statistics(model, torch.ones(1, 3, 32, 32))
    assert torch.equal(model(torch.ones(1, 3, 32, 32)), before)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        statistics(model, torch.ones(1, 4, 32, 32))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_statistics():
    with pytest.raises(KsmError, match="no BatchNorm"):
        statistics(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.ones(1, 3, 2, 2))

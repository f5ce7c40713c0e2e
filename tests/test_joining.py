"""A joined network computes what the network does, with the same modules."""

import copy
import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import convnext_tiny, mobilenet_v2, resnet18, resnet50

import ksm
from ksm import KSM
from ksm._fast import fast
from ksm.again import made_again
from ksm.joining import Joined, joined

pytestmark = pytest.mark.skipif(fast("fused_norm") is None, reason="numba is not installed")

NETWORKS = {
    "resnet18": (lambda: resnet18(weights=None), 20),
    "resnet50": (lambda: resnet50(weights=None), 53),
    "mobilenet_v2": (lambda: mobilenet_v2(weights=None), 52),
    "timm resnet26d": (lambda: timm.create_model("resnet26d"), 31),
}


def step(run, model, images):
    out = run(images)
    out.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), gradients, dict(model.named_buffers())


def norms_joined(model):
    return [each for each in model.modules() if isinstance(each, Joined)]


def network(name, seed):
    torch.manual_seed(seed)
    model = ksm.add_task(NETWORKS[name][0](), 5, method=KSM(mask_from=None)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, torch.randn(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)


def far(one, exact):
    """Of outputs, gradients and statistics: how far from exact, beside how large those are."""
    found = []
    for ours, theirs in zip(one, exact, strict=True):
        ours, theirs = ({"": x} if torch.is_tensor(x) else x for x in (ours, theirs))
        assert ours.keys() == theirs.keys()
        off = sum((each - theirs[key]).double().square().sum() for key, each in ours.items())
        found.append((off / sum(x.double().square().sum() for x in theirs.values())).sqrt())
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_joined_step_is_the_same_in_double_precision(name):
    """With torch's operations in place of the compiled ones."""
    model, images = network(name, 0)
    other = copy.deepcopy(model).double()
    run = joined(model.double())
    assert len(norms_joined(run)) == NETWORKS[name][1]
    assert not any(isinstance(each, (nn.ReLU, nn.ReLU6)) for each in run.modules())
    one, two = (step(*each, images.double()) for each in ((run, model), (other, other)))
    assert max(far(one, two)) < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_same_up_to_rounding(name):
    """Of the gradients for one of some seeds: in the others, rounding put a ReLU on its other side,
    as it does with torch's operations."""
    for seed in range(6):
        model, images = network(name, seed)
        exact, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
        expected = step(exact, exact, images.double())
        theirs = far(step(plain, plain, images), expected)
        ours = far(step(joined(model), model, images), expected)
        within = [one <= 2 * two + 1e-6 for one, two in zip(ours, theirs, strict=True)]
        assert within[0] and within[2]
        if within[1]:
            return
    pytest.fail("gradients are further off than torch's for all seeds")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_made_again_is_the_same_to_the_bit(name):
    torch.manual_seed(0)
    model = ksm.add_task(NETWORKS[name][0](), 5, method=KSM(mask_from=None)).train()
    images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    again = copy.deepcopy(model)
    torch.manual_seed(1)
    kept = step(joined(model), model, images)
    torch.manual_seed(1)
    with made_again():
        found = step(joined(again), again, images)
    assert torch.equal(kept[0], found[0])
    for one, two in zip(kept[1:], found[1:], strict=True):
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, two[key]), key


def test_in_evaluation_it_is_the_network():
    model = ksm.add_task(resnet18(weights=None), 5, method=KSM(mask_from=None)).train()
    run = joined(model)
    model.eval()
    run.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(run(images), model(images))


class Chain(nn.Module):
    """Norms in places where what follows them must not be joined."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.norm, self.second, self.relu = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.ReLU()
        self.same = nn.Identity()

    def forward(self, x):
        made = self.norm(x)
        if self.way == "used twice":
            return self.relu(made) + made
        if self.way == "added without a ReLU":
            return made + x
        if self.way == "added to itself":
            return self.relu(made + made)
        if self.way == "a number added":
            return self.relu(made + 1)
        if self.way == "a share added":
            return self.relu(torch.add(made, x, alpha=2))
        if self.way == "the sum used twice":
            total = made + x
            return self.relu(total) + total
        if self.way == "another activation":
            return functional.leaky_relu(made)
        if self.way == "other first":
            return functional.relu(x + made)
        if self.way == "two norms":
            return (made + self.second(x)).relu()
        if self.way == "called twice":
            return self.relu(self.norm(self.relu(made)))
        if self.way == "shared":
            return functional.relu(made + self.norm(x * 2))
        if self.way == "added in place to what is used":
            other = x * 2
            total = other
            total += made
            return self.relu(total) + other
        if self.way == "added in place by a method":
            other = x * 2
            return self.relu(other.add_(made)) + other
        if self.way == "added in place":
            made += x
            return functional.relu(made, inplace=True)
        if self.way == "other changed before the ReLU":
            other = x * 2
            total = made + other
            other.mul_(3)
            return self.relu(total) + other
        if self.way == "other changed after it":
            other = x * 2
            made = self.relu(made + other)
            return made + functional.relu(other, True) + other
        if self.way == "flat":
            return torch.flatten(self.relu(made + x), 1) + torch.flatten(x, 1)
        if self.way == "by a keyword":
            return self.relu(self.same(input=self.norm(input=x)))
        if self.way == "an identity":
            return self.relu(self.same(made))
        return self.relu(made)


NOT_JOINED = (
    "used twice", "added without a ReLU", "added to itself", "a number added", "a share added",
    "the sum used twice", "another activation", "called twice", "shared",
    "added in place to what is used", "added in place by a method", "by a keyword",
    "other changed before the ReLU", "other changed after it",
)  # fmt: skip
JOINED = ("other first", "two norms", "added in place", "flat", "an identity", "plain")


@pytest.mark.parametrize("way", [*NOT_JOINED, *JOINED])
def test_only_what_is_used_once_is_joined(way, monkeypatch):
    monkeypatch.setattr("ksm.joining.KNOWN", ("torch", __name__.partition(".")[0]))
    torch.manual_seed(0)
    model = Chain(way).train()
    other = copy.deepcopy(model)
    run = joined(model)
    assert run is not model
    largest = [each.largest for each in norms_joined(run)]
    assert max(largest, default=0) == (math.inf if way in JOINED else 0)
    x = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    with made_again():
        made = run(one)
        upstream = torch.randn_like(made)
        made.backward(upstream)
    expected = other(two)
    expected.backward(upstream)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    for (name, buffer), its in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, its, msg=name)


@pytest.mark.parametrize("largest", [0.0, 6.0, math.inf])
@pytest.mark.parametrize("settings", [{"momentum": None}, {"track_running_stats": False}, {}])
def test_at_its_limits_it_has_no_gradient(settings, largest):
    """As a ReLU and a ReLU6; where it is not compiled too."""
    norm = nn.BatchNorm2d(3, **settings)
    nn.init.zeros_(norm.weight)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([0.0, 6.0, 1.0]))
    inputs = torch.randn(4, 3, 5, 5)
    clamp = {0.0: nn.Identity(), 6.0: nn.ReLU6(), math.inf: nn.ReLU()}[largest]
    clamp(norm(inputs)).sum().backward()
    wanted, norm.bias.grad = norm.bias.grad, None
    for order in (torch.contiguous_format, torch.channels_last):
        Joined(norm, largest)(inputs.contiguous(memory_format=order)).sum().backward()
        assert torch.equal(norm.bias.grad, wanted)
        norm.bias.grad = None


OTHERS = {
    "parameters of its own": lambda: convnext_tiny(weights=None),
    "transformer": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
    "norms with activations": lambda: timm.create_model("efficientnet_b0"),
    "concatenated": lambda: timm.create_model("densenet121"),
    "constants": lambda: timm.create_model("beit_base_patch16_224", img_size=64, depth=2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_are_not_joined_train_as_they_are(name):
    torch.manual_seed(0)
    model = OTHERS[name]().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    inside = {key: set(vars(module)) for key, module in model.named_modules()}
    other = copy.deepcopy(model)
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    run = joined(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert {key: set(vars(module)) for key, module in model.named_modules()} == inside
    torch.manual_seed(1)
    out, gradients, buffers = step(run, model, images)
    torch.manual_seed(1)
    expected = step(other, other, images)
    assert torch.equal(out, expected[0])
    for found, wanted in ((gradients, expected[1]), (buffers, expected[2])):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.items())


class More(Chain):
    """What torch.fx would not note down as it is."""

    def forward(self, x):
        if self.way == "without gradients":
            with torch.no_grad():
                return self.relu(self.norm(x)) * x
        return self.relu(self.norm(x)) * torch.ones(3, 1, 1)


@pytest.mark.parametrize("way", ["without gradients", "with a constant"])
def test_what_cannot_be_noted_down_is_left_alone(way, monkeypatch):
    monkeypatch.setattr("ksm.joining.KNOWN", ("torch", __name__.partition(".")[0]))
    model = More(way).train()
    before = set(vars(model))
    assert joined(model) is model
    assert set(vars(model)) == before


def test_other_people_s_code_is_left_alone(monkeypatch):
    assert joined(model := Chain("plain").train()) is model


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_hooks_are_left_alone(hook):
    model = resnet18(weights=None)
    assert joined(model) is not model
    handle = getattr(model.layer1[0], f"register_{hook}")(lambda *given: None)
    assert joined(model) is model
    handle.remove()
    model.layer1[0].forward = model.layer1[0].forward
    assert joined(model) is model


def test_without_numba_it_is_the_network(monkeypatch):
    monkeypatch.setattr("ksm.joining.fast", lambda name: None)
    assert joined(model := resnet18(weights=None)) is model


def test_norms_of_the_trunk_stay_as_they_are():
    model = ksm.add_task(resnet18(weights=None), 5, method=KSM(mask_from="layer3")).train()
    assert len(norms_joined(joined(model))) == 10

"""The fingerprint: computed once for a backbone object, and again after every change."""

import gc
import weakref

import pytest
import torch
from torch import nn

from conftest import PREPROCESS, tiny
from ksm import Engine, KsmError, Task, add_task
from ksm.core import backbone as module
from ksm.core.backbone import empty_head, fingerprint, new_head, state_hash


@pytest.fixture
def hashed(monkeypatch):
    """The heads for which a backbone was really hashed."""
    calls, real = [], module.state_hash
    monkeypatch.setattr(module, "state_hash", lambda b, head: calls.append(head) or real(b, head))
    return calls


def learned(backbone):
    return Task.of(add_task(backbone, 2), "t", ["a", "b"], preprocess=PREPROCESS)


def test_a_backbone_is_hashed_once(backbone, hashed):
    task = learned(backbone)
    for _ in range(3):
        task.on(backbone)
    add_task(backbone, 3)
    engine = Engine(backbone, keep=1)
    engine.add(task)
    engine("t", torch.randn(1, 3, 32, 32))
    assert hashed == ["fc"]
    assert fingerprint(backbone, "") == state_hash(backbone, "")
    assert hashed == ["fc", ""]


def test_using_it_and_training_a_task_is_no_change(backbone, hashed):
    task = learned(backbone)
    backbone.eval()(torch.randn(1, 3, 32, 32))
    backbone.requires_grad_(False)
    add_task(backbone, 2)(torch.randn(2, 3, 32, 32)).sum().backward()
    task.on(backbone).train()(torch.randn(2, 3, 32, 32))
    task.check_backbone(backbone)
    assert hashed == ["fc"]


@torch.no_grad()
def in_place(backbone):
    backbone.stem.weight[0, 0, 0, 0] += 1


def by_state_dict(backbone):
    backbone.load_state_dict({k: t + 1 for k, t in backbone.state_dict().items()})


def by_assigned_state_dict(backbone):
    state = {k: t + 1 for k, t in backbone.state_dict().items()}
    backbone.load_state_dict(state, assign=True)


def replaced(backbone):
    backbone.body.weight = nn.Parameter(backbone.body.weight.detach() + 1)


def turned(backbone):
    """Another view of the same memory."""
    backbone.body.weight = nn.Parameter(backbone.body.weight.data.transpose(2, 3))


def of_a_buffer(backbone):
    backbone.norm1.running_mean.add_(1)


def of_statistics(backbone):
    backbone.train()(torch.randn(2, 3, 32, 32))


def by_an_optimizer(backbone):
    backbone(torch.randn(2, 3, 32, 32)).sum().backward()
    torch.optim.SGD(backbone.parameters(), 0.1).step()


def through_data(backbone):
    backbone.stem.weight.data.mul_(0.5)


def through_numpy(backbone):
    backbone.stem.weight.detach().numpy()[...] *= 0.5


CHANGES = [
    in_place,
    through_data,
    through_numpy,
    by_state_dict,
    by_assigned_state_dict,
    replaced,
    turned,
    of_a_buffer,
    of_statistics,
    by_an_optimizer,
    lambda backbone: backbone.double(),
    # there and back: memory that was freed may be used again
    lambda backbone: backbone.bfloat16().float(),
    lambda backbone: [backbone.bfloat16().float() for _ in range(20)],
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(backbone, change):
    task = learned(backbone)
    task.on(backbone)
    change(backbone)
    assert fingerprint(backbone, "fc") == state_hash(backbone, "fc") != task.fingerprint
    with pytest.raises(KsmError, match="with fingerprint"):
        task.on(backbone)
    with pytest.raises(KsmError, match="with fingerprint"):
        Engine(backbone).add(task)


def test_a_change_that_is_undone_is_the_backbone_again(backbone):
    task = learned(backbone)
    before = {k: t.clone() for k, t in backbone.state_dict().items()}
    in_place(backbone)
    backbone.load_state_dict(before)
    task.on(backbone)


def test_tensors_whose_writes_torch_does_not_count_are_hashed_each_time(hashed):
    with torch.inference_mode():
        backbone = tiny()
    first = fingerprint(backbone, "fc")
    with torch.inference_mode():
        backbone.stem.weight += 1
    assert fingerprint(backbone, "fc") != first and len(hashed) == 2


def test_a_backbone_is_not_kept_alive():
    backbone = tiny()
    fingerprint(backbone, "fc")
    gone = weakref.ref(backbone)
    del backbone
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("head", [nn.Linear(16, 5), nn.Conv2d(16, 5, (1, 3))])
def test_an_empty_head_is_a_new_head_without_its_values(backbone, head):
    backbone.fc = head
    backbone.double()
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    empty = empty_head(backbone, "fc", 7)
    assert torch.equal(torch.rand(1), drawn)  # no random number was used
    new = new_head(backbone, "fc", 7)
    assert type(new) is type(empty) and repr(new) == repr(empty)
    shapes = {k: (t.shape, t.dtype) for k, t in new.state_dict().items()}
    assert shapes == {k: (t.shape, t.dtype) for k, t in empty.state_dict().items()}

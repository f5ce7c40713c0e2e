"""What a task's record and the log say of how it was trained, and why not faster."""

import json
import logging

import pytest
import torch
from torch import nn

import ksm
from conftest import tiny
from ksm import KSM, Training
from ksm.train.memory_format import memory_format_of


def learned(folder, caplog, backbone=None, method=None, **settings):
    """The record, and the lines of the log."""
    settings = {"epochs": 1, "batch": 8, **settings}
    with caplog.at_level(logging.INFO, "ksm"):
        task = ksm.learn(
            backbone or tiny(), folder, name="t", method=method or KSM(), size=32,
            training=Training(**settings),
        )  # fmt: skip
    lines = [record.getMessage() for record in caplog.records if record.name == "ksm"]
    return json.loads(json.dumps(task.record)), lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("method", "mask"),
    [
        (KSM(), "few_passes"),
        (KSM(noise=True), "equations"),
        (KSM(round_from=0.5), "few_passes, equations"),
        (ksm.BN(), None),
    ],
)
def test_which_kernels(colours, caplog, method, mask):
    record, _ = learned(colours, caplog, method=method)
    assert record["kernels"].pop("memory_format") == "channels_last"
    assert record["kernels"] == ({} if mask is None else {"mask": mask})


def test_where_the_mask_begins(colours, caplog):
    record, lines = learned(colours, caplog)
    assert record["mask_from"] == {"asked": "stride16", "used": None}
    assert any(line.startswith("the task starts at the input, not at stride 16") for line in lines)
    caplog.clear()
    record, lines = learned(colours, caplog, method=KSM(mask_from="body"))
    assert record["mask_from"] == {"asked": "body", "used": "body"}
    assert not any("stride" in line for line in lines)


class TwoWays(nn.Module):
    """Its last part takes two maps of its trunk."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 3, 2)
        self.body, self.fc = nn.Conv2d(4, 8, 3), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.body(self.one(x) * self.two(x)).mean((2, 3)))


def stacked():
    """The task can start inside of a block."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.second(self.first(x))

    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Block(), Block()), pool, nn.Linear(4, 2))


TRUNKS = {
    "kept": (tiny, "body", {}, "run once, outputs kept"),
    "no trunk": (tiny, None, {}, "none: the task starts at the input"),
    "augmented": (tiny, "body", {"augment": "crop"}, "run at each step: augmented by crop"),
    "two outputs": (TwoWays, "body", {}, "run at each step: the network cannot be split there"),
    "in a block": (stacked, "1.1.second", {"checkpointing": True},
                   "run at each step: it ends inside of a checkpointed block"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRUNKS)
def test_what_became_of_the_trunk(colours, caplog, name):
    make, start, settings, expected = TRUNKS[name]
    record, lines = learned(colours, caplog, make(), KSM(mask_from=start), **settings)
    assert record["trunk"] == expected
    assert (f"trunk: {expected}" in lines) == (name != "kept")


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (0, "run at each step: no memory is left to keep its outputs"),
        (100, "run at each step: its outputs need more memory than is left"),
    ],
)
def test_a_trunk_without_room(colours, caplog, monkeypatch, room, expected):
    record, _ = learned(colours, caplog, method=KSM(mask_from="body"))
    assert record["trunk"] == "run once, outputs kept"
    images = sum(record["images"].values())
    monkeypatch.setattr("ksm.train.learn.MEMORY", images * 3 * 32 * 32 + room)
    record, lines = learned(colours, caplog, method=KSM(mask_from="body"))
    assert record["trunk"] == expected and f"trunk: {expected}" in lines


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(3, 4, 1, 2), "a strided pointwise convolution has few channels"),
        (lambda: Viewing(), "the network does not take them (view size is not compatible"),
    ],
)
def test_why_inputs_are_not_channels_last(caplog, make, reason):
    with caplog.at_level(logging.INFO, "ksm"):
        assert memory_format_of(make(), (3, 8, 8)) == torch.contiguous_format
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"inputs are not channels last: {reason}") and "\n" not in line


class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).view(len(x), -1)

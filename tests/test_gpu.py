"""What a user does, on a GPU."""

import copy
import dataclasses
import os
import subprocess
import sys

import pytest
import torch

import ksm
from conftest import tiny
from ksm import Training
from ksm.memory import MEMORIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def learn(backbone, folder, method="ksm", **settings):
    settings = {"epochs": 12, "batch": 16, "precision": "no", **settings}
    return ksm.learn(
        backbone, folder, name="colours", method=method, size=32, training=Training(**settings)
    )


def assert_answers(task, backbone, rtol=1e-3):
    images = torch.randn(8, 3, 32, 32)
    here = task.on(backbone).cpu()(images)
    there = task.on(copy.deepcopy(backbone).cuda())(images.cuda()).cpu()
    torch.testing.assert_close(here, there, rtol=rtol, atol=rtol * float(here.abs().max()))


@pytest.mark.parametrize(
    "method", ["ksm", "piggyback", "bn", "finetune", "packnet", "cpg", "random-mask", "probe"]
)
def test_a_task_learned_on_the_gpu_answers_on_the_cpu(colours, backbone, tmp_path, method):
    task = learn(backbone, colours, method)
    assert task.record["device"].startswith("cuda")
    assert task.metrics["val"]["accuracy"] > 0.8 or method in ("probe", "random-mask")
    assert_answers(task, backbone)
    bank = ksm.Bank(tmp_path / "bank")
    bank.save(task)
    assert_answers(bank.load("colours"), backbone)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_memory_and_precision(colours, memory, precision):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    backbone = resnet18(weights=None)
    task = learn(backbone, colours, memory=memory, precision=precision, epochs=3)
    assert len(task.record["history"]) == 3
    assert_answers(task, backbone, rtol=0.05)


def test_an_engine_switches_there(colours):
    backbone = tiny().cuda()
    task = learn(backbone, colours)
    other = learn(backbone, colours, seed=1)
    engine = ksm.Engine(backbone, keep=1)
    engine.add(task)
    engine.add(dataclasses.replace(other, name="other"))
    images = torch.randn(4, 3, 32, 32, device="cuda")
    for name, one in [("colours", task), ("other", other), ("colours", task)]:
        assert torch.equal(engine(name, images), one.on(backbone)(images))


def test_the_command_line(colours, tmp_path):
    command = [sys.executable, "-m", "ksm.cli", "learn", "colours", str(colours)]
    command += ["--backbone", "conftest:tiny", "--bank", str(tmp_path / "bank")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "--size", "32", "--epochs", "2"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ksm.Bank(tmp_path / "bank").names() == ["colours"]

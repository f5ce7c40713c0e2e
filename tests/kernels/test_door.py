"""Which form makes the masks, and that the log and the record say so."""

import logging
import sys

import pytest
import torch
from torch import nn

import ksm
from ksm import KSM, kernels
from ksm.task import origin

CPU = not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def once_more():
    """Lines are logged once a process: each test sees them afresh."""
    kernels._said.clear()
    kernels.triton_for.cache_clear()
    yield
    kernels.triton_for.cache_clear()


@pytest.fixture
def interpreted(monkeypatch):
    """Let Triton's interpreter run where there is no GPU."""
    pytest.importorskip("triton")
    device = "cpu" if CPU else "cuda"
    monkeypatch.setattr(kernels, "GPUS", (device,))
    return device


def forms_of(method, device="cpu", layer=lambda: nn.Conv2d(6, 8, 1)):
    """Of the masks of a step."""
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), layer(), nn.Flatten(), nn.Linear(8, 4))
    model = ksm.add_task(backbone.to(device), 2, method=method, head="3").train()
    forms = {}
    phase = next(origin(model).method.phases(model, "3", 2))
    with kernels.noted(forms), phase.during():
        if phase.before_step:
            phase.before_step(0.0)
        model(torch.randn(2, 3, 3, 3, device=device)).sum().backward()
    return forms


@pytest.mark.parametrize(
    ("method", "form"),
    [
        (KSM(), "few_passes"),
        (KSM(noise=True), "equations"),
        (KSM(learn_alpha=True), "equations"),
        (KSM(round_from=0.0), "equations"),
        (ksm.BN(), None),
    ],
)
def test_the_forms_of_a_step_are_noted(method, form):
    assert forms_of(method) == ({} if form is None else {"mask": form})


def test_triton_is_noted_with_its_version(interpreted):
    import triton

    assert forms_of(KSM(), interpreted) == {"mask": "triton", "triton": triton.__version__}
    mixed = forms_of(KSM(), interpreted, lambda: nn.ConvTranspose2d(6, 8, 1))
    assert mixed["mask"] == "triton, few_passes"


@pytest.mark.parametrize("only", ["equations", "few_passes", "triton"])
def test_tests_can_ask_for_one_form(monkeypatch, interpreted, only):
    monkeypatch.setattr(kernels, "ONLY", only)
    assert forms_of(KSM(), interpreted)["mask"] == only


def test_nothing_is_noted_outside():
    forms = {}
    with kernels.noted(forms):
        pass
    kernels.soft_mask(
        torch.zeros(3), beta=1.0, tau=0.0, temperature=torch.tensor(1.0), alpha=0.5,
        scaling="minmax",
    )  # fmt: skip
    assert forms == {}


def lines(caplog):
    """Those on masks; others are on the stride."""
    found = [record.getMessage() for record in caplog.records if record.name == "ksm"]
    return [line for line in found if line.startswith("masks")]


def test_a_cpu_says_once_why_masks_are_made_layer_by_layer(caplog):
    with caplog.at_level(logging.INFO, "ksm"):
        forms_of(KSM())
        forms_of(KSM())
    assert lines(caplog) == [
        "masks are made layer by layer: Triton is for one CUDA GPU, the weights are on cpu"
    ]


@pytest.mark.parametrize(
    ("method", "layer", "line"),
    [
        (KSM(noise=True), None, "layer by layer: they have noise or learn their alpha"),
        (KSM(scaling="continuous"), None, "there is no Triton kernel for scaling 'continuous'"),
        (KSM(), lambda: nn.ConvTranspose2d(6, 8, 1), "masks of 1 layers are made one by one"),
    ],
)
def test_why_triton_does_not_make_masks(caplog, interpreted, method, layer, line):
    with caplog.at_level(logging.INFO, "ksm"):
        forms_of(method, interpreted, *([layer] if layer else []))
    (found,) = lines(caplog)
    assert line in found


def test_a_lack_of_triton_is_told(caplog, monkeypatch, interpreted):
    monkeypatch.setitem(sys.modules, "ksm.kernels.triton_masks", None)
    with caplog.at_level(logging.INFO, "ksm"):
        assert forms_of(KSM(), interpreted) == {"mask": "few_passes"}
    (found,) = lines(caplog)
    assert found.startswith("masks are made layer by layer: Triton cannot be used (")


def test_a_triton_that_cannot_compile_is_told(caplog, monkeypatch, interpreted):
    from ksm.kernels import triton_masks

    monkeypatch.setattr(triton_masks, "works", lambda device: False)
    with caplog.at_level(logging.INFO, "ksm"):
        assert forms_of(KSM(), interpreted) == {"mask": "few_passes"}
    where = torch.empty(0, device=interpreted).device
    assert lines(caplog) == [f"masks are made layer by layer: Triton cannot compile for {where}"]

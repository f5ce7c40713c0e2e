"""Compiled training: one graph for all tasks that are alike, and the same task as without."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.utils import parametrize
from torchvision.models import resnet18

import ksm
from conftest import PREPROCESS, tiny
from ksm import KsmError, Training
from ksm.compiled import compiled
from ksm.data.folder import scan
from ksm.watch import Watcher

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's own look


def graphs():
    return counters["stats"]["unique_graphs"]


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("method", ["ksm", "lora"])
def test_one_graph_for_tasks_with_other_numbers_of_classes(method):
    torch._dynamo.reset()
    counters.clear()
    backbone = resnet18(weights=None)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for classes in (3, 5, 3, 7):
        model = ksm.add_task(backbone, classes, method=method)
        kinds = [type(layer) for layer in model.modules()]
        with compiled(model, model.fc, "aot_eager") as run:
            run(images).square().sum().backward()
        found = gradients(model)
        assert [type(layer) for layer in model.modules()] == kinds
        assert "forward" not in vars(model.fc)
        model(images).square().sum().backward()
        expected = gradients(model)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            close = {"rtol": 1e-3, "atol": 1e-4 * gradient.abs().max().item()}
            torch.testing.assert_close(found[name], gradient, **close, msg=name)
        assert graphs() == 1


def test_masks_of_a_cached_evaluation_stay_those_of_their_layers():
    model = ksm.add_task(tiny(), 3).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    with compiled(model, model.fc, "aot_eager"):
        pass
    with parametrize.cached():
        assert torch.equal(model(images), expected)


def test_what_torch_cannot_compile_is_one_line():
    def broken(graph, inputs):
        raise ValueError("no compiler\nand more")

    model = ksm.add_task(tiny(), 3)
    told = pytest.raises(
        KsmError, match=r"^torch cannot compile the training: ValueError: no compiler$"
    )
    with told, compiled(model, model.fc, broken) as run:
        run(torch.randn(2, 3, 32, 32))
    assert parametrize.is_parametrized(model.stem) and "forward" not in vars(model.fc)


def test_learning_takes_it(colours, monkeypatch):
    entered = []

    def with_eager(model, head):
        entered.append(head)
        return compiled(model, head, "aot_eager")

    monkeypatch.setattr(ksm.training, "compiled", with_eager)
    torch._dynamo.reset()
    counters.clear()
    images = len(scan(colours).splits["train"])
    seen = []

    class Spy(Watcher):
        def step(self, progress):
            seen.append((progress.epoch, progress.step))

    task = ksm.learn(
        tiny(),
        colours,
        name="colours",
        size=PREPROCESS.size,
        training=Training(epochs=4, batch=10, compile=True),
        watcher=Spy(),
    )
    assert images % 10
    assert graphs() == 1
    assert len(entered) == 4 and all(isinstance(head, torch.nn.Linear) for head in entered)
    assert seen[-1] == (3, images // 10 - 1)
    assert task.metrics["val"]["accuracy"] > 0.9


def test_not_in_less_memory():
    with pytest.raises(KsmError, match="memory 'least' and compile do not go together"):
        Training(memory="least", compile=True)

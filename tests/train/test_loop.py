"""The loop: schedule, selection, seeds, stopping, statistics; and learning from a real folder."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

import ksm
import ksm.train.checkpointing
import ksm.train.learn
import ksm.train.loop
import ksm.train.phases
from conftest import PREPROCESS, tiny, write_folder
from ksm import KSM, KsmError, Training
from ksm.compare.plot import curves
from ksm.core.backbone import fingerprint
from ksm.core.clone import share
from ksm.data.folder import scan
from ksm.data.load import Images, load, normalise
from ksm.methods import Phase
from ksm.methods.ksm import SoftMask
from ksm.train.callbacks import Callback
from ksm.train.evaluate import evaluate
from ksm.train.loop import fit
from ksm.train.memory_format import memory_format_of, ordered
from ksm.train.objective import Classification, balanced
from ksm.train.phases import Run
from ksm.train.precise_bn import precise_bn
from ksm.train.schedule import cosine, tenths

QUICK = Training(epochs=3, batch=8)
CLASSES = Classification(3)


def ignore(score, record):
    """For `on_best`, where a test does not look at it."""


def learn(folder, backbone=None, **settings):
    arguments = {"name": "t", "training": QUICK, "size": 32} | settings
    return ksm.learn(backbone or tiny(), folder, **arguments)


def phase(model, epochs=1):
    return Phase("train", epochs, ksm.parameter_groups(model))


def images_of(count, classes=3, size=32):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = [(None, i % classes) for i in range(count)]
    return Images(samples, list(pixels), PREPROCESS)


def test_cosine_rises_in_a_line_and_falls_to_nothing():
    factor = cosine(100, 10)
    assert [factor(i) for i in range(10)] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert factor(10) == 1 and factor(55) == pytest.approx(0.5) and factor(100) == pytest.approx(0)
    assert cosine(10, 0)(0) == 1


def test_epochs_follow_the_number_of_images():
    assert Training().epochs_for(100_000) == 10
    assert Training().epochs_for(20) == 60
    assert Training().epochs_for(640) == 20
    assert Training(epochs=3).epochs_for(640) == 3


@pytest.mark.parametrize("method", ["ksm", "bn"])
def test_a_task_is_learned_and_the_backbone_is_as_it_was(colours, backbone, method):
    before = fingerprint(backbone, "")
    task = learn(colours, backbone, method=method, training=Training(epochs=8, batch=8))
    assert task.metrics["test"]["accuracy"] > 0.9
    assert fingerprint(backbone, "") == before
    assert task.classes == ("blue", "green", "red")
    history = task.record["history"]
    assert len(history) == 8 and history[-1]["loss"] < history[0]["loss"]
    json.dumps(task.record), json.dumps(task.metrics)


def test_what_validation_measured_is_what_the_stored_task_gives(colours, backbone):
    task = learn(colours, backbone)
    folded = task.on(backbone)
    found = scan(colours)
    for split in ("val", "test"):
        again = evaluate(folded, load(found.splits[split], task.preprocess))
        assert again["accuracy"] == task.metrics[split]["accuracy"]


def test_validation_selects_the_epoch(colours, monkeypatch):
    results = iter([(0.5, 1.0), (0.75, 2.0), (0.75, 1.0), (0.25, 0.1)])

    def pretend(model, images, objective):
        accuracy, loss = next(results)
        return {"accuracy": accuracy, "loss": loss}

    monkeypatch.setattr(ksm.train.loop, "evaluate", pretend)
    kept, real = [], ksm.train.phases.snapshot

    def spy(model):
        kept.append(real(model))
        return kept[-1]

    monkeypatch.setattr(ksm.train.phases, "snapshot", spy)
    task = learn(colours, training=Training(epochs=4, batch=8))
    assert task.record["best_epoch"] == 3  # the loss decides between equal accuracies
    assert task.metrics["val"]["accuracy"] == 0.75
    assert len(kept) == 3 and torch.equal(
        kept[-1]["fc.weight"].cpu(), task.tensors["own/fc.weight"]
    )
    assert not torch.equal(kept[1]["fc.weight"].cpu(), task.tensors["own/fc.weight"])


def test_an_interrupt_while_the_best_is_kept_loses_nothing(colours, monkeypatch):
    real, calls = ksm.train.phases.snapshot, []

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(ksm.train.phases, "snapshot", interrupted)
    task = learn(colours, training=Training(epochs=9, batch=8))
    assert task.record["stopped"] == "interrupted" and task.record["best_epoch"] >= 1
    kept = task.record["history"][task.record["best_epoch"] - 1]
    assert kept["val_accuracy"] == task.metrics["val"]["accuracy"]


def test_the_history_has_every_epoch_that_can_be_kept():
    def interrupt(score, record):
        raise KeyboardInterrupt  # as one that lands just after the task was taken

    model = ksm.add_task(tiny(), 3)
    training = Training(batch=8)
    history = fit(
        model, phase(model, 2), images_of(16), images_of(5), training, CLASSES, on_best=interrupt
    )
    assert history.stopped == "interrupted" and len(history.epochs) == 1


def test_an_interrupt_at_the_test_split_keeps_the_task(colours, monkeypatch):
    def interrupt(model, images):
        raise KeyboardInterrupt

    monkeypatch.setattr(ksm.train.learn, "evaluate", interrupt)
    task = learn(colours)
    assert "test" not in task.metrics and "before the test split" in task.record["stopped"]


def test_files_that_are_no_images_are_told_and_strict_refuses_them(colours):
    (colours / "red" / "notes.txt").write_text("hello")
    assert any("1 files are left out" in line for line in scan(colours).warnings)
    learn(colours, training=Training(epochs=1, batch=8))
    with pytest.raises(KsmError, match=r"notes\.txt: its name is no image's"):
        learn(colours, strict=True)


def test_the_test_split_is_read_once(colours, monkeypatch):
    calls = []
    monkeypatch.setattr(
        ksm.train.learn,
        "evaluate",
        lambda model, images: calls.append(len(images)) or {"accuracy": 1},
    )
    task = learn(colours)
    assert calls == [len(scan(colours).splits["test"])]
    assert task.metrics["test"] == {"accuracy": 1}


def test_seeds(colours):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again = learn(colours), learn(colours)
    other = learn(colours, training=dataclasses.replace(QUICK, seed=1))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    assert all(torch.equal(t, again.tensors[n]) for n, t in first.tensors.items())
    assert not torch.equal(first.tensors["own/fc.weight"], other.tensors["own/fc.weight"])


class Interrupting(Callback):
    def __init__(self, after):
        self.after = after

    def step(self, progress):
        if self.after == 0:
            raise KeyboardInterrupt

    def epoch(self, record):
        if record["epoch"] == self.after:
            raise KeyboardInterrupt


def test_interrupted_runs_keep_the_best_so_far(colours):
    task = learn(colours, callback=Interrupting(2))
    assert task.record["stopped"] == "interrupted" and len(task.record["history"]) == 2
    assert task.metrics["test"]["images"] > 0
    with pytest.raises(KsmError, match="interrupted before there was anything to keep"):
        learn(colours, callback=Interrupting(0))


def test_patience(colours):
    still = KSM(lr=1e-12, score_lr=1e-12)
    training = Training(epochs=9, batch=8, patience=2, precise_bn=0)
    task = learn(colours, method=still, training=training)
    assert task.record["stopped"] == "no better validation accuracy for 2 epochs"
    assert len(task.record["history"]) == task.record["best_epoch"] + 2


def test_a_loss_that_is_not_finite_ends_the_run(colours):
    with pytest.raises(KsmError, match=r"the loss is nan in epoch 1.*lower the learning rates"):
        learn(colours, method=KSM(lr=1e30))


def test_one_image_left_over_does_not_reach_batchnorm():
    model = ksm.add_task(tiny(), 3)
    training = Training(batch=8)
    history = fit(
        model, phase(model), images_of(17), images_of(5), training, CLASSES, on_best=ignore
    )
    assert len(history.epochs) == 1
    with pytest.raises(KsmError, match="1 training images: expected at least 2"):
        fit(model, phase(model), images_of(1), images_of(5), training, CLASSES, on_best=ignore)


def test_balance_and_label_smoothing_change_the_loss(colours, monkeypatch):
    """From the settings of `learn` to the loss of a step."""
    for place in range(6):  # the classes are not alike
        (colours / "red" / f"{place}.png").unlink()
    seen = []
    real = nn.functional.cross_entropy

    def spy(outputs, label, weight=None, label_smoothing=0.0, **rest):
        if outputs.requires_grad:
            seen.append((weight, label_smoothing))
        return real(outputs, label, weight, label_smoothing=label_smoothing, **rest)

    monkeypatch.setattr(nn.functional, "cross_entropy", spy)
    learn(colours, training=Training(epochs=1, batch=12, balance=True, label_smoothing=0.1))
    labels = torch.tensor([label for _, label in scan(colours).splits["train"]])
    weight, smoothing = seen[0]
    assert len(set(weight.tolist())) > 1 and smoothing == 0.1
    torch.testing.assert_close(weight.cpu(), balanced(labels))
    learn(colours, training=Training(epochs=1, batch=12))
    assert seen[-1] == (None, 0.0)


def test_a_balanced_class_weighs_the_inverse_of_its_share():
    labels = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    torch.testing.assert_close(balanced(labels), torch.tensor([12 / 18, 12 / 12, 12 / 6]))


def test_precise_bn_gives_plain_averages_and_leaves_frozen_norms_alone():
    images = images_of(32)
    model = ksm.add_task(tiny(), 3).eval()
    momentum = model.norm1.momentum
    precise_bn(model, images, 8, 4, torch.Generator().manual_seed(0))
    inputs = normalise(torch.stack([images[i][0] for i in range(32)]), PREPROCESS)
    with torch.no_grad():
        batches = model.stem(inputs)
    torch.testing.assert_close(
        model.norm1.running_mean, batches.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    assert model.norm1.momentum == momentum and not model.training
    assert not any(module.training for module in model.modules())

    instance = ksm.add_task(
        nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True), tiny()), 3
    ).eval()
    instance[0].running_mean.fill_(0.3)
    precise_bn(instance, images, 8, 4, torch.Generator())
    assert (instance[0].running_mean == 0.3).all()  # it knows no plain average

    frozen = share(tiny())
    before = frozen.norm1.running_mean.clone()
    precise_bn(frozen, images, 8, 4, torch.Generator())
    assert torch.equal(frozen.norm1.running_mean, before)


def test_precision_can_change_within_a_process(colours):
    for precision in ("no", "bf16", "no"):
        training = Training(epochs=6, batch=8, precision=precision)
        assert learn(colours, training=training).metrics["val"]["accuracy"] > 0.6


def test_augmentation():
    images = images_of(1)
    pixels = images.decoded[0]
    assert torch.equal(images[0][0], pixels)
    torch.manual_seed(0)
    flips = Images(images.samples, images.decoded, PREPROCESS, "flip")
    drawn = [flips[0][0] for _ in range(40)]
    same = [torch.equal(found, pixels) for found in drawn]
    mirrored = [torch.equal(found, pixels.flip(2)) for found in drawn]
    assert 8 < sum(same) < 32 and sum(same) + sum(mirrored) == 40
    crops = Images(images.samples, images.decoded, PREPROCESS, "crop", 0.5)
    assert crops[0][0].shape == (3, 32, 32) and not torch.equal(crops[0][0], crops[0][0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0: expected at least 1"),
        ({"batch": 1}, "batch is 1: expected at least 2"),
        ({"patience": 0}, "patience is 0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"label_smoothing": -0.1}, "label smoothing is -0.1"),
        ({"augment": "x"}, "augment 'x': expected one of none, flip"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"min_area": 0}, "min_area is 0"),
        ({"precise_bn": -1}, "precise_bn is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**20}, "seed is 100000000000000000000"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(KsmError) as error:
        Training(**settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 3}, "size is 3: expected 16 to 4096"),
        ({"crop": 0.0}, "crop is 0.0"),
        ({"size": 0}, "size is 0: expected 16 to 4096"),
        ({"limit": 1}, "limit is 1: expected at least 3"),
        ({"head": "body"}, "does not take images of 32 pixels with head 'body'"),
        ({"method": "nope"}, "no method named 'nope'"),
        ({"head": "nope"}, "no module named 'nope' for the head"),
    ],
)
def test_bad_arguments_of_learn(colours, settings, message):
    with pytest.raises(KsmError) as error:
        learn(colours, **settings)
    assert message in str(error.value)


def test_a_network_that_does_not_take_the_size(colours):
    backbone = ksm.backbone("vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(KsmError, match=r"vit_tiny_patch16_224 does not take images of 32 pixels"):
        learn(colours, backbone)


def test_a_limit_that_leaves_a_class_out(tmp_path):
    write_folder(tmp_path / "c", 60, ("blue", "green"))
    write_folder(tmp_path / "r", 3, ("red",))
    (tmp_path / "r" / "red").rename(tmp_path / "c" / "red")
    with pytest.raises(KsmError, match=r"limit 6 leaves no training image of class 'red'"):
        learn(tmp_path / "c", limit=6)


def test_limit_takes_from_every_class_the_same_images(colours):
    seen = []

    class Watch(Callback):
        def scanned(self, folder, epochs):
            seen.append(folder.splits["train"])

    for _ in range(2):
        learn(colours, limit=12, callback=Watch(), training=Training(epochs=1, batch=8))
    assert seen[0] == seen[1] and len(seen[0]) == 12
    assert {label for _, label in seen[0]} == {0, 1, 2}


def test_predict_gives_what_evaluate_counts(colours, backbone):
    task = learn(colours, backbone, training=Training(epochs=6, batch=8))
    model = task.on(backbone)
    samples = scan(colours).splits["test"]
    found = ksm.predict(task, model, [path for path, _ in samples], batch=4)
    right = sum(
        p.classes[0][0] == task.classes[label] for p, (_, label) in zip(found, samples, strict=True)
    )
    assert right / len(samples) == task.metrics["test"]["accuracy"]
    for prediction in found:
        assert sum(p for _, p in prediction.classes) == pytest.approx(1)
        assert prediction.classes == sorted(prediction.classes, key=lambda c: -c[1])


def test_the_picture_of_the_curves(colours, tmp_path):
    from PIL import Image

    task = learn(colours)
    curves(task.record["history"], task.record["best_epoch"], "colours", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 500 and len(picture.getcolors(1_000_000)) > 20
    with pytest.raises(KsmError, match="cannot write"):
        curves(task.record["history"], 1, "colours", tmp_path / "no" / "c.png")


def test_tenths_fall_at_their_shares():
    factor = tenths(100, 0, (0.5, 0.8))
    assert [factor(i) for i in (0, 49, 50, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert [tenths(100, 4, (0.5,))(i) for i in (0, 3, 4)] == pytest.approx([0.2, 0.8, 1])
    for wrong in [(0.8, 0.5), (0.0,), (1.0,)]:
        with pytest.raises(KsmError, match=r"milestones are .* expected rising values between"):
            Training(milestones=wrong)


def test_groups_choose_their_optimizer():
    model = ksm.add_task(tiny(), 3, method="probe")
    weight, bias = model.fc.weight, model.fc.bias
    before = weight.detach().clone(), bias.detach().clone()
    gradients = []
    weight.register_hook(lambda g: gradients.append(g.cpu().clone()))
    groups = [
        {"params": [weight], "lr": 0.5, "optimizer": "sgd"},
        {"params": [bias], "lr": 0.01},
    ]
    one_step = Training(batch=16, warmup=0.0)
    fit(
        model, Phase("x", 1, groups), images_of(16), images_of(5), one_step, CLASSES, on_best=ignore
    )
    torch.testing.assert_close(weight.detach().cpu(), before[0] - 0.5 * gradients[-1])
    moved = (bias.detach().cpu() - before[1]).abs()  # Adam's first step is its learning rate
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_graph_needs_a_gpu():
    model = ksm.add_task(tiny(), 3)
    with pytest.raises(KsmError, match="graph needs a CUDA GPU, and this trains on cpu"):
        fit(
            model, phase(model), images_of(8), images_of(4), Training(graph=True), CLASSES,
            on_best=ignore,
        )  # fmt: skip


def test_half_precision_goes_with_one_kind_of_optimizer():
    model = ksm.add_task(tiny(), 3)
    groups = [
        {"params": [parameter], "lr": 0.1, "optimizer": kind}
        for parameter, kind in zip(model.fc.parameters(), ("adam", "sgd"), strict=True)
    ]
    half = Training(precision="fp16")
    with pytest.raises(KsmError, match="fp16 goes with one kind of optimizer, not two"):
        fit(
            model, Phase("x", 1, groups), images_of(16), images_of(5), half, CLASSES, on_best=ignore
        )


def test_a_phase_can_ask_for_its_last_epoch_and_be_told_how_far_it_is():
    model, shares, best = ksm.add_task(tiny(), 3), [], []
    asked = Phase("x", 3, ksm.parameter_groups(model), last=True, before_step=shares.append)
    fit(
        model, asked, images_of(16), images_of(5), Training(batch=8), CLASSES, done=4,
        on_best=lambda score, record: best.append((score, record)),
    )  # fmt: skip
    assert [(score, record["epoch"]) for score, record in best] == [(best[0][1]["val_accuracy"], 7)]
    assert shares == pytest.approx([i / 5 for i in range(6)])


class Scripted(KSM):
    """Phases whose validation accuracies are made up."""

    def phases(self, model, head, epochs):
        groups = self.groups(model, head)
        first = yield Phase("first", 1, groups, keeps=False)
        with torch.no_grad():
            model.fc.bias += 5
        try:
            second = yield Phase("second", 1, groups, keeps=False)
        except KeyboardInterrupt:
            return first
        yield Phase("third", 1, groups, start=first.state)
        return second


def pretend_accuracies(monkeypatch, values, interrupt_at=None):
    values = iter(values)
    count = iter(range(99))

    def pretend(model, images, objective):
        if next(count) == interrupt_at:
            raise KeyboardInterrupt
        return {"accuracy": next(values), "loss": 1.0}

    monkeypatch.setattr(ksm.train.loop, "evaluate", pretend)


def test_the_outcome_that_a_method_returns_is_the_task(colours, monkeypatch):
    pretend_accuracies(monkeypatch, [0.2, 0.4, 0.9])
    task = learn(colours, method=Scripted())
    assert task.metrics["val"]["accuracy"] == 0.4 and task.record["best_epoch"] == 2
    assert [r["phase"] for r in task.record["history"]] == ["first", "second", "third"]
    assert [r["epoch"] for r in task.record["history"]] == [1, 2, 3]
    assert task.tensors["own/fc.bias"].min() > 4


def test_an_interrupted_phase_falls_back_to_what_the_method_says(colours, monkeypatch):
    pretend_accuracies(monkeypatch, [0.2, 0.4], interrupt_at=1)
    task = learn(colours, method=Scripted())
    assert task.record["stopped"] == "interrupted" and task.record["best_epoch"] == 1
    assert task.tensors["own/fc.bias"].max() < 4
    pretend_accuracies(monkeypatch, [0.2, 0.4], interrupt_at=0)
    with pytest.raises(KsmError, match="interrupted before there was anything to keep"):
        learn(colours, method=Scripted())


def test_cpg_grows_until_its_goal_is_met_or_it_may_not(colours, monkeypatch, tmp_path):
    backbone = tiny()
    pretend_accuracies(monkeypatch, [0.1, 0.2, 0.9, 0.95, 0.5] + [0.9] * 9)
    method = ksm.CPG(goal=0.9, max_size=2.0)
    task = learn(colours, backbone, method=method, training=Training(epochs=3, batch=8))
    assert task.grown == 2.0 and task.metrics["val"]["accuracy"] == 0.95
    phases = [r["phase"] for r in task.record["history"]]
    assert phases == ["pick", "pick", "pick", "compact to 0.95", "retrain"]
    assert task.record["best_epoch"] == 4
    bank = ksm.Bank(tmp_path / "bank")
    bank.save(task)
    stored = bank.load("t").on(backbone)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(stored(x), task.on(backbone)(x))
    assert stored.stem.weight.shape[0] == round(8 * 2**0.5)


def test_packnet_needs_two_epochs_and_cpg_three(colours):
    for method, epochs, least in [("packnet", 1, 2), ("cpg", 2, 3)]:
        with pytest.raises(KsmError, match=f"epochs is {epochs}: .* expected at least {least}"):
            learn(colours, method=method, training=Training(epochs=epochs, batch=8))


class Viewing(nn.Module):
    """Calls `view` on what a convolution gives, as much code does."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 8, 1)
        self.fc = nn.Linear(64, 5)
        self.shape = shape

    def forward(self, x):
        return self.fc(self.conv(x).view(*self.shape(x)).reshape(len(x), -1))


@pytest.mark.parametrize(
    "build, last",
    [
        (lambda: Viewing(lambda x: (len(x), -1)), False),
        (lambda: Viewing(lambda x: (len(x) * 4, 16)), False),  # of one image it could take any
        (tiny, True),
    ],
)
def test_images_come_channels_last_where_the_network_takes_it(build, last):
    model = ksm.add_task(build(), 3)
    seen = []
    model.register_forward_pre_hook(
        lambda module, inputs: (
            seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            if module.training
            else None
        )
    )
    fit(model, phase(model), images_of(16), images_of(5), QUICK, CLASSES, on_best=ignore)
    assert seen == [last, last]


def test_a_mask_is_made_once_for_a_whole_validation(monkeypatch):
    made = []
    forward = SoftMask.forward
    monkeypatch.setattr(
        SoftMask, "forward", lambda self, weight: made.append(self) or forward(self, weight)
    )
    model = ksm.add_task(tiny(), 3).eval()
    made.clear()
    evaluate(model, images_of(9), batch=2)
    assert len(made) == len(set(made)) == 2
    precise_bn(model, images_of(9), 2, 4, torch.Generator())
    assert len(made) == 4


@pytest.mark.parametrize(
    ("method", "plain"), [("ksm", False), ("finetune", True), ("packnet", False)]
)
def test_trained_weights_have_the_order_of_the_inputs_while_training(method, plain):
    """Plain ones; frozen weights are shared, and masked ones are made afresh at each step."""
    backbone = tiny()
    model = ksm.add_task(backbone, 3, method=method).train()
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    layers = [model.stem, model.body]
    with pytest.raises(KeyboardInterrupt), ordered(model, torch.channels_last):
        for layer in layers:
            last = layer.weight.is_contiguous(memory_format=torch.channels_last)
            assert (last, layer.weight.is_contiguous()) == (plain, not plain)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad or parameter.data_ptr() == before[name][0], name
        raise KeyboardInterrupt
    assert all(layer.weight.is_contiguous() for layer in layers)
    for name, parameter in model.named_parameters():
        place, values = before[name]
        assert parameter.is_contiguous() and torch.equal(parameter, values), name
        assert parameter.requires_grad or parameter.data_ptr() == place, name


def test_training_with_checkpointing_learns_as_well(colours, monkeypatch):
    entered = []

    def checkpointed(model):
        entered.append(model)
        return ksm.train.checkpointing.checkpointed(model)

    monkeypatch.setattr(ksm.train.loop, "checkpointed", checkpointed)
    settings = dataclasses.replace(QUICK, epochs=2, checkpointing=True)
    task = learn(colours, resnet18(weights=None).eval(), training=settings)
    assert len(entered) == 2
    assert task.metrics["val"]["accuracy"] > 0.9


@pytest.mark.parametrize("channels", [3, 15, 16])
def test_strides_over_few_channels_are_not_trained_channels_last(channels):
    """In that order torch writes past the end of their weight's gradient."""
    for layer, overflows in [
        (nn.Conv2d(channels, 8, 1, stride=2), channels < 16),
        (nn.Conv2d(2 * channels, 8, 1, stride=(1, 2), groups=2), channels < 16),
        (nn.Conv2d(channels, 8, 1), False),
        (nn.Conv2d(channels, 8, 3, stride=2), False),
    ]:
        network = nn.Sequential(layer, nn.BatchNorm2d(8))
        expected = torch.contiguous_format if overflows else torch.channels_last
        assert memory_format_of(network, (layer.in_channels, 8, 8)) == expected


STRIDED = """
import torch, ksm
from torch import nn
from ksm.train.memory_format import memory_format_of, ordered
model = ksm.add_task(nn.Sequential(nn.Conv2d(3, 48, 1, 2), nn.Flatten(), nn.Linear(48, 2)), 2)
model = model.train()
order = memory_format_of(model, (3, 1, 1))
images = torch.randn(2, 3, 64, 64).contiguous(memory_format=order)
kept = []
with ordered(model, order):
    for _ in range(30):
        model[0](images).sum().backward()
        kept.append(torch.empty(144))
"""


def test_such_a_network_is_trained_to_the_end():
    """In a process of its own: what torch does there is not an exception."""
    subprocess.run([sys.executable, "-c", STRIDED], check=True, timeout=120)


def test_weights_have_that_order_in_each_step_of_training(colours):
    seen = []

    class Spy(Callback):
        def step(self, progress):
            seen.append(models[-1].body.weight.is_contiguous(memory_format=torch.channels_last))

    models = []
    real = ksm.train.loop.ordered

    def ordered_too(model, memory_format):
        models.append(model)
        return real(model, memory_format)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ksm.train.loop, "ordered", ordered_too)
        learn(colours, method="finetune", callback=Spy())
    assert seen and all(seen) and models[-1].body.weight.is_contiguous()


@pytest.mark.parametrize("twice", [False, True])
def test_a_block_that_is_partly_trunk_keeps_its_trunk_when_it_is_computed_twice(colours, twice):
    found = scan(colours)
    images = {split: load(part, PREPROCESS, "flip") for split, part in found.splits.items()}
    settings = dataclasses.replace(QUICK, checkpointing=twice)
    run = Run(images["train"], images["val"], settings, CLASSES, Callback(), 2**30)
    start = "features.7.conv.1"
    model = ksm.add_task(mobilenet_v2(weights=None).eval(), 3, method=KSM(mask_from=start))
    trained, *_ = run._above_trunk(model, start, "classifier.1")
    assert (trained is model) == twice
    assert run.trunk == (
        "run at each step: it ends inside of a checkpointed block"
        if twice
        else "run once, outputs kept"
    )

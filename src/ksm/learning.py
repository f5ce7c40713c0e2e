"""From a folder of labelled images to a task."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import ksm
from ksm.backbones import Description, describe
from ksm.backbones import backbone as backbone_by_name
from ksm.bank import Bank
from ksm.course import Run
from ksm.data.folder import Folder, Sample, scan, spread
from ksm.data.load import MEMORY, Images, load
from ksm.data.preprocess import Preprocess
from ksm.errors import KsmError
from ksm.evaluation import evaluate
from ksm.methods import Grow, Method, Outcome, make
from ksm.task import Task, add_task, origin
from ksm.training import Training
from ksm.watch import Watcher


def learn(
    backbone: nn.Module | str,
    folder: str | os.PathLike[str],
    *,
    name: str,
    method: Method | str = "ksm",
    training: Training | None = None,
    size: int | None = None,
    crop: float = 1.0,
    stretch: bool = False,
    head: str | None = None,
    limit: int | None = None,
    earlier: Sequence[Task] = (),
    strict: bool = False,
    half: bool = False,
    watcher: Watcher | None = None,
) -> Task:
    """Learn a task from a folder of labelled images; see `ksm.data.folder.scan` for its layout.

    The validation split selects the epoch. The test split, where there is one, is read once: at
    the end, by the task as it will be stored.

    Args:
        backbone: a module, only read; or a name. Training runs on the device that accelerate
            chooses: an accelerator if there is one.
        name: the task's name.
        size: side of the images in pixels, where not the backbone's own.
        crop: share of the short side that is seen; 1: all of it. ImageNet's habit of 0.875 cuts
            off the border, which costs much where the object fills the picture.
        stretch: squeeze each image into the square, whatever its shape, so that all of it is seen.
        head: see `ksm.add_task`.
        limit: use at most so many training images, the same ones at each run.
        earlier: see `ksm.add_task`.
        strict: an unreadable image is an error.
        half: store normalisation and head in float16; accuracies are measured with it.

    Raises:
        KsmError: the folder, a setting or the backbone cannot be used, or the run was interrupted
            before its first epoch ended.
    """
    watcher = watcher or Watcher()
    training = training or Training()
    method = make(method) if isinstance(method, str) else method
    Bank().path(name)  # must be plain, which saving would tell only after the training
    found = scan(folder)
    if strict and found.others:
        raise KsmError(f"{found.others[0]}: its name is no image's, and strict was asked for")
    if isinstance(backbone, str):
        backbone = backbone_by_name(backbone)
    preprocess = describe(backbone, head).preprocess
    if size is not None:
        preprocess = dataclasses.replace(preprocess, size=size)
    preprocess = dataclasses.replace(preprocess, crop=crop, stretch=stretch)
    if not 16 <= preprocess.size <= 4096:
        raise KsmError(f"size is {preprocess.size}: expected 16 to 4096 pixels")
    if not 0 < crop <= 1:
        raise KsmError(f"crop is {crop}: expected a value from 0 to 1")
    chosen = {**found.splits, "train": _limited(found, limit)}
    watcher.scanned(
        dataclasses.replace(found, splits=chosen), training.epochs_for(len(chosen["train"]))
    )
    images: dict[str, Images] = {}
    for split, samples in chosen.items():
        images[split] = load(
            samples,
            preprocess,
            training.augment if split == "train" else "none",
            training.min_area,
            strict,
            watcher.image,
            MEMORY - sum(part.held for part in images.values()),
        )
    skipped = [file for part in images.values() for file in part.skipped]
    watcher.skipped(skipped)
    _check_classes(found, images)

    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(gpus):
        torch.manual_seed(training.seed)

        left = MEMORY - sum(part.held for part in images.values())
        run = Run(images["train"], images["val"], training, watcher, left)

        def attempt(grown: float) -> tuple[nn.Module, int, Outcome] | float:
            """The model, how much of it was trained, and the outcome; or the size to try next."""
            count = len(found.classes)
            try:
                model = add_task(
                    backbone, count, method=method, head=head, size=preprocess.size,
                    earlier=earlier, grown=grown,
                )  # fmt: skip
                _check_outputs(model, count, preprocess, describe(backbone, head))
                start = origin(model).method.mask_from
                watcher.attached(method.summary(model), start)
                return model, method.trained(model), run.go_through(model)
            except Grow as wish:
                return wish.size

        result = attempt(1.0)
        while not isinstance(result, tuple):
            result = attempt(result)
        model, trained, outcome = result
        task = Task.of(model, name, found.classes, preprocess=preprocess)
    if half:
        task = task.halved()
    best, stopped = outcome.record, run.stopped
    metrics: dict[str, Any] = {
        "val": {"accuracy": best["val_accuracy"], "images": len(images["val"])}
    }
    folded = task.on(backbone).to(next(model.parameters()).device)
    try:
        if half or training.precision != "no":  # the task is used as it is stored
            metrics["val"] = evaluate(folded, images["val"])
        if len(images["test"]):
            metrics["test"] = evaluate(folded, images["test"])
    except KeyboardInterrupt:
        stopped = "interrupted before the test split was read"
    record = {
        **task.record,
        "training": dataclasses.asdict(training),
        "history": run.epochs,
        "epochs": len(run.epochs),
        "best_epoch": best["epoch"],
        "stopped": stopped,
        "seconds": run.seconds,
        "parameters": trained,
        "images": {split: len(part) for split, part in images.items()},
        "skipped": len(skipped),
        "device": str(next(model.parameters()).device),
        "versions": {
            "python": platform.python_version(),
            "ksm": ksm.__version__,
            **{package: version(package) for package in ("torch", "timm")},
        },
    }
    return dataclasses.replace(task, metrics=metrics, record=record)


def _limited(folder: Folder, limit: int | None) -> list[Sample]:
    samples = folder.splits["train"]
    if limit is None or limit >= len(samples):
        return samples
    if limit < len(folder.classes):
        raise KsmError(
            f"limit is {limit}: expected at least {len(folder.classes)}, an image a class"
        )
    chosen = spread(samples, limit)
    if missing := {label for _, label in samples} - {label for _, label in chosen}:
        name = folder.classes[min(missing)]
        raise KsmError(f"limit {limit} leaves no training image of class {name!r}: raise it")
    return chosen


@torch.no_grad()
def _check_outputs(
    model: nn.Module, classes: int, preprocess: Preprocess, description: Description
) -> None:
    """One black image through the model, before anything is trained, tells a wrong head or size."""
    where = next(model.parameters()).device
    model.eval()
    try:
        outputs = model(torch.zeros(1, 3, preprocess.size, preprocess.size, device=where))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KsmError(
            f"backbone {description.name} does not take images of {preprocess.size} pixels with "
            f"head {description.head!r} ({reason}); try another size or head"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (1, classes):
        shape = (
            tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        )
        raise KsmError(
            f"with head {description.head!r} the network's output has shape {shape}, expected "
            f"(1, {classes}): name its last layer with head (--head)"
        )


def _check_classes(folder: Folder, images: dict[str, Images]) -> None:
    """Unreadable files must not have emptied a class or a split."""
    left = {label for _, label in images["train"].samples}
    for label, name in enumerate(folder.classes):
        if label not in left:
            raise KsmError(f"{folder.root}: no training image of class {name!r} can be read")
    if not len(images["val"]):
        raise KsmError(f"{folder.root}: no validation image can be read")

"""From a folder of labelled images to a task."""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib.metadata import version
from typing import Any, Protocol

import torch
from torch import nn

from ksm.backbones import backbone as backbone_by_name
from ksm.backbones import describe
from ksm.data.folder import Folder, Sample, scan
from ksm.data.load import Images, Skipped, load
from ksm.errors import KsmError
from ksm.evaluation import evaluate
from ksm.methods import Method, make
from ksm.task import Task, add_task, parameter_groups
from ksm.training import Progress, Training, fit


class Watcher(Protocol):
    """Who wants to see a run; every verb may do nothing."""

    def scanned(self, folder: Folder, epochs: int) -> None: ...
    def image(self) -> None: ...
    def skipped(self, files: list[Skipped]) -> None: ...
    def step(self, progress: Progress) -> None: ...
    def epoch(self, record: dict[str, Any]) -> None: ...


class Silent:
    """A watcher that shows nothing."""

    def scanned(self, folder: Folder, epochs: int) -> None: ...
    def image(self) -> None: ...
    def skipped(self, files: list[Skipped]) -> None: ...
    def step(self, progress: Progress) -> None: ...
    def epoch(self, record: dict[str, Any]) -> None: ...


def learn(
    backbone: nn.Module | str,
    folder: str | os.PathLike[str],
    *,
    name: str,
    method: Method | str = "ksm",
    training: Training | None = None,
    size: int | None = None,
    crop: float = 1.0,
    head: str | None = None,
    limit: int | None = None,
    strict: bool = False,
    watcher: Watcher | None = None,
) -> Task:
    """Learn a task from a folder of labelled images; see `ksm.data.folder.scan` for its layout.

    The validation split selects the epoch. The test split, where there is one, is read once: at
    the end, by the task as it will be stored.

    Args:
        backbone: a module, only read, on the device where training is to run; or a name.
        name: the task's name.
        size: side of the images in pixels, where not the backbone's own.
        crop: share of the short side that is seen; 1: all of it. ImageNet's habit of 0.875 cuts
            off the border, which costs much where the object fills the picture.
        head: see `ksm.add_task`.
        limit: use at most so many training images, the same ones at each run.
        strict: an unreadable image is an error.

    Raises:
        KsmError: the folder, a setting or the backbone cannot be used, or the run was interrupted
            before its first epoch ended.
    """
    watcher = watcher or Silent()
    training = training or Training()
    method = make(method) if isinstance(method, str) else method
    found = scan(folder)
    if isinstance(backbone, str):
        backbone = backbone_by_name(backbone)
    preprocess = describe(backbone, head).preprocess
    preprocess = dataclasses.replace(preprocess, size=size or preprocess.size, crop=crop)
    if preprocess.size < 16:
        raise KsmError(f"size is {size}: expected at least 16 pixels")
    if not 0 < crop <= 1:
        raise KsmError(f"crop is {crop}: expected a value from 0 to 1")
    chosen = {**found.splits, "train": _limited(found.splits["train"], limit)}
    watcher.scanned(
        dataclasses.replace(found, splits=chosen), training.epochs_for(len(chosen["train"]))
    )
    images = {
        split: load(
            samples,
            preprocess,
            training.augment if split == "train" else "none",
            training.min_area,
            strict,
            watcher.image,
        )
        for split, samples in chosen.items()
    }
    skipped = [file for part in images.values() for file in part.skipped]
    watcher.skipped(skipped)
    _check_classes(found, images)

    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = add_task(backbone, len(found.classes), method=method, head=head)
        kept: list[Task] = []

        def keep() -> None:
            kept[:] = [Task.of(model, name, found.classes, preprocess=preprocess)]

        groups = parameter_groups(model)
        trained = sum(p.numel() for group in groups for p in group["params"])
        history = fit(
            model,
            groups,
            images["train"],
            images["val"],
            training,
            on_best=keep,
            on_epoch=watcher.epoch,
            on_step=watcher.step,
        )
    if not kept:
        raise KsmError("interrupted before the first epoch ended: there is nothing to keep")
    task = kept[0]
    best = history.epochs[(history.best or 1) - 1]
    metrics: dict[str, Any] = {
        "val": {"accuracy": best["val_accuracy"], "images": len(images["val"])}
    }
    if len(images["test"]):
        folded = task.on(backbone).to(next(model.parameters()).device)
        metrics["test"] = evaluate(folded, images["test"])
    record = {
        **task.record,
        "training": dataclasses.asdict(training),
        "history": history.epochs,
        "best_epoch": history.best,
        "stopped": history.stopped,
        "seconds": history.seconds,
        "parameters": trained,
        "images": {split: len(part) for split, part in images.items()},
        "skipped": len(skipped),
        "device": str(next(model.parameters()).device),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("ksm", "torch", "timm")},
        },
    }
    return dataclasses.replace(task, metrics=metrics, record=record)


def _limited(samples: list[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, spread evenly over the list, which is sorted by class."""
    if limit is None or limit >= len(samples):
        return samples
    if limit < 2:
        raise KsmError(f"limit is {limit}: expected at least 2 training images")
    return [samples[i * len(samples) // limit] for i in range(limit)]


def _check_classes(folder: Folder, images: dict[str, Images]) -> None:
    """Unreadable files must not have emptied a class or a split."""
    left = {label for _, label in images["train"].samples}
    for label, name in enumerate(folder.classes):
        if label not in left:
            raise KsmError(f"{folder.root}: no training image of class {name!r} can be read")
    if not len(images["val"]):
        raise KsmError(f"{folder.root}: no validation image can be read")

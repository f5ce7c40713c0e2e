"""Tasks for tests, and what is done with their files."""

import dataclasses
import resource
from contextlib import contextmanager

import torch

from conftest import PREPROCESS, tiny
from ksm import Task, add_task

CLASSES = ("grüne Äpfel", "猫", "red")


def made(name="colours", method="ksm", seed=0):
    backbone = tiny()
    torch.manual_seed(seed)
    model = add_task(backbone, 3, method=method)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 5e-3, 1e-2)
    return Task.of(
        model,
        name,
        CLASSES,
        preprocess=PREPROCESS,
        record={"note": "some words"},
        metrics={"val": {"accuracy": 0.5, "images": 8}},
    )


def same(one, two):
    plain = [dataclasses.replace(task, tensors={}) for task in (one, two)]
    return (
        plain[0] == plain[1]
        and one.tensors.keys() == two.tensors.keys()
        and all(
            t.dtype == two.tensors[k].dtype and torch.equal(t, two.tensors[k])
            for k, t in one.tensors.items()
        )
    )


@contextmanager
def no_file_longer_than(size):
    """A limit that the kernel itself enforces, as it does a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

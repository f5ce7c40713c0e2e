"""Short runs, for the tests of this room."""

import torch

import ksm
from conftest import PREPROCESS, tiny
from ksm import Training
from ksm.data.load import Images
from ksm.methods import Phase
from ksm.train.objective import Classification

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

"""Another task than classification in the same loop: only the objective and the data differ."""

import matplotlib.cbook
import numpy as np
import pytest
import torch
from torch.nn import functional

import ksm
from conftest import tiny
from ksm import Training
from ksm.methods import Phase
from ksm.train.evaluate import evaluate
from ksm.train.loop import fit
from ksm.train.objective import Objective


class Regression(Objective):
    """A number an image: mean squared error; mean absolute error and R²."""

    metric = "r2"

    def loss(self, outputs, targets):
        return functional.mse_loss(outputs.squeeze(1), targets.to(outputs))

    def measure(self, batches):
        pairs = [(outputs.squeeze(1), targets) for outputs, targets in batches]
        found, wanted = (torch.cat(each).double() for each in zip(*pairs, strict=True))
        squares = (found - wanted).square()
        return {
            "loss": squares.mean().item(),
            "mae": (found - wanted).abs().mean().item(),
            "r2": 1 - (squares.sum() / (wanted - wanted.mean()).square().sum()).item(),
            "images": len(wanted),
        }

    def score(self, figures):
        return figures["r2"]


class Terrain:
    """Squares of 32 by 32 points of a survey of the Jacksboro fault, with how rugged each is.

    The target, a float, is the mean step in height from a point to the next, standardised. It has
    no base class and no samples: nothing but what `ksm.data.features.Examples` asks for.
    """

    shape = (3, 32, 32)

    def __init__(self, height):
        corners = [(y, x) for y in range(0, height.shape[0] - 31, 16)
                   for x in range(0, height.shape[1] - 31, 16)]  # fmt: skip
        self.squares = [height[y : y + 32, x : x + 32] for y, x in corners]

    def inputs(self, batch):
        return (batch / 50).expand(-1, 3, -1, -1)

    def __len__(self):
        return len(self.squares)

    def __getitem__(self, index):
        square = self.squares[index]
        steps = np.abs(np.diff(square)).mean() + np.abs(np.diff(square, axis=0)).mean()
        return torch.from_numpy(square - square.mean())[None], float(steps - 31) / 7


@pytest.fixture(scope="module")
def terrain():
    """A split by place, since squares overlap."""
    survey = matplotlib.cbook.get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)
    with np.load(survey) as arrays:
        height = arrays["elevation"].astype(np.float32)
    return Terrain(height[:, :270]), Terrain(height[:, 270:])


def test_a_regression_is_learned(terrain):
    train, val = terrain
    torch.manual_seed(0)
    model = ksm.add_task(tiny(), 1, method=ksm.KSM(lr=0.02))
    objective, best = Regression(1), []
    start = evaluate(model.eval(), val, objective)
    assert start["images"] == len(val) and start["loss"] > 1
    history = fit(
        model,
        Phase("train", 8, ksm.parameter_groups(model)),
        train,
        val,
        Training(batch=16),
        objective,
        on_best=lambda score, record: best.append((score, record)),
    )
    end = evaluate(model.eval(), val, objective)
    assert end["loss"] < start["loss"] / 10 and end["mae"] < start["mae"] / 3 and end["r2"] > 0.7
    score, record = best[-1]
    assert score == record["val_r2"] == max(each["val_r2"] for each in history.epochs)
    assert history.epochs[-1]["val_r2"] == end["r2"] and "val_accuracy" not in record
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]

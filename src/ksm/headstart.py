"""A head to begin with: the linear one that is best on what the backbone makes of the images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from ksm.data.features import Examples
from ksm.evaluation import BATCH
from ksm.training import settle

DECAY = 0.1
"""Weight of half the squared norm of the head, per unit of its input's mean square."""


def set_head(model: nn.Module, head: nn.Module, images: Examples) -> bool:
    """Set a Linear head by softmax regression (L-BFGS) on its inputs for all images, which takes
    one pass forward; BatchNorm statistics that are the task's are estimated on these images before.
    Tell whether that was done: other kinds of heads are left as they are.

    Args:
        model: a task model, or its part above a trunk; left in evaluation mode.
        head: its last layer.
    """
    if type(head) is not nn.Linear:
        return False
    model.eval()
    settle(model, images, BATCH, 16, torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    device = head.weight.device
    labels: list[Tensor] = []
    try:
        with torch.no_grad():
            for pixels, label in DataLoader(images, BATCH, generator=torch.Generator()):
                model(images.inputs(pixels.to(device)))
                labels.append(label)
    finally:
        hook.remove()
    weight, bias = regression(
        torch.cat(found).float(), torch.cat(labels).to(device), len(head.bias)
    )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return True


def regression(inputs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Softmax regression: weight (classes, n) and bias (classes,).

    Args:
        inputs: (images, n), float32.
        labels: (images,), int64.
    """
    centre, scale = inputs.mean(0), inputs.square().mean().sqrt() + 1e-12
    inputs = (inputs - centre) / scale
    weight = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = functional.cross_entropy(inputs @ weight.T + bias, labels)
        loss = loss + DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    search.step(closure)  # pyright: ignore[reportArgumentType]
    weight = weight.detach() / scale
    return weight, bias.detach() - weight @ centre

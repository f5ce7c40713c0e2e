"""The trunk, the layers before the first one that a task changes, run once for many tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ksm.core.forward import forward_of


class Rest(nn.Module):
    """A model from the end of its trunk on; see `split`.

    Its input are the outputs of the `needed` modules for n images, each a tensor (n, *shape); its
    output is the model's for these images. The model's own forward runs, whatever the network's
    code is: each trunk module returns a given tensor instead of computing one. The image, and the
    outputs that nothing needs, are NaN, which takes no memory and would show in the output. For one
    thread at a time.

    Args:
        model: the whole model.
        shapes: of one image, by the name "", and of each trunk module's output for one image.
        needed: the trunk modules whose outputs the rest reads, in the order of their calls.
    """

    def __init__(
        self, model: nn.Module, shapes: dict[str, torch.Size], needed: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.shapes = shapes
        self.needed: tuple[str, ...] = tuple(needed)

    def forward(self, *features: Tensor) -> Any:
        nothing = features[0].new_full((), math.nan)
        given = {n: nothing.expand(len(features[0]), *shape) for n, shape in self.shapes.items()}
        given.update(zip(self.needed, features, strict=True))
        image = given.pop("")
        with ExitStack() as stack:
            for name, value in given.items():
                stack.enter_context(_giving(self.model.get_submodule(name), value))
            return self.model(image)

    @torch.no_grad()
    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of the needed modules, and nothing after the last of them.

        Args:
            images: shape (n, 3, height, width), as the model takes them.
        """
        found = _outputs(self.model, self.needed, images)
        return tuple(found[name] for name in self.needed)


@torch.no_grad()
def split(
    model: nn.Module, mask_from: str, head: str, shape: tuple[int, ...] | torch.Size
) -> Rest | None:
    """Split the trunk before `mask_from` off a model; None where the model cannot be split.

    A model cannot be split where a tensor of the trunk is trained; where a trunk module is called
    twice, or after a module outside the trunk; where a trunk module's output is no tensor with a
    row for each image; and where the rest reads more of a trunk module than its output. Two random
    images go through the model and through its rest, whose outputs must be equal to the bit. The
    model is left in evaluation mode.

    Args:
        head: qualified name of the head, which is never part of the trunk.
        shape: of an image, (3, height, width).
    """
    trunk = _largest(model, mask_from, head)
    if any(p.requires_grad and _in(trunk, mask_from, name) for name, p in model.named_parameters()):
        return None
    where = next(model.parameters()).device
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(where)
    model.eval()
    try:
        called = _called(model, trunk, mask_from, images)
        found = _outputs(model, called, images) if called else {}
        if not found or any(len(output) != 2 for output in found.values()):
            return None
        shapes = {"": images.shape[1:], **{name: t.shape[1:] for name, t in found.items()}}
        expected = model(images)

        def equal(needed: Sequence[str]) -> bool:
            rest = Rest(model, shapes, needed)
            return torch.equal(rest(*(found[name].clone() for name in needed)), expected)

        needed = called[-1:]
        if not equal(needed):
            needed = called
            for name in called[:-1]:
                fewer = [other for other in needed if other != name]
                needed = fewer if equal(fewer) else needed
        return Rest(model, shapes, needed) if equal(needed) else None
    except Exception:  # the network's own code; run whole, it is as good as it was
        return None


def shares(model: nn.Module, backbone: nn.Module, mask_from: str, head: str) -> bool:
    """Tell whether the trunk of a model before `mask_from` has the backbone's own values."""
    trunk, theirs = _largest(model, mask_from, head), backbone.state_dict()
    return all(
        name in theirs
        and tensor.shape == theirs[name].shape
        and (tensor.data_ptr() == theirs[name].data_ptr() or torch.equal(tensor, theirs[name]))
        for name, tensor in model.state_dict().items()
        if _in(trunk, mask_from, name)
    )


def _largest(model: nn.Module, mask_from: str, head: str) -> list[str]:
    """List the largest modules registered before `mask_from` that hold neither it nor the head.

    A list of modules is never called; its members count instead.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if name == mask_from:
            break
        holds = not name or any(f"{end}.".startswith(f"{name}.") for end in (mask_from, head))
        is_list = type(module).forward is nn.Module.forward
        if not holds and not is_list and not _inside(name, found):
            found.append(name)
    return found


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _in(trunk: Sequence[str], mask_from: str, tensor: str) -> bool:
    """Tell whether a tensor is the trunk's, or directly in a module around `mask_from`, whose own
    code runs between the trunk's modules."""
    owner = tensor.rpartition(".")[0]
    return not owner or _inside(tensor, trunk) or mask_from.startswith(f"{owner}.")


def _called(model: nn.Module, trunk: Sequence[str], mask_from: str, images: Tensor) -> list[str]:
    """List the trunk modules in the order of their calls.

    The list is empty where one is called twice, or after a module that is neither in the trunk nor
    around `mask_from`.
    """
    calls: list[str] = []

    def noting(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: calls.append(name)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            around = not name or mask_from.startswith(f"{name}.")
            if not around and not _inside(name, trunk):
                note = noting(name if name in trunk else "")
                stack.enter_context(module.register_forward_pre_hook(note))
        model(images)
    first = calls.index("") if "" in calls else len(calls)
    before, after = calls[:first], calls[first:]
    return [] if any(after) or len(set(before)) < len(before) else before


class _Done(Exception):
    """Ends a forward pass early."""


def _outputs(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of the modules for the images; the last of `names` is called last."""
    found: dict[str, Tensor] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[name] = output
            if name == names[-1]:
                raise _Done

        return note

    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(noting(name))
            stack.enter_context(hook)
        with suppress(_Done):
            model(images)
    return found


def _giving(module: nn.Module, value: Tensor) -> AbstractContextManager[None]:
    """Let the module return `value`, whatever its inputs are, inside the block."""
    return forward_of(module, lambda *inputs, **options: value)

"""LoRA: a sum of a few rank-one matrices is added to each frozen weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ksm.core.clone import own_norms
from ksm.errors import KsmError
from ksm.methods._layers import hold_trunk, others, parametrizations
from ksm.methods._masked import Norms, check_norms
from ksm.methods.base import Method, Tensors


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adapters (arXiv 2106.09685): `W_t = W + scale * B A`, with `A` and `B` trained.

    The PEFT library makes the adapters and their start values, which needs the extra `ksm[lora]`.
    They act on the weight, as PEFT's do once merged, so that they also reach layers whose own
    class does more than convolve, and a stored task gives the same outputs to the bit. A stored
    task is used without PEFT.

    Grouped convolutions, depthwise ones among them, and transposed convolutions keep the
    backbone's weights: PEFT has nothing for the latter, and of the former it lets an output see
    all inputs, which is no weight of that layer ("Merging is not supported").

    Args:
        rank: of `B A`, at least 1.
        scale: what PEFT calls `lora_alpha / r`.
        adapter_lr: learning rate of `A` and `B`.
        norms, target_modules: see `ksm.methods._masked.Masked`; for "mask" read "adapter".
    """

    name: ClassVar[str] = "lora"

    rank: int = 4
    scale: float = 1.0
    adapter_lr: float = 1e-3
    norms: Norms = "task"
    target_modules: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norms(self.norms)
        if self.rank < 1:
            raise KsmError(f"rank {self.rank}: expected a whole number of at least 1")
        if not 0 < self.scale < math.inf:
            raise KsmError(f"scale {self.scale}: expected a number greater than 0")

    def layers(self, model: nn.Module, head: str) -> dict[str, nn.Module]:
        """Return the layers that get an adapter, by qualified name.

        Raises:
            KsmError: there are none.
        """
        wanted = super().layers(model, head)
        found = {name: layer for name, layer in wanted.items() if _can_adapt(layer)}
        if not found:
            raise KsmError(
                f"no layer to adapt: target_modules {self.target_modules!r} names grouped or "
                "transposed convolutions alone, which method lora leaves as they are"
            )
        return found

    def attach(self, model: nn.Module, head: str, earlier: Sequence[Tensors] = ()) -> Iterable[str]:
        layers = list(self.layers(model, head).values())
        for layer, (a, b) in zip(layers, _adapters(layers, self.rank), strict=True):
            parametrize.register_parametrization(
                layer, "weight", Adapter(a, b, self.scale), unsafe=True
            )
        outside = hold_trunk(model, self.mask_from) | {head}
        return list(own_norms(model, outside)) if self.norms == "task" else []

    def groups(self, model: nn.Module, head: str) -> list[dict[str, Any]]:
        adapters = [p for _, each in parametrizations(model, Adapter) for p in each.parameters()]
        return [
            {"params": others(model, adapters), "lr": self.lr},
            {"params": adapters, "lr": self.adapter_lr},
        ]

    def pack(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            f"adapter/{name}/{key}": tensor
            for name, each in parametrizations(model, Adapter)
            for key, tensor in each.named_parameters()
        }

    @torch.no_grad()
    def folded(
        self, network: nn.Module, head: str, tensors: Tensors, earlier: Sequence[Tensors] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self.layers(network, head).items():
            weight = layer.weight
            assert isinstance(weight, Tensor)
            a, b = (
                tensors[f"adapter/{name}/{key}"].to(weight.device, copy=True) for key in ("a", "b")
            )
            yield f"{name}.weight", adapted(weight.detach(), a, b, self.scale)

    def part_of(self, name: str) -> str:
        return "weights"


class Adapter(nn.Module):
    """Parametrization of one layer's weight.

    Args:
        a, b, scale: see `adapted`.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return adapted(weight, self.a, self.b, self.scale)


def adapted(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return `W + scale * B A`, of the weight's dtype: the merged weight of PEFT's layers.

    Args:
        weight: of a convolution (outputs, inputs, *kernel) or a Linear (outputs, inputs).
        a: (rank, inputs, *kernel), float32.
        b: (outputs, rank, *ones), float32.
    """
    delta = (b.flatten(1) @ a.flatten(1)).view(weight.shape)
    return weight + (scale * delta).to(weight.dtype)


def _can_adapt(layer: nn.Module) -> bool:
    if isinstance(layer, _ConvNd):
        return layer.groups == 1 and not isinstance(layer, _ConvTransposeNd)
    return True


def _adapters(layers: Sequence[nn.Module], rank: int) -> list[tuple[Tensor, Tensor]]:
    """Return PEFT's fresh `A` and `B` for each layer, float32, on its device; see `adapted`."""
    from ksm.core import _torchvision as _torchvision  # peft imports torchvision

    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise KsmError("method lora needs peft: pip install 'ksm[lora]'") from None
    plain = nn.ModuleList(_plain(layer) for layer in layers)
    config = LoraConfig(r=rank, target_modules=[str(i) for i in range(len(plain))])
    made: Any = inject_adapter_in_model(config, plain, "task")
    return [
        (each.lora_A["task"].weight.detach().float(), each.lora_B["task"].weight.detach().float())
        for each in made
    ]


def _plain(layer: nn.Module) -> nn.Module:
    """Return a layer of torch's own class around the same weight, for PEFT to wrap: the model keeps
    its modules, and PEFT need not know their classes."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    outputs, inputs, *kernel = weight.shape
    if kernel:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
        plain = kind(inputs, outputs, tuple(kernel), bias=False, device="meta")  # pyright: ignore[reportArgumentType]
    else:
        plain = nn.Linear(inputs, outputs, bias=False, device="meta")
    plain.weight = nn.Parameter(weight.data, requires_grad=False)
    return plain

"""How the weight of a layer is cut into the units that a score stands for.

A unit is, by granularity:

| granularity | convolution weight (o, i, *k)  | linear weight (o, i)    |
|-------------|--------------------------------|-------------------------|
| `kernel`    | the kernel of an (o, i) pair   | a square block, 4 x 4   |
| `group`     | kernels of 8 input channels    | 8 inputs of one output  |
| `channel`   | all of one output channel      | all of one output       |
| `element`   | a single weight                | a single weight         |

`i` is the number of input channels that one output sees: 1 in a depthwise convolution. A kernel
of a pointwise (1 x 1) convolution is a single weight; a unit there can be the kernels of a few
neighbouring input channels instead. A transposed convolution stores its weight as
(inputs, outputs / groups, *k), which is read as the (o, i, *k) of the same connections.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Granularity = Literal["kernel", "group", "channel", "element"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

GROUP = 8
BLOCK = 4


def can_mask(module: nn.Module) -> bool:
    """Tell whether the module is a convolution (of any kind) or a Linear, with a weight."""
    return isinstance(module, (_ConvNd, nn.Linear)) and isinstance(
        getattr(module, "weight", None), Tensor
    )


@dataclass(frozen=True)
class Units:
    """How one weight is cut into units.

    Args:
        weight: shape (o, i, *k) of the weight, for a transposed convolution after turning it.
        units: number of units along o and i, and 1 or k along the kernel; the shape of the scores.
        per_unit: outputs and inputs in one unit (the last unit along an axis can have fewer).
        transposed_groups: 0, or the number of groups of a transposed convolution.
    """

    weight: tuple[int, ...]
    units: tuple[int, ...]
    per_unit: tuple[int, int]
    transposed_groups: int = 0

    @functools.cached_property
    def repeat(self) -> int:
        """How many neighbouring inputs one unit has; 1 where units do not divide them evenly."""
        outputs, inputs = self.per_unit
        even = outputs == 1 and self.weight[1] % inputs == 0
        return inputs if even and self.units[1] > 1 else 1

    def spread(self, mask: Tensor) -> Tensor:
        """Spread one factor a unit to a tensor that broadcasts over the weight.

        Args:
            mask: shape `units`, or with each factor `repeat` times along the second dimension.
        """
        for axis, size in enumerate(self.per_unit):
            if 1 < mask.shape[axis] < self.weight[axis]:
                mask = mask.repeat_interleave(size, axis).narrow(axis, 0, self.weight[axis])
        if not self.transposed_groups:
            return mask
        outputs, kernel = mask.shape[0], mask.shape[2:]
        g = self.transposed_groups
        mask = mask.expand(outputs, self.weight[1], *kernel).reshape(
            g, outputs // g, self.weight[1], *kernel
        )
        return mask.transpose(1, 2).reshape(g * self.weight[1], outputs // g, *kernel)


def units_of(module: nn.Module, granularity: Granularity, pointwise: int = 1) -> Units:
    """Cut a convolution's or Linear's weight into units; see the table above.

    Args:
        pointwise: input channels in a unit of a pointwise convolution, where a unit is a kernel.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    shape, turned = tuple(weight.shape), 0
    if isinstance(module, _ConvTransposeNd):
        turned = module.groups
        shape = (shape[1] * turned, shape[0] // turned, *shape[2:])
    kernel = (1, pointwise if math.prod(shape[2:]) == 1 else 1)
    per_unit = {
        "kernel": (BLOCK, BLOCK) if isinstance(module, nn.Linear) else kernel,
        "group": (1, GROUP),
        "channel": (1, shape[1]),
        "element": (1, 1),
    }[granularity]
    outputs, inputs = (math.ceil(shape[axis] / per_unit[axis]) for axis in (0, 1))
    inside = shape[2:] if granularity == "element" else (1,) * len(shape[2:])
    return Units(shape, (outputs, inputs, *inside), per_unit, turned)

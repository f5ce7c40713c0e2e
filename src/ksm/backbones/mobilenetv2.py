"""MobileNetV2 (Sandler et al., arXiv 1801.04381), the same network as torchvision's to the bit.

torchvision itself takes as long to import as torch; with the network here, the default backbone
needs neither torchvision nor timm. Names of modules, start values and outputs are torchvision's.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

_STAGES = (
    # expansion, channels, blocks, stride of the first block (table 2 of the paper)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _FEATURES = 32, 1280


class InvertedResidual(nn.Module):
    """A block that widens, filters each channel by itself, and narrows again."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_layer(inputs, hidden, kernel=1)]
        layers.append(_layer(hidden, hidden, stride=stride, groups=hidden))
        layers.append(nn.Conv2d(hidden, outputs, 1, bias=False))
        layers.append(nn.BatchNorm2d(outputs))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """The network at width 1; random weights are drawn from torch's global generator."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_layer(3, _STEM, stride=2)]
        inputs = _STEM
        for expansion, channels, blocks, stride in _STAGES:
            for place in range(blocks):
                first = stride if place == 0 else 1
                layers.append(InvertedResidual(inputs, channels, first, expansion))
                inputs = channels
        layers.append(_layer(inputs, _FEATURES, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_FEATURES, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map RGB images (N, 3, H, W) to logits (N, classes)."""
        pooled = functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(pooled.flatten(1))


def _layer(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU6."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))

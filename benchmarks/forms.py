"""What each faster form of a computation brings: a default training step with it and without it.

Every form takes its turn in each repeat. Writes results/speed/forms-before.{json,md}, or what --out
says. On a GPU: python benchmarks/forms.py --device cuda --graphs --out results/speed/forms-gpu
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from measuring import in_turns, ms, over, write
from step import CLASSES, NETWORKS, Step, captured, copied, step_of, waited
from torch import Tensor, nn
from torchvision.models import resnet50

import ksm
from ksm.kernels import few_passes as direct
from ksm.core.allocator import keep_freed_blocks
from ksm.again import made_again
from ksm.compare.report import table
from ksm.train.checkpointing import twice
from ksm.methods import ksm as soft_masks
from ksm.train.memory_format import ordered
from ksm.shortcut import short
from ksm.kernels.grouped import together

NETWORKS = {**NETWORKS, "mobilenetv2": lambda: ksm.backbone("mobilenetv2", pretrained=False),
            "resnet50": lambda: resnet50(weights=None)}


class AnyDevice(torch.autograd.Function):
    """`direct.soft_mask` with min-max without a number read into Python."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, beta: float, tau: float, t: float, alpha: float) -> Tensor:
        ctx.save_for_backward(score)
        ctx.settings = beta, tau, t
        on = torch.ge(score, tau, out=torch.empty_like(score))
        low, high = score.amin(), torch.sub(score, on, alpha=3e38).amax()
        span = high - low
        flat = span <= 0
        part = score.sub(low).mul_(torch.where(flat, 0.0, alpha / span)).add_(alpha * flat)
        return part.clamp_max_(alpha).lerp_(on.new_ones(()), on)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (score,) = ctx.saved_tensors
        beta, tau, t = ctx.settings
        slope = beta / t
        soft = score.mul(slope).sub_(tau * slope).sigmoid_()
        found = torch.ops.aten.sigmoid_backward(gradients[0], soft).mul_(slope)
        return found, None, None, None, None


def any_device(score: Tensor, **s: Any) -> Tensor:
    return AnyDevice.apply(score, s["beta"], s["tau"], s["temperature"], s["alpha"])


@contextmanager
def form(name: str) -> Generator[None]:
    """Let masks be made in this form meanwhile."""
    fast, is_direct, soft = soft_masks.fast, soft_masks.SoftMask._is_direct, direct.soft_mask
    settings = soft_masks.SoftMask._settings
    if name in ("torch, few passes", "plain equations", "any device"):
        soft_masks.fast = lambda module: None
    if name == "plain equations":
        soft_masks.SoftMask._is_direct = lambda self: False
    if name == "any device":
        direct.soft_mask = any_device
        soft_masks.SoftMask._is_direct = lambda self: not self.is_rounded()
        soft_masks.SoftMask._settings = lambda self: {
            "beta": 1200.0, "tau": 5e-3, "temperature": 10.0, "alpha": 0.5, "scaling": "minmax"
        }
    try:
        yield
    finally:
        soft_masks.fast, soft_masks.SoftMask._is_direct = fast, is_direct
        direct.soft_mask, soft_masks.SoftMask._settings = soft, settings


FORMS = ("today", "masks one by one", "no shortcut", "torch, few passes", "any device",
         "plain equations")


@contextmanager
def steps_of(backbone: nn.Module, size: int, batch: int, device: str, graphs: bool, bf16: bool
             ) -> Generator[dict[str, Step]]:
    backbone = backbone.to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    with ExitStack() as stack:
        def ours(name: str, graph: bool = False, memory: str = "most") -> Step:
            model = ksm.add_task(backbone, CLASSES, method=ksm.KSM(), size=size).train()
            optimizer = torch.optim.Adam(ksm.parameter_groups(model), fused=True, capturable=graph)
            with form(name):
                stack.enter_context(ordered(model, torch.channels_last))
                if name in ("today", "masks one by one"):
                    stack.enter_context(short(model))
                if name == "today" and memory == "most":
                    stack.enter_context(together(model))
                inner = step_of(model, optimizer, images, bf16=bf16, within=model)

                def step() -> None:
                    with form(name), {
                        "most": nullcontext, "again": made_again, "twice": lambda: twice(model)
                    }[memory]():
                        inner()

                return captured(inner) if graph else step

        tuned = copied(backbone)
        adam = torch.optim.Adam(tuned.parameters(), lr=1e-4, fused=True)
        steps: dict[str, Step] = {"fine-tuning, Adam": step_of(tuned, adam, images, bf16=bf16)}
        cpu_only = device == "cpu"
        for name in FORMS:
            if cpu_only or name not in ("torch, few passes", "masks one by one", "no shortcut"):
                steps[name] = ours(name)
        steps["today, masked weights made again"] = ours("no shortcut", memory="again")
        if device == "cpu":
            steps["today, checkpointing"] = ours("no shortcut", memory="twice")
        if graphs:
            graphed = copied(backbone)
            adam = torch.optim.Adam(graphed.parameters(), lr=1e-4, fused=True, capturable=True)
            step = step_of(graphed, adam, images, bf16=bf16)
            steps["fine-tuning, graph"] = captured(step)
            for name in ("today", "any device", "plain equations"):
                steps[f"{name}, graph"] = ours(name, graph=True)
        if device != "cpu":
            steps = {name: waited(step) for name, step in steps.items()}
        yield steps


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--repeats", type=int, default=20)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--graphs", action="store_true")
    arguments.add_argument("--bf16", action="store_true")
    arguments.add_argument("--networks", nargs="+", default=["resnet18", "resnet50_1by2", "mobilenetv2"])
    arguments.add_argument("--sizes", nargs="+", type=int, default=[64, 128])
    arguments.add_argument("--out", type=Path, default=Path("results/speed/forms-before"))
    given = arguments.parse_args()
    keep_freed_blocks()
    device = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    found: dict[str, Any] = {"device": device, "batch": given.batch, "seconds": {}}
    texts: list[str] = []
    for network in given.networks:
        for size in given.sizes:
            case = f"{network}, {size} pixels"
            with steps_of(NETWORKS[network]().eval(), size, given.batch, given.device,
                          given.graphs, given.bf16) as steps:
                times = found["seconds"][case] = in_turns(steps, given.repeats)
            rows = [
                [name, ms(each), over(each, times["today"]), over(each, times["fine-tuning, Adam"])]
                for name, each in times.items()
            ]
            head = ["step", "ms", "/ today", "/ fine-tuning, Adam"]
            texts.append(f"## {case}\n\n{table(head, rows)}")
            print(texts[-1], flush=True)
    about = (
        f"# Forms of a default step\n\nOn {device}: {given.batch} images, "
        f"{'bf16' if given.bf16 else 'float32'}, masks from stride 16, median and middle half of "
        f"{given.repeats} turns. `today`: all faster forms; the others leave some out."
    )
    write(given.out, found, "\n\n".join([about, *texts]))


if __name__ == "__main__":
    main()

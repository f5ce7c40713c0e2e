"""A training step's passes as one CUDA graph: recorded once, then replayed for every batch.

A GPU has done most operations of a small batch before Python has asked for the next. A graph asks
for all of them at once; what Python does in between is done when it is recorded, and not again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ksm.errors import KsmError

FIRST = 3
"""Steps that are taken as usual before one is recorded, as torch asks."""


class Recorded:
    """`work`, recorded for inputs of the first ones' shapes; for others it runs as usual.

    What it reads and writes beside its inputs must stay where it is, and each step must be the same
    work but for the numbers. Gradients are those of the last step alone.

    Args:
        work: from inputs to a tensor, with a backward pass.
        parameters: that get gradients.
    """

    def __init__(self, work: Callable[..., Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self.work = work
        self.parameters = [each for each in parameters if each.requires_grad]
        self.inputs: list[Tensor] = []
        self.before = FIRST
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What `work` gives; the next call overwrites it.

        Raises:
            KsmError: it cannot be recorded.
        """
        if not self.inputs:
            self.inputs = [each.clone() for each in inputs]
        if any(a.shape != b.shape for a, b in zip(self.inputs, inputs, strict=True)):
            return self.work(*inputs)
        if self.before:
            self.before -= 1
            return self._aside(*inputs)
        torch._foreach_copy_(self.inputs, inputs)
        if not self.graph:
            self.graph = self._record()
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.made

    def _aside(self, *inputs: Tensor) -> Tensor:
        """As usual, but on a stream of its own, as when it is recorded."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            made = self.work(*inputs)
        here.wait_stream(aside)
        return made

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.made = self.work(*self.inputs)
        except RuntimeError as error:
            first: BaseException = error
            while first.__context__:  # the recording's end fails too, and hides why
                first = first.__context__
            reason = str(first).strip().splitlines()[0]
            raise KsmError(
                f"the steps cannot be recorded as a CUDA graph ({reason}): train without graph"
            ) from error
        self.gradients = [each.grad for each in self.parameters]
        return graph

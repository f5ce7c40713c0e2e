"""A training step's passes as one CUDA graph: recorded once, then replayed for every batch.

A GPU finishes most operations of a small batch before Python has launched the next. A graph
launches all of them at once; the Python code between them runs only when the graph is recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ksm.errors import KsmError, reason_of

FIRST = 3
"""Steps that run without a graph before one is recorded, as torch's guide asks."""


class Recorded:
    """A function, recorded for inputs of the first call's shapes; others run without a graph.

    Tensors that the function reads and writes beside its inputs must stay at their addresses, and
    each call must do the same work but for the numbers: what Python draws, counts or decides stays
    as it was when the graph was recorded, and hooks are not called. Gradients are those of the last
    call, not sums.

    Args:
        work: from inputs to a tensor, with a backward pass.
        parameters: that get gradients.
    """

    def __init__(self, work: Callable[..., Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self.work = work
        self.parameters = [each for each in parameters if each.requires_grad]
        self.inputs: list[Tensor] = []
        self.before = FIRST
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's result, which the next call overwrites.

        Raises:
            KsmError: the function cannot be recorded.
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
        """Run without a graph, but on the stream on which one is recorded."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            made = self.work(*inputs)
        here.wait_stream(self.stream)
        return made

    def _record(self) -> torch.cuda.CUDAGraph:
        graph, here, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), sys.exception()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.made = self.work(*self.inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # torch does not, where the recording's end fails
            # Nor does torch then tell its random generators that nothing is recorded any more.
            for generator in torch.cuda.default_generators:
                generator.graphsafe_set_state(generator.clone_state())
            first: BaseException = error  # which hides why
            while first.__context__ and first.__context__ is not before:
                first = first.__context__
            if not isinstance(first, RuntimeError) or isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise KsmError(
                f"the steps cannot be recorded as a CUDA graph ({reason_of(first)}): train without "
                "graph"
            ) from error
        self.gradients = [each.grad for each in self.parameters]
        return graph

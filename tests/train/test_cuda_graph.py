"""When a step is recorded, replayed or taken as usual, and what is told where it cannot be.

The GPU is played: tests/test_gpu.py has the real one.
"""

import contextlib

import pytest
import torch
from torch import nn

from ksm import KsmError
from ksm.train.cuda_graph import FIRST, Recorded

ENDED = "CUDA error: operation failed due to a previous error during capture"


class Played:
    """In place of torch.cuda: what was done, and on which stream."""

    def __init__(self, patch):
        self.done, self.now, self.recording, self.fails = [], "usual", False, False
        played = self

        class Stream:
            def __init__(self, name="aside"):
                self.name = name
                played.done.append("a new stream")

            def wait_stream(self, other):
                pass

        class Graph:
            def replay(self):
                played.done.append("replayed")

        @contextlib.contextmanager
        def graph(graph, stream):
            played.now, played.recording = stream.name, True
            try:
                yield
            finally:
                played.recording = False
                if played.fails:  # as torch: its stream stays then
                    raise RuntimeError(ENDED)
            played.now = "usual"

        @contextlib.contextmanager
        def on(stream):
            before, played.now = played.now, stream.name
            yield
            played.now = before

        usual = Stream("usual")
        self.done.clear()
        for name, value in {
            "Stream": Stream, "CUDAGraph": Graph, "graph": graph, "stream": on,
            "current_stream": lambda: usual,
            "set_stream": lambda stream: setattr(played, "now", stream.name),
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)


@pytest.fixture
def played(monkeypatch):
    return Played(monkeypatch)


def recorded(played, error=None):
    parameter = nn.Parameter(torch.ones(1))

    def work(x):
        played.done.append("recorded" if played.recording else f"{len(x)} on {played.now}")
        if played.recording and error is not None:
            raise error
        (parameter * x.sum()).backward()
        return x.sum()

    return Recorded(work, [parameter, nn.Parameter(torch.ones(1), requires_grad=False)]), parameter


def test_it_is_recorded_once_for_the_first_shape(played):
    run, parameter = recorded(played)
    for count in (4, 4, 3, 4, 4, 3, 4):
        parameter.grad = None
        run(torch.ones(count))
        assert parameter.grad is not None
    aside, usual = "4 on aside", "3 on usual"
    assert FIRST == 3
    assert played.done == [
        "a new stream", aside, aside, usual, aside, "recorded", "replayed", usual, "replayed",
    ]  # fmt: skip
    assert parameter.grad is run.gradients[0]


def test_inputs_are_copied_to_where_the_graph_reads_them(played):
    run, _ = recorded(played)
    first = torch.ones(2)
    for value in range(5):
        run(torch.full((2,), float(value)))
    assert torch.equal(run.inputs[0], torch.full((2,), 4.0))
    assert torch.equal(first, torch.ones(2))


CANNOT = "CUDA error: operation not permitted when stream is capturing"


@pytest.mark.parametrize("end_fails", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (RuntimeError(CANNOT + "\nmore"), KsmError, rf"CUDA graph \({CANNOT}\): train without"),
        (RuntimeError(), KsmError, r"CUDA graph \(RuntimeError\)"),
        (torch.OutOfMemoryError("2 GiB"), torch.OutOfMemoryError, "2 GiB"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (KsmError("the model gives a list"), KsmError, "^the model gives a list$"),
    ],
)
def test_what_cannot_be_recorded(played, error, kind, told, end_fails):
    run, _ = recorded(played, error)
    played.fails = end_fails
    for _ in range(FIRST):
        run(torch.ones(2))
    with pytest.raises(kind, match=told):
        try:
            raise ValueError("an earlier error, which is handled")
        except ValueError:
            run(torch.ones(2))
    if end_fails:
        assert played.now == "usual"

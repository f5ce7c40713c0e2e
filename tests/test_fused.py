"""Compiled switching gives torch's bits, writes nothing else, and is left where it does not fit."""

import math

import pytest
import torch
from torch import nn

import ksm.writing
from conftest import tiny
from ksm import KSM, Engine, KsmError, Piggyback
from ksm.layout import GRANULARITIES
from ksm.pack import pack
from ksm.writing import Writing
from test_engine import learned

fused = pytest.importorskip("ksm.fused", exc_type=ImportError)

FIT = {
    "conv1d": lambda: nn.Conv1d(5, 6, 3),
    "conv2d": lambda: nn.Conv2d(11, 7, 3),
    "seven": lambda: nn.Conv2d(3, 5, 7),
    "pointwise": lambda: nn.Conv2d(12, 11, 1),
    "pointwise, large": lambda: nn.Conv2d(260, 301, 1),
    "conv3d": lambda: nn.Conv3d(3, 4, 2),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(7, 7, 3, groups=7),
    "one weight": lambda: nn.Conv2d(1, 1, 1),
}
OTHER = {
    "linear": lambda: nn.Linear(12, 7),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3),
    "uneven": lambda: nn.Conv2d(9, 5, 1),
    "channels last": lambda: nn.Conv2d(5, 6, 3).to(memory_format=torch.channels_last),
    "double": lambda: nn.Conv2d(5, 6, 3).double(),
    "half": lambda: nn.Conv2d(5, 6, 3).half(),
}


def random_mask(cuts, base):
    return torch.cat([pack(torch.randint(base, cut.units), base) for cut in cuts])


def values_of(method):
    return torch.cat([torch.ones(1), torch.rand(method.factor_values({}).shape[-1] - 1)])


def written(method, layers, packed, values, monkeypatch, compiled=True):
    """What `Writing` makes of the layers, each in memory of its own amid NaN, and the `Writing`."""
    frozen = [layer.weight.data for layer in layers]
    room = [torch.full((one.numel() + 64,), math.nan, dtype=one.dtype) for one in frozen]
    folded = [
        whole[32:-32].as_strided(one.shape, one.stride(), 32)
        for whole, one in zip(room, frozen, strict=True)
    ]
    cuts = [method.cut(layer) for layer in layers]
    with monkeypatch.context() as patch:
        if not compiled:
            patch.setattr(ksm.writing, "fast", lambda name: None)
        writing = Writing(cuts, frozen, folded, values)
    writing.write(packed, values)
    assert all(whole.isnan().sum() == 64 for whole in room)
    return folded, writing


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.fixture(params=[1, 3])
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


METHODS = [
    *(KSM(granularity=each, levels=levels) for each in GRANULARITIES for levels in (1, 4)),
    *(KSM(pointwise=4, levels=levels) for levels in (1, 2, 3, 6, 15, 255)),
    *(KSM(levels=levels) for levels in (2, 3, 6, 15, 255)),
    *(Piggyback(values=values) for values in ("binary", "ternary")),
]


@pytest.mark.parametrize("block", [1, 50, fused.BLOCK])
@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m.name} {m.granularity} {vars(m).get('levels', m)}"
)
def test_bits_are_torchs(method, block, threads, monkeypatch):
    monkeypatch.setattr(fused, "BLOCK", block)
    torch.manual_seed(0)
    layers = [build() for name, build in FIT.items() if block > 1 or "large" not in name]
    values = values_of(method)
    packed = random_mask([method.cut(layer) for layer in layers], len(values))
    found, writing = written(method, layers, packed, values, monkeypatch)
    expected, plain = written(method, layers, packed, values, monkeypatch, compiled=False)
    assert same(found, expected)
    assert len(plain.others) == len(layers) and not plain.fused
    if method.granularity in ("kernel", "element"):
        assert not writing.others


@pytest.mark.parametrize("name", OTHER)
def test_other_layers_are_torchs_between_those_that_fit(name, threads, monkeypatch):
    method = KSM(pointwise=4)
    torch.manual_seed(0)
    other = OTHER[name]()
    layers = [FIT["conv2d"](), other, FIT["pointwise"](), FIT["seven"](), other]
    values = values_of(method)
    packed = random_mask([method.cut(layer) for layer in layers], len(values))
    found, writing = written(method, layers, packed, values, monkeypatch)
    expected, _ = written(method, layers, packed, values, monkeypatch, compiled=False)
    assert same(found, expected)
    assert [one.data_ptr() for one, _ in writing.others] == [other.weight.data_ptr()] * 2


def test_long_rows_and_a_value_a_layer_are_torchs(monkeypatch):
    layers = [nn.Conv2d(64, 3, 3)]
    for method, values in [
        (KSM(granularity="channel"), torch.rand(5)),
        (KSM(learn_alpha=True), torch.rand(1, 5)),
    ]:
        packed = random_mask([method.cut(layer) for layer in layers], 5)
        _, writing = written(method, layers, packed, values, monkeypatch)
        assert len(writing.others) == 1 and not writing.fused


def test_bytes_that_do_not_fit_are_refused_and_nothing_is_written():
    method = KSM()
    layer = FIT["conv2d"]()
    folded = torch.zeros_like(layer.weight.data)
    values = values_of(method)
    writing = Writing([method.cut(layer)], [layer.weight.data], [folded], values)
    assert writing.fused
    packed = random_mask([method.cut(layer)], 5)
    for bad in (packed[:-1], packed + 200, packed.int()):
        with pytest.raises(KsmError, match="a packed mask"):
            writing.write(bad, values)
    assert not folded.any()


@pytest.mark.parametrize("compiled", [True, False])
def test_an_engine_with_numba_and_without(compiled, threads, monkeypatch):
    if not compiled:
        monkeypatch.setattr(ksm.writing, "fast", lambda name: None)
    backbone = tiny()
    tasks = [learned(backbone, f"t{i}", KSM(levels=2 + i), seed=i) for i in range(4)]
    engine = Engine(backbone, keep=1)
    for task in tasks:
        engine.add(task)
    images = torch.randn(2, 3, 32, 32)
    for task in (*tasks, *tasks):
        assert torch.equal(engine(task.name, images), task.on(backbone)(images))
        (folded,) = engine._folded.values()
        assert all(bool(each.fused) == compiled for each in folded.place.writing.values())

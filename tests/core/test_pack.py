"""Digits to bytes and back, and how near to the entropy a task file's masks come."""

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ksm import KsmError
from ksm.core.pack import indices, length, look_up, pack, per_byte, table, unpack, wide_table


@given(st.integers(2, 256), st.integers(0, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_digits_come_back(base, count, seed):
    digits = np.random.default_rng(seed).integers(0, base, count).astype(np.uint8)
    packed = pack(torch.from_numpy(digits), base)
    assert packed.dtype == torch.uint8 and len(packed) == length(count, base)
    assert 0 <= len(packed) * per_byte(base) - count < 2 * per_byte(base)
    assert np.array_equal(unpack(packed, base, count).numpy(), digits)


def test_as_many_digits_as_fit_share_a_byte():
    bases = (2, 3, 4, 5, 6, 7, 16, 17, 256)
    assert [per_byte(base) for base in bases] == [8, 5, 4, 3, 3, 2, 2, 1, 1]
    for base in range(2, 257):
        assert base ** per_byte(base) <= 256 < base ** (per_byte(base) + 1)


def test_the_first_digit_is_the_most_significant():
    assert pack(torch.tensor([1, 0, 2, 0, 1, 1]), 3).tolist() == [81 + 2 * 9 + 1, 81]
    assert pack(torch.tensor([[True, False], [False, True]]), 2).tolist() == [0b10010000, 0]


@pytest.mark.parametrize("make", [table, wide_table])
@pytest.mark.parametrize("count", [1, 7, 10, 4001])
def test_values_stand_for_digits(make, count):
    digits = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(0))
    values = (1.0, 0.5, -0.25)
    expected = torch.tensor(values)[digits]
    index = indices(pack(digits, 3), wide=make is wide_table)
    assert torch.equal(look_up(index, make(values))[:count], expected)
    twice = look_up(index, make(values, 2))[: 2 * count]
    assert torch.equal(twice, expected.repeat_interleave(2))


@pytest.mark.parametrize(
    ("packed", "base", "count", "told"),
    [
        (torch.zeros(3, dtype=torch.uint8), 3, 16, "expected 4"),
        (torch.zeros(5, dtype=torch.uint8), 3, 16, "expected 4"),
        (torch.zeros(4), 3, 16, "float32"),
        (torch.tensor([0, 243], dtype=torch.uint8), 3, 5, "243"),
    ],
)
def test_bytes_that_are_no_digits_are_refused(packed, base, count, told):
    with pytest.raises(KsmError, match=told):
        unpack(packed, base, count)


@pytest.mark.parametrize("base", [2, 3, 5])
@pytest.mark.parametrize("off", [0.15, 0.35])
def test_zstandard_comes_near_the_entropy(base, off):
    """Independent units, as a trained layer's nearly are: within 10 % of what no coder can beat."""
    rng = np.random.default_rng(0)
    digits = np.where(rng.random(400_000) < off, rng.integers(1, base, 400_000), 0)
    share = np.bincount(digits, minlength=base) / digits.size
    entropy = -(share * np.log2(share)).sum() * digits.size / 8
    packed = pack(torch.from_numpy(digits), base).numpy().tobytes()
    assert entropy < len(zstandard.ZstdCompressor(19).compress(packed)) < 1.1 * entropy

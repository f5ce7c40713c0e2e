"""Factors of the learning rates."""

import pytest

from ksm.train.schedule import cosine, tenths


def test_cosine_rises_in_a_line_and_falls_to_nothing():
    factor = cosine(100, 10)
    assert [factor(i) for i in range(10)] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert factor(10) == 1 and factor(55) == pytest.approx(0.5) and factor(100) == pytest.approx(0)
    assert cosine(10, 0)(0) == 1


def test_tenths_fall_at_their_shares():
    factor = tenths(100, 0, (0.5, 0.8))
    assert [factor(i) for i in (0, 49, 50, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert [tenths(100, 4, (0.5,))(i) for i in (0, 3, 4)] == pytest.approx([0.2, 0.8, 1])

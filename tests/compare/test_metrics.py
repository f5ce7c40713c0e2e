"""The field's metrics, against values worked out by hand."""

import math

import numpy as np
import pytest

from ksm import KsmError
from ksm.compare import metrics

NAN = math.nan
R = np.array([[0.8, NAN, NAN], [0.9, 0.6, NAN], [0.5, 0.7, 0.4]])


def test_average_accuracy_is_that_of_the_last_row():
    assert metrics.average_accuracy(R) == pytest.approx((0.5 + 0.7 + 0.4) / 3)


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_first():
    assert metrics.forgetting(R) == pytest.approx(((0.9 - 0.5) + (0.6 - 0.7)) / 2)
    assert metrics.backward_transfer(R) == pytest.approx(((0.5 - 0.8) + (0.7 - 0.6)) / 2)


def test_tasks_that_do_not_touch_each_other_forget_nothing():
    same = np.tril(np.tile([0.3, 0.6, 0.9], (3, 1)))
    assert metrics.forgetting(same) == metrics.backward_transfer(same) == 0


def test_forward_transfer_is_against_each_task_alone():
    assert metrics.forward_transfer(R, [0.9, 0.5, 0.6]) == pytest.approx((0.1 - 0.2) / 2)
    with pytest.raises(KsmError, match="2 accuracies for 3 tasks: expected one a task"):
        metrics.forward_transfer(R, [0.9, 0.5])


def test_one_task_alone_has_no_transfer():
    one = np.array([[0.7]])
    assert metrics.average_accuracy(one) == 0.7
    assert metrics.forgetting(one) == metrics.backward_transfer(one) == 0
    assert metrics.forward_transfer(one, [0.1]) == 0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\): expected \(tasks, tasks\)"),
        (np.zeros((0, 0)), "expected"),
        (np.array([[0.5, NAN], [NAN, 0.5]]), "no value for a task that was learned"),
    ],
)
def test_a_matrix_that_is_none_is_refused(matrix, message):
    with pytest.raises(KsmError, match=message):
        metrics.forgetting(matrix)


def test_the_interval_is_students():
    centre, half = metrics.interval([1.0, 2.0, 3.0])
    assert centre == 2 and half == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-6)
    assert metrics.interval([5.0])[0] == 5 and math.isnan(metrics.interval([5.0])[1])
    with pytest.raises(KsmError, match="no value"):
        metrics.interval([])


def test_without_scipy_an_interval_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(KsmError, match=r"pip install 'ksm\[compare\]'"):
        metrics.interval([1.0, 2.0])


def test_pairs_are_of_the_same_task_and_seed():
    first = {("a", 0): 5.0, ("b", 0): 7.0, ("a", 1): 3.0, ("c", 0): 99.0}
    second = {("b", 0): 1.0, ("a", 0): 4.0, ("a", 1): 5.0, ("a", 2): 0.0}
    assert metrics.paired(first, second) == [pytest.approx((1 + 6) / 2), -2.0]

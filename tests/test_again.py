"""What is made again is not kept, is the same to the bit, and is forgotten in time."""

import gc
import threading
import weakref

import pytest
import torch

from ksm.again import _here, can_be_made_again, is_made_again, made_again


class Doubled(torch.autograd.Function):
    """2 x, which is told how to be made again; `made` counts."""

    made = 0

    @staticmethod
    def forward(ctx, x):
        def again():
            Doubled.made += 1
            return x.detach() * 2

        made = again()
        can_be_made_again(made, again, x)
        return made

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def squared(x):
    made = Doubled.apply(x)
    return made, made * made


def test_a_tensor_is_made_again_and_not_kept():
    x = torch.randn(5, requires_grad=True)
    before = Doubled.made
    with made_again():
        made, square = squared(x)
        assert is_made_again(made) and not is_made_again(x)
        gone = weakref.ref(made)
        del made
        gc.collect()
        assert gone() is None
        assert not _here.known
        square.sum().backward()
    assert torch.equal(x.grad, 8 * x)
    assert Doubled.made == before + 3  # once forward, and for each of the two factors


def test_outside_all_is_kept():
    x = torch.randn(5, requires_grad=True)
    before = Doubled.made
    made, square = squared(x)
    assert not is_made_again(made)
    square.sum().backward()
    assert torch.equal(x.grad, 8 * x) and Doubled.made == before + 1


def test_going_back_may_be_outside():
    x = torch.randn(5, requires_grad=True)
    with made_again():
        _, square = squared(x)
    square.sum().backward()
    assert torch.equal(x.grad, 8 * x)


def test_a_source_that_was_changed_is_told():
    x = torch.randn(5, requires_grad=True)
    with made_again():
        _, square = squared(x)
        with torch.no_grad():
            x.add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            square.sum().backward()


def test_a_kept_tensor_that_was_changed_is_told():
    x = torch.randn(5, requires_grad=True)
    with made_again():
        y = x * 1
        square = y * y
        y.detach().add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            square.sum().backward()


def test_what_was_changed_itself_is_kept_as_it_is():
    x = torch.randn(5, requires_grad=True)
    with made_again():
        made = Doubled.apply(x)
        made = made.add_(1)
        assert not is_made_again(made)
        (made * made).sum().backward()
    assert torch.allclose(x.grad, 2 * 2 * (2 * x + 1))


def test_a_view_is_kept():
    x = torch.randn(6, requires_grad=True)
    with made_again():
        made = Doubled.apply(x)
        part = made[:3]
        assert part.data_ptr() == made.data_ptr() and not is_made_again(part)
        (part * part).sum().backward()
    assert torch.equal(x.grad[:3], 8 * x[:3]) and not x.grad[3:].any()


def test_a_memory_place_that_is_used_anew_is_not_mistaken():
    x = torch.randn(1000, requires_grad=True)
    with made_again():
        made = Doubled.apply(x)
        place = made.data_ptr()
        del made
        for _ in range(100):
            other = torch.full((1000,), 3.0)
            assert not is_made_again(other)
            if other.data_ptr() == place:
                break
        y = x * other
        y.sum().backward()
    assert (x.grad == 3).all()


def test_threads_do_not_know_of_each_other():
    seen = []
    x = torch.randn(5)
    with made_again():
        made = Doubled.apply(x)
        other = threading.Thread(target=lambda: seen.append(is_made_again(made)))
        other.start()
        other.join()
        with made_again():
            assert not is_made_again(made)
        assert is_made_again(made)
    assert seen == [False]
    assert _here.known is None

"""What compiled functions have in common that torch's own OpenMP threads do; needs numba.

Those threads wait for more work just after another operation, and would be in the way of any
others. A piece of work is an address of a C function, and of what it works on: all threads call it,
and each takes one part after another with `taken`. Whoever changes this file must remove the
`__pycache__` beside it: numba keeps what it made of it with the files that use it. Importing this
module fails with an ImportError where torch has other threads.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# numba does not tell the types of what these make of a function.
cfunc: Any = numba.cfunc
njit: Any = numba.njit
inline: Any = intrinsic

try:  # with OpenMP's function that runs another one in all threads, as compilers call it
    _parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
except (AttributeError, OSError) as error:
    raise ImportError("torch was built without GNU OpenMP") from error
_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
_parallel.restype = None


def in_threads(work: int, data: int, threads: int) -> None:
    """Call the function at the address `work` with the address `data`, in so many threads."""
    _parallel(work, data, threads, 0)


@inline
def taken(context: Any, pointer: Any) -> Any:
    """The uint64 at a pointer, where it is one more from then on: another for each who asks."""

    def generate(context: Any, builder: Any, signature: Any, pointers: Any) -> Any:
        number = ir.IntType(64)
        place = builder.bitcast(pointers[0], number.as_pointer())
        return builder.atomic_rmw("add", place, number(1), "monotonic")

    return types.uint64(pointer), generate


@inline
def pointer(context: Any, address: Any) -> Any:
    """To an address, which is a uint64."""

    def generate(context: Any, builder: Any, signature: Any, addresses: Any) -> Any:
        return builder.inttoptr(addresses[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate

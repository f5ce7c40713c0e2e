"""Settings of the C library's allocator for large blocks, for processes that are ksm's own.

A training step on a CPU takes and frees the same large blocks again and again. By default glibc
gives a freed block back to the system at once, and the system zeroes each new block page by page:
a seventh to a quarter of a step on the networks tried (docs/benchmarks.md).
"""

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h


def keep_freed_blocks() -> bool:
    """Let the process keep freed memory for its next blocks; return whether its C library can.

    This holds for the whole process from now on. Therefore a program calls it, such as ksm's
    command line, and no library does. For other programs the environment variables
    `MALLOC_MMAP_THRESHOLD_=1073741824` and `MALLOC_TRIM_THRESHOLD_=2147483647` do the same.
    """
    return _ask({_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1})


def give_back_freed_blocks() -> bool:
    """Let the process give freed blocks of 4 MiB or more back to the system; return whether its C
    library can.

    The process then holds only what it uses. By default glibc keeps some freed blocks and seldom
    finds a place in them for a new one, since torch asks for aligned blocks: a ResNet-50 that
    trained with checkpointing held twice the memory. The system zeroes each new block again, in
    pages of 2 MiB where it has them, if this is called before torch makes its first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own switch for large pages
    return _ask({_MMAP_THRESHOLD: 2**22})


def _ask(options: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt) and all(mallopt(option, value) for option, value in options.items())

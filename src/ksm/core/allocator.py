"""How the C library's allocator treats large blocks, for processes that are ksm's own.

A training step on a CPU takes and frees the same large blocks again and again. By default glibc
gives those back to the system at once, and each new one is zeroed page by page: a seventh to a
quarter of a step on the networks tried (docs/performance.md).
"""

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h


def keep_freed_blocks() -> bool:
    """Let the process keep what it freed, for its next blocks; tell whether its C library can.

    For the whole process and from now on, so a program decides on it and not a library: ksm's
    command line does. Elsewhere the environment variables `MALLOC_MMAP_THRESHOLD_=1073741824` and
    `MALLOC_TRIM_THRESHOLD_=2147483647` do the same.
    """
    return _ask({_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1})


def give_back_freed_blocks() -> bool:
    """Let the process give each block of 4 MiB or more back to the system when it frees it; tell
    whether its C library can.

    What it holds is then what it uses. glibc by itself keeps some, and seldom finds a new block a
    place in them, since torch asks for aligned ones: a ResNet-50 that trained in the least memory
    held twice as much. Each new block is zeroed again, in pages of 2 MiB where the system has
    them, if this is called before torch makes its first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own switch for large pages
    return _ask({_MMAP_THRESHOLD: 2**22})


def _ask(options: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt) and all(mallopt(option, value) for option, value in options.items())

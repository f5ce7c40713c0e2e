"""How the C library's allocator treats large blocks, for processes that are ksm's own.

A training step on a CPU takes and frees the same large blocks again and again. By default glibc
gives those back to the system at once, and each new one is zeroed page by page: a seventh to a
quarter of a step on the networks tried (docs/performance.md).
"""

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h


def keep_freed_blocks() -> bool:
    """Let the process keep what it freed, for its next blocks; tell whether its C library can.

    For the whole process and from now on, so a program decides on it and not a library: ksm's
    command line does. Elsewhere the environment variables `MALLOC_MMAP_THRESHOLD_=1073741824` and
    `MALLOC_TRIM_THRESHOLD_=2147483647` do the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))

"""Writing a file whole: a reader finds the old content or the new one, never a part."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from ksm.errors import KsmError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, and rename it into place.

    Raises:
        KsmError: the file cannot be written; a file that was there before is unharmed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise KsmError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Say why the system refused, in words for a person."""
    if error.errno == errno.ENOSPC:
        return "no room left on the disk"
    if error.errno == errno.EEXIST:
        return "a file of that name is in the way"
    return error.strerror or str(error)

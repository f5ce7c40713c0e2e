"""The JSON of all task files of a folder, each read again only where it has changed.

The index is a file in the folder, `.index.json`. It is a cache: removing or damaging it loses
nothing, and a folder that cannot be written to has none.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ksm.bank.taskfile import check_header, read_header
from ksm.core.atomic import write_atomically
from ksm.errors import KsmError

Header = dict[str, Any]
NAME = ".index.json"


def headers_of(
    files: dict[str, Path], folder: Path, keep: bool
) -> tuple[dict[str, Header], list[str]]:
    """Return the JSON of task files by name, and a line for each that cannot be read.

    Args:
        files: all task files of the folder, by the task's name.
        keep: write what was read to the index.
    """
    known = _read(folder / NAME)
    entries: dict[str, Any] = {}
    found: dict[str, Header] = {}
    damaged: list[str] = []
    for name, path in files.items():
        try:
            state = os.stat(path)
            stamp = [state.st_mtime_ns, state.st_size, state.st_ino]
            header = _known(known.get(name), stamp, path) or read_header(path)
        except OSError:
            continue  # removed meanwhile
        except KsmError as error:
            damaged.append(str(error))
            continue
        entries[name] = [stamp, header]
        found[name] = {**header, "name": name}
    stale = entries.keys() != known.keys() or any(entries[n][0] != known[n][0] for n in entries)
    if keep and stale:
        with suppress(KsmError):
            write_atomically(folder / NAME, json.dumps(entries).encode())
    return found, damaged


def _known(entry: Any, stamp: list[int], path: Path) -> Header | None:
    """Return the JSON of an entry of the index, None where the file has changed since."""
    try:
        if entry[0] == stamp:
            check_header(entry[1], path)
            return entry[1]
    except (KsmError, TypeError, LookupError):
        pass
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_bytes())
        return {name: [list(stamp), header] for name, (stamp, header) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}

"""Which of several ways to do the same work is the fastest here: measured once, then remembered.

The measurements are a file in the cache folder. It is a cache: whoever removes or damages it loses
nothing but the time to measure again, and where it cannot be written, each process measures anew.
"""

from __future__ import annotations

import functools
import json
import math
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from ksm.errors import KsmError
from ksm.fetch import cache_dir
from ksm.taskfile import write_atomically

REPEATS = 5
_SAVING = threading.Lock()


class Measured:
    """Seconds that each way took, by kind of work, as `NAME.json` in the cache folder has them.

    Kinds are told apart by the machine too: see `machine`. An object is for one thread at a time.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        self._file = cache_dir() / f"{name}.json"
        self._known = _read(self._file)
        self._new: dict[str, dict[str, float]] = {}

    def fastest(
        self, kind: str, ways: Mapping[str, Callable[[], object]], device: torch.device
    ) -> str:
        """Name of the fastest way; the first time that a kind is met, each way is run and timed.

        Args:
            kind: what decides the times, the machine aside.
            ways: what to run, by name.
            device: where it runs.
        """
        kind = f"{machine(device)}, {kind}"
        known = self._known.get(kind, {})
        if known.keys() != ways.keys():
            self._known[kind] = self._new[kind] = known = seconds(ways, device)
        return min(known, key=known.__getitem__)

    def save(self) -> None:
        """Write what was measured since the last call, if anything was and if it can be written."""
        if not self._new:
            return
        with _SAVING, suppress(KsmError, OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            entries = {**_read(self._file), **self._new}  # others may have written meanwhile
            write_atomically(self._file, json.dumps(entries, indent=1, sort_keys=True).encode())
        self._new = {}


def seconds(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Wall time of each way, in seconds: the least of a few runs, in which the ways take turns.

    What else the machine does only ever adds time, and on a busy one to most runs.
    """
    found = dict.fromkeys(ways, math.inf)
    for run in ways.values():
        run()
    for _ in range(REPEATS):
        for name, run in ways.items():
            _wait(device)
            begin = time.perf_counter()
            run()
            _wait(device)
            found[name] = min(found[name], time.perf_counter() - begin)
    return found


def machine(device: torch.device) -> str:
    """The processor or GPU by name, torch's version and, on a CPU, torch's number of threads."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{_chip(device)}, torch {torch.__version__}{threads}"


@functools.cache
def _chip(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux names its processors here alone
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{device.type} {name}"


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _read(file: Path) -> dict[str, dict[str, float]]:
    """The measurements of a file; none where it is not there or is damaged."""
    try:
        entries = json.loads(file.read_bytes())
        return {
            kind: {name: float(value) for name, value in ways.items()}
            for kind, ways in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}

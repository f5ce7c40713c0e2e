"""Cells: one method on one task with one seed, each measured in a process of its own.

A cell is a JSON file, written when it is done; the task files that it made are beside it in a bank
a row and seed. A stopped run goes on with the cells that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from ksm._malloc import keep_freed_blocks
from ksm.bank import Bank
from ksm.compare.images import images_of
from ksm.compare.protocol import Domain, Protocol, Row, described, setup_of
from ksm.errors import KsmError
from ksm.methods import METHODS, make
from ksm.training import Training

Cell = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Chain:
    """A row's tasks in order, with one seed.

    Args:
        threads: of torch, in each cell's process; None: torch's own choice.
    """

    protocol: Protocol
    row: Row
    seed: int
    out: Path
    threads: int | None = None

    @property
    def bank(self) -> Bank:
        return Bank(self.out / "banks" / self.row.name / f"seed{self.seed}")

    def path(self, place: int) -> Path:
        name = self.protocol.domains[place].name
        return self.out / "cells" / self.row.name / f"{name}-seed{self.seed}.json"

    def goal(self, place: int) -> float | None:
        """The accuracy that the row has to meet on a task; None where it has no goal.

        Raises:
            KsmError: the row that gives it was not measured yet.
        """
        if self.row.goal_of is None:
            return None
        path = Chain(self.protocol, Row(self.row.goal_of, ""), self.seed, self.out).path(place)
        if not path.exists():
            raise KsmError(
                f"row {self.row.name} has the accuracy of row {self.row.goal_of} as its goal, "
                f"which has no cell {path}: compare both"
            )
        return read(path)["val"]

    def missing(self) -> list[int]:
        """Places of the cells still to be measured.

        Where tasks build on each other, all cells from the first that is missing on; and before
        it those whose task file is gone.

        Raises:
            KsmError: a cell there has other settings.
        """
        places = [p for p in range(len(self.protocol.domains)) if not self._done(p)]
        if METHODS[self.row.method].builds_on_tasks and places:
            names = [domain.name for domain in self.protocol.domains]
            first = next(
                p for p in range(places[0] + 1) if p in places or names[p] not in self.bank
            )
            return list(range(first, len(names)))
        return places

    def clear(self, place: int) -> None:
        """Remove the task files from a place on, the last first, so that it can be measured."""
        for domain in reversed(self.protocol.domains[place:]):
            if domain.name in self.bank:
                self.bank.remove(domain.name)

    def _done(self, place: int) -> bool:
        path = self.path(place)
        if not path.exists():
            return False
        cell = read(path)
        if cell["setup"] != setup_of(self.protocol, self.row, place, self.seed) or (
            self.row.goal_of and cell["goal"] != self.goal(place)
        ):
            raise KsmError(
                f"{path} was measured with other settings: choose another --out, or remove it"
            )
        return True


def read(path: Path) -> Cell:
    """A cell's file; a setting that ksm did not have when it was measured has its default.

    Raises:
        KsmError: it is none.
    """
    try:
        cell: Cell = json.loads(path.read_text(encoding="utf-8"))
        setup = cell["setup"]
        setup["method"] = make(**setup["method"]).settings()
        setup["training"] = dataclasses.asdict(Training(**setup["training"]))
        tasks = setup["protocol"]["tasks"]
        setup["protocol"]["tasks"] = [dataclasses.asdict(Domain(**task)) for task in tasks]
        cell["setup"] = json.loads(json.dumps(setup))
        return cell
    except (OSError, ValueError, KeyError, TypeError, KsmError) as error:
        raise KsmError(f"{path} is damaged or no cell: {error}; remove it") from error


def run(
    protocol: Protocol,
    rows: Sequence[Row],
    seeds: Sequence[int],
    out: Path,
    processes: int = 1,
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Measure all cells that are missing; rows with a goal come after those that give it.

    A row that cannot go on, such as one whose network is full, does not stop the others.

    Args:
        out: folder of the results.
        processes: cells at the same time; with more than one, each has its share of the cores.
        tell: called with a line for each cell.

    Returns:
        A line for each row and seed that could not be finished.

    Raises:
        KsmError: a folder cannot be used, or a cell there has other settings.
    """
    from ksm.compare.start import prepare

    for path in sorted((out / "cells").glob("*/*.json")):
        if read(path)["setup"].get("protocol") != described(protocol):
            raise KsmError(f"{path} is of another protocol or its settings: choose another --out")
    for place in range(len(protocol.domains)):
        images_of(protocol, place, out)
    resource_tracker.ensure_running()  # its start would let a thread's interrupts through again
    with ThreadPoolExecutor(1, initializer=_leave_interrupts) as pool:
        if line := pool.submit(_alone, prepare, protocol, out).result():
            tell(line)
    threads = max(1, (os.cpu_count() or 1) // processes) if processes > 1 else None
    failed: list[str] = []
    for wave in [[r for r in rows if not r.goal_of], [r for r in rows if r.goal_of]]:
        chains = [Chain(protocol, row, seed, out, threads) for seed in seeds for row in wave]
        left = [(chain, places) for chain in chains if (places := chain.missing())]
        stop = threading.Event()
        with ThreadPoolExecutor(processes, initializer=_leave_interrupts) as pool:
            try:
                for done in [pool.submit(_run_chain, *each, stop, tell) for each in left]:
                    if failure := done.result():
                        failed.append(failure)
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return failed


def _run_chain(
    chain: Chain, places: list[int], stop: threading.Event, tell: Callable[[str], None]
) -> str | None:
    from ksm.compare.measure import measure

    for place in places:
        if stop.is_set():
            return None
        label = f"{chain.row.name} · {chain.protocol.domains[place].name} · seed {chain.seed}"
        try:
            cell = _alone(measure, chain, place)
        except KsmError as error:
            tell(f"{label}: stopped, {error}")
            return f"{label}: {error}"
        tell(f"{label}: val {100 * cell['val']:.1f} %, {cell['seconds']:.0f} s")
    return None


def _alone(work: Callable[..., T], *arguments: Any) -> T:
    """Do some work in a process of its own, so that its peak of memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_begin) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise KsmError(
                "its process was killed, perhaps for want of memory: ask for fewer --processes"
            ) from None


def _leave_interrupts() -> None:
    """Ctrl-C is the main thread's; a process started from this one waits with it too."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _begin() -> None:
    """As the command line begins; but learning keeps its best epoch when it is interrupted, which
    here would make half a cell: an interrupt ends the process."""
    keep_freed_blocks()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

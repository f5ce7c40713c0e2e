"""Cells: one method on one task with one seed, each measured in a process of its own.

A cell is a JSON file, written when it is done; the task files that it made are beside it in a bank
a row and seed. A stopped run goes on with the cells that are missing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksm.bank import Bank, write_atomically
from ksm.compare.images import subset
from ksm.compare.protocol import Protocol, Row, setup_of
from ksm.errors import KsmError
from ksm.methods import METHODS, make

if TYPE_CHECKING:
    from torch import nn

Cell = dict[str, Any]


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
    threads: int | None

    @property
    def bank(self) -> Bank:
        return Bank(self.out / "banks" / f"{_slug(self.row.name)}-seed{self.seed}")

    def path(self, place: int) -> Path:
        name = self.protocol.domains[place].name
        return self.out / "cells" / f"{_slug(self.row.name)}-{_slug(name)}-seed{self.seed}.json"

    def missing(self) -> list[int]:
        """Places of the cells still to be measured.

        A cell whose task file is gone is measured again where a later one needs the file.

        Raises:
            KsmError: a cell there has other settings.
        """
        places = [p for p in range(len(self.protocol.domains)) if not self._done(p)]
        if METHODS[self.row.method].builds_on_tasks and places:
            first = next(p for p in range(places[0] + 1) if p == places[0] or not self._kept(p))
            return list(range(first, len(self.protocol.domains)))
        return places

    def _done(self, place: int) -> bool:
        path = self.path(place)
        if not path.exists():
            return False
        wanted = json.loads(json.dumps(setup_of(self.protocol, self.row, place, self.seed)))
        found = read(path)["setup"]
        found["method"] = make(**found["method"]).settings()  # settings added since then
        if json.loads(json.dumps(found)) != wanted:
            raise KsmError(
                f"{path} was measured with other settings: choose another --out, or remove it"
            )
        return True

    def _kept(self, place: int) -> bool:
        return self.protocol.domains[place].name in self.bank


def read(path: Path) -> Cell:
    """A cell's file.

    Raises:
        KsmError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KsmError(f"{path} is damaged or no cell: {error}; remove it") from error


def run(
    protocol: Protocol,
    rows: Sequence[Row],
    seeds: Sequence[int],
    out: Path,
    processes: int = 1,
    tell: Callable[[str], None] = print,
) -> None:
    """Measure all cells that are missing; rows with a goal come after those that give it.

    Args:
        out: folder of the results.
        processes: cells at the same time; with more than one, each has its share of the cores.
        tell: called with a line for each cell.

    Raises:
        KsmError: a setting or a folder cannot be used, or a cell there has other settings.
    """
    for place in range(len(protocol.domains)):
        _images(protocol, place, out)
    if protocol.start == "first-task" and not _weights(out).exists():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            tell(pool.submit(_train_backbone, protocol, out).result())
    threads = max(1, (os.cpu_count() or 1) // processes) if processes > 1 else None
    waves = [[row for row in rows if not row.goal_of], [row for row in rows if row.goal_of]]
    for wave in waves:
        chains = [Chain(protocol, row, seed, out, threads) for seed in seeds for row in wave]
        left = [(chain, places) for chain in chains if (places := chain.missing())]
        stop = threading.Event()
        with ThreadPoolExecutor(processes) as pool:
            try:
                for done in [pool.submit(_run_chain, *each, stop, tell) for each in left]:
                    done.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


def _run_chain(
    chain: Chain, places: list[int], stop: threading.Event, tell: Callable[[str], None]
) -> None:
    for place in places:
        if stop.is_set():
            return
        # A process of its own, so that its peak of memory is its own.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, initializer=_die_of_interrupts) as pool:
            try:
                cell = pool.submit(measure, chain, place).result()
            except BrokenProcessPool:
                raise KsmError(
                    f"the process that measured {chain.path(place).stem} was killed, perhaps for "
                    "want of memory: ask for fewer --processes"
                ) from None
        tell(
            f"{cell['setup']['row']} · {cell['setup']['domain']['name']} · seed {chain.seed}: "
            f"val {100 * cell['val']:.1f} %, {cell['seconds']:.0f} s"
        )


def _die_of_interrupts() -> None:
    """Learning keeps its best epoch when it is interrupted, which here would make half a cell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def measure(chain: Chain, place: int) -> Cell:
    """Learn one task, then test it and all tasks before it from their files; write the cell."""
    import torch

    import ksm
    from ksm.data.folder import scan
    from ksm.data.load import load
    from ksm.evaluation import device, evaluate

    if chain.threads:
        torch.set_num_threads(chain.threads)
    protocol, row, bank = chain.protocol, chain.row, chain.bank
    domain = protocol.domains[place]
    settings = dict(row.settings)
    if row.goal_of:
        settings["goal"] = _goal(chain, place)
    method = make(row.method, row.recipe, **settings)
    budget: dict[str, Any] = {
        "epochs": protocol.epochs,
        "batch": protocol.batch,
        "augment": domain.augment,
        "min_area": domain.min_area,
        "seed": chain.seed,
    }
    released = row.recipe == "released"
    training = ksm.Training.released(method, **budget) if released else ksm.Training(**budget)
    backbone = _backbone(protocol, chain.out)
    names = [d.name for d in protocol.domains[:place]]
    earlier = [bank.load(name) for name in names] if method.builds_on_tasks else []
    task = ksm.learn(
        backbone,
        _images(protocol, place, chain.out),
        name=domain.name,
        method=method,
        training=training,
        size=protocol.size,
        earlier=earlier,
    )
    memory = _peak_memory()
    file = bank.save(task, force=True)
    accuracies: dict[str, float] = {domain.name: task.metrics["test"]["accuracy"]}
    for before, other in enumerate(protocol.domains[:place]):
        if other.name in bank:
            stored = bank.load(other.name)
            samples = scan(_images(protocol, before, chain.out)).splits["test"]
            images = load(samples, stored.preprocess)
            found = evaluate(stored.on(backbone).to(device()), images)
            accuracies[other.name] = found["accuracy"]
    record = task.record
    cell: Cell = {
        "setup": setup_of(protocol, row, place, chain.seed),
        "val": task.metrics["val"]["accuracy"],
        "test": task.metrics["test"]["accuracy"],
        "accuracies": accuracies,
        "goal": settings.get("goal"),
        "images": record["images"],
        "bytes": {**task.sizes(), "file": file.stat().st_size, "full_copy": record["full_copy"]},
        "mask": record.get("mask"),
        "grown": task.grown,
        "parameters": record["parameters"],
        "seconds": record["seconds"],
        "images_per_second": _pace(record["history"]),
        "epochs": len(record["history"]),
        "best_epoch": record["best_epoch"],
        "peak_memory": memory,
        "history": record["history"],
        "versions": record["versions"],
        "machine": {
            "device": record["device"],
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
    path = chain.path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(cell, indent=1) + "\n").encode())
    return cell


def _backbone(protocol: Protocol, out: Path) -> nn.Module:
    """The frozen network of all rows."""
    from ksm.backbones import backbone

    if protocol.start == "pretrained":
        return backbone(protocol.backbone)
    from safetensors.torch import load_file

    module = backbone(protocol.backbone, pretrained=False)
    module.load_state_dict(load_file(_weights(out)), strict=False)
    return module


def _train_backbone(protocol: Protocol, out: Path) -> str:
    """Train the protocol's network on the first task and keep all of it but its head."""
    from safetensors.torch import save

    import ksm
    from ksm.backbones import backbone

    domain = protocol.domains[0]
    module = backbone(protocol.backbone, pretrained=False)
    task = ksm.learn(
        module,
        _images(protocol, 0, out),
        name=domain.name,
        method="scratch",
        training=ksm.Training(
            epochs=protocol.epochs,
            batch=protocol.batch,
            augment=domain.augment,
            min_area=domain.min_area,
        ),
        size=protocol.size,
    )
    head = f"{task.backbone.head}."
    state = task.on(module).state_dict()
    state = {k: v.contiguous() for k, v in state.items() if not k.startswith(head)}
    write_atomically(_weights(out), save(state))
    return f"backbone on {domain.name}: test {100 * task.metrics['test']['accuracy']:.1f} %"


def _weights(out: Path) -> Path:
    return out / "backbone.safetensors"


def _images(protocol: Protocol, place: int, out: Path) -> Path:
    domain = protocol.domains[place]
    return subset(
        domain.folder(), out / "images" / _slug(domain.name), protocol.limit, domain.classes
    )


def _goal(chain: Chain, place: int) -> float:
    other = Chain(
        chain.protocol,
        Row(str(chain.row.goal_of), chain.row.method),
        chain.seed,
        chain.out,
        chain.threads,
    ).path(place)
    return read(other)["val"] if other.exists() else 0.0


def _pace(history: list[dict[str, Any]]) -> float:
    """Images a second over all training steps: the harmonic mean over the epochs."""
    return len(history) / sum(1 / record["images_per_second"] for record in history)


def _peak_memory() -> dict[str, Any]:
    """Bytes: of tensors on the GPU where there is one, else of the process's resident set."""
    import torch

    if torch.cuda.is_available():
        return {"bytes": torch.cuda.max_memory_allocated(), "of": "tensors on the GPU"}
    try:
        import resource
    except ImportError:
        return {"bytes": None, "of": "not known on this system"}
    unit = 1 if platform.system() == "Darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"bytes": peak, "of": "resident set of the process"}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)

"""Cells: one method on one task with one seed, each a JSON file; a row's tasks with one seed are a
chain.

A cell is written when it is done; the task files that it made are beside it in a bank a row and
seed. A stopped run goes on with the cells that are missing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm.bank import Bank
from ksm.compare.protocol import Domain, Protocol, Row, setup_of
from ksm.errors import KsmError
from ksm.methods import method_class
from ksm.methods.registry import UnknownMethod, stored_method
from ksm.train.settings import Training

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
        if method_class(self.row.method).builds_on_tasks and places:
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
        setup["method"] = stored_method(setup["method"], setup.get("method_from")).settings()
        setup["training"] = dataclasses.asdict(Training.read(setup["training"]))
        tasks = setup["protocol"]["tasks"]
        setup["protocol"]["tasks"] = [dataclasses.asdict(Domain(**task)) for task in tasks]
        cell["setup"] = json.loads(json.dumps(setup))
        return cell
    except UnknownMethod as error:
        raise KsmError(f"{path} is of {error}; give it as a row of --methods") from error
    except (OSError, ValueError, KeyError, TypeError, KsmError) as error:
        raise KsmError(f"{path} is damaged or no cell: {error}; remove it") from error

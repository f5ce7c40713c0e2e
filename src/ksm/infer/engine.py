"""Many tasks in memory, packed as in their files, a few of them folded and ready to run.

A folded task is a plain module with `M * W` as its weights. To switch to a task that is not folded,
the engine takes the module that was not used for longest and writes the new task into it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ksm.bank.taskfile import Packed, pack, read_packed, unpack
from ksm.core.backbone import fingerprint
from ksm.core.task_names import listed
from ksm.errors import KsmError, reason_of
from ksm.infer.hotswap import Place
from ksm.task import Task

log = logging.getLogger("ksm")


class Engine:
    """One backbone and any number of tasks, of which `keep` are folded at a time.

    Several threads may use an engine at once (on a GPU, all on one stream). A task in use is never
    switched away; where all `keep` are in use, a thread that asks for another task waits.

    Args:
        backbone: only read; on the device where the tasks shall run.
        keep: number of folded tasks, at least 1. Each takes the memory of the weights that its mask
            covers.

    Raises:
        KsmError: `keep` is less than 1.
    """

    def __init__(self, backbone: nn.Module, keep: int = 4) -> None:
        if keep < 1:
            raise KsmError(f"keep is {keep}: expected at least 1")
        self.backbone = backbone
        self.keep = keep
        self._tasks: dict[str, Packed | Task] = {}
        self._folded: OrderedDict[str, _Folded] = OrderedDict()
        self._changed = threading.Condition()

    def add(self, task: Task | str | os.PathLike[str]) -> str:
        """Register a task, or the task of a file, and return its name.

        Of a task that builds on no other only the packed bytes are kept.

        Raises:
            KsmError: the file is damaged, the task was learned on another backbone, the engine has
                a task of that name, or the file's task builds on others (give that one as a
                `Task`, from a bank).
        """
        if isinstance(task, Task):
            found = task if task.earlier else _used(pack(task))
            name, head, printed = task.name, task.backbone.head, task.fingerprint
        else:
            found = _used(read_packed(Path(task)))
            meta = found.header()
            name, head = Path(task).stem, found.use.head  # an unknown method is refused now
            printed = meta["backbone"]["fingerprint"]
            if meta.get("earlier"):
                raise KsmError(f"{task} builds on other tasks: add bank.load({name!r})")
        if printed != (mine := fingerprint(self.backbone, head)):
            raise KsmError(
                f"task {name!r} was learned on a backbone with fingerprint {printed[:16]}, the "
                f"engine's has {mine[:16]}: give the engine the same weights"
            )
        with self._changed:
            if name in self._tasks:
                raise KsmError(f"the engine has a task {name!r} already: remove it first")
            self._tasks[name] = found
        return name

    def remove(self, name: str) -> None:
        """Forget a task. A thread that uses the task now keeps its module.

        Raises:
            KsmError: there is no task of that name.
        """
        with self._changed:
            self._check(name)
            del self._tasks[name]
            self._folded.pop(name, None)
            self._changed.notify_all()

    def names(self) -> list[str]:
        """List the registered tasks in the order in which they were added."""
        return list(self._tasks)

    def task(self, name: str) -> Task:
        """Unpack a registered task. It has its name in the engine, and no history of its epochs.

        Raises:
            KsmError: there is no task of that name.
        """
        with self._changed:
            self._check(name)
            found = self._tasks[name]
        if isinstance(found, Task):
            return found
        return dataclasses.replace(unpack(found, Path(name))[0], name=name, digest=None)

    def __call__(self, name: str, images: Tensor) -> Tensor:
        """Return a task's logits, shape (n, classes).

        Args:
            images: shape (n, 3, h, w), float32, prepared as the task's `preprocess` says.

        Raises:
            KsmError: there is no task of that name.
        """
        with self.using(name) as model, torch.no_grad():
            return model(images)

    @contextmanager
    def using(self, name: str) -> Generator[nn.Module]:
        """Yield the task as a plain module in evaluation mode, which stays this task's inside the
        block. Other threads that use the task meanwhile have the same module: do not change it.

        A thread that holds `keep` tasks and asks for one more waits for itself, for ever.

        Raises:
            KsmError: there is no task of that name.
        """
        folded = self._take(name)
        assert folded.place is not None
        try:
            yield folded.place.model
        finally:
            with self._changed:
                folded.users -= 1
                self._changed.notify_all()

    def _take(self, name: str) -> _Folded:
        with self._changed:
            while True:
                self._check(name)
                if (found := self._folded.get(name)) and found.ready:
                    self._folded.move_to_end(name)
                    found.users += 1
                    return found
                if found is None:
                    if len(self._folded) < self.keep:
                        old = None
                        break
                    idle = [key for key, each in self._folded.items() if not each.users]
                    if idle:
                        old = self._folded.pop(idle[0])
                        break
                self._changed.wait()
            found = self._tasks[name]
            self._folded[name] = new = _Folded()
        try:
            new.place = self._placed(found, old, name)
        except BaseException:
            with self._changed:
                self._folded.pop(name, None)
                self._changed.notify_all()
            raise
        with self._changed:
            new.ready = True
            self._changed.notify_all()
        return new

    def _placed(self, found: Packed | Task, old: _Folded | None, name: str) -> Place:
        """Fold a task into the module of `old` where that is possible, else into a new one."""
        task = found if isinstance(found, Task) else unpack(found, Path(name))[0]
        if old and old.place:
            try:
                if old.place.write(task):
                    return old.place
                log.info("task %s is folded anew: it changes other tensors", name)
            except Exception as error:  # the fold below says what is wrong with the task
                log.info("task %s is folded anew: %s", name, reason_of(error))
        return Place(self.backbone, task)

    def _check(self, name: str) -> None:
        if name not in self._tasks:
            raise KsmError(
                f"no task {name!r} in the engine; the tasks there: {listed(self._tasks)}"
            )


@dataclass
class _Folded:
    """A task that is folded, or being folded while not `ready`, and how many threads use it."""

    place: Place | None = None
    users: int = 1
    ready: bool = False


def _used(packed: Packed) -> Packed:
    """Leave out the parts that are not needed to run the task."""
    return Packed(packed.text, {k: v for k, v in packed.parts.items() if k != "history"})

"""Many tasks in memory as their files hold them, a few of them folded and ready to run.

A folded task is a plain module with `M * W` as its weights. Switching to a task that is not folded
takes the module that was not used for longest and writes the new task into it: the masked weights
by one multiplication a layer, the normalisations by one copy, and a head of its own.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ksm.bank.taskfile import Packed, pack, read_packed, unpack
from ksm.core.backbone import fingerprint
from ksm.errors import KsmError
from ksm.infer.hotswap import Place
from ksm.task import Task


class Engine:
    """One backbone and any number of tasks, of which `keep` are folded at a time.

    Several threads may use an engine at once (on a GPU, all on one stream). A task that is being
    used is never switched away; where all `keep` are in use, a thread that asks for another waits.

    Args:
        backbone: only read; on the device where the tasks shall run.
        keep: folded tasks, each of which takes the memory of the weights that its mask covers.
    """

    def __init__(self, backbone: nn.Module, keep: int = 4) -> None:
        if keep < 1:
            raise KsmError(f"keep is {keep}: expected at least 1")
        self.backbone = backbone
        self.keep = keep
        self._printed: dict[str, str] = {}
        self._tasks: dict[str, Packed | Task] = {}
        self._folded: OrderedDict[str, _Folded] = OrderedDict()
        self._changed = threading.Condition()

    def add(self, task: Task | str | os.PathLike[str]) -> str:
        """Register a task, or the task of a file, and return its name.

        Of a task that builds on no other only the packed bytes are kept.

        Raises:
            KsmError: the file is damaged, the task was learned on another backbone, builds on
                others (give it as a `Task`, from a bank), or there is one of its name.
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
        if head not in self._printed:
            self._printed[head] = fingerprint(self.backbone, head)
        if printed != self._printed[head]:
            raise KsmError(
                f"task {name!r} was learned on a backbone with fingerprint {printed[:16]}, the "
                f"engine's has {self._printed[head][:16]}"
            )
        with self._changed:
            if name in self._tasks:
                raise KsmError(f"the engine has a task {name!r} already: remove it first")
            self._tasks[name] = found
        return name

    def remove(self, name: str) -> None:
        """Forget a task; who uses it now goes on with it.

        Raises:
            KsmError: there is none of that name.
        """
        with self._changed:
            self._check(name)
            del self._tasks[name]
            self._folded.pop(name, None)
            self._changed.notify_all()

    def names(self) -> list[str]:
        """The registered tasks, in the order in which they were added."""
        return list(self._tasks)

    def task(self, name: str) -> Task:
        """A registered task, unpacked, by the name that it has here and without the history of its
        epochs.

        Raises:
            KsmError: there is none of that name.
        """
        with self._changed:
            self._check(name)
            found = self._tasks[name]
        if isinstance(found, Task):
            return found
        return dataclasses.replace(unpack(found, Path(name))[0], name=name, digest=None)

    def __call__(self, name: str, images: Tensor) -> Tensor:
        """Logits of a task, shape (n, classes), for images (n, 3, h, w) that are prepared as it
        wants them.

        Raises:
            KsmError: there is none of that name.
        """
        with self.using(name) as model, torch.no_grad():
            return model(images)

    @contextmanager
    def using(self, name: str) -> Generator[nn.Module]:
        """The task as a plain module in evaluation mode, which stays this task's until the block
        ends. Other threads that use the task meanwhile have the same module: do not change it.

        A thread that holds as many tasks as are kept, and asks for one more, waits for itself.

        Raises:
            KsmError: there is none of that name.
        """
        folded = self._take(name)
        try:
            yield folded.model
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
            packed = self._tasks[name]
            self._folded[name] = new = _Folded(self.backbone)
        try:
            new.fold(packed, old, Path(name))
        except BaseException:
            with self._changed:
                self._folded.pop(name, None)
                self._changed.notify_all()
            raise
        with self._changed:
            new.ready = True
            self._changed.notify_all()
        return new

    def _check(self, name: str) -> None:
        if name not in self._tasks:
            known = ", ".join(list(self._tasks)[:20]) or "none"
            raise KsmError(f"no task {name!r} in the engine; the tasks there: {known}")


class _Folded:
    """A folded task: a module, and the way to write another task into it, where there is one."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.model = backbone
        self.place: Place | None = None
        self.users = 1
        self.ready = False

    def fold(self, found: Packed | Task, old: _Folded | None, path: Path) -> None:
        """Fold a task into the module of `old` where it fits there, else into a new one."""
        if old and old.place and isinstance(found, Packed):
            try:
                if old.place.write(found):
                    self.model, self.place = old.model, old.place
                    return
            except Exception:  # whatever is wrong with the task, a fold of its own tells best
                pass
        task = found if isinstance(found, Task) else unpack(found, path)[0]
        self.model = task.on(self.backbone)
        if isinstance(found, Packed):
            self.place = Place.of(self.backbone, self.model, task, found)


def _used(packed: Packed) -> Packed:
    """The parts that running the task needs."""
    return Packed(packed.text, {k: v for k, v in packed.parts.items() if k != "history"})

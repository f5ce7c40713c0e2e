"""What a person sees of a run: a live line on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from ksm.data.folder import Folder
from ksm.data.load import Skipped
from ksm.training import Progress

_LISTED = 10


class Display:
    """A `ksm.learning.Watcher` that shows the run and keeps its log.

    Args:
        console: where to show it.
        log: file of JSON lines, one an epoch; None for none.
    """

    def __init__(self, console: Console, log: Path | None = None) -> None:
        self.console = console
        self.log = log
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._reading: TaskID | None = None
        self._training: TaskID | None = None
        if log:
            log.unlink(missing_ok=True)

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def scanned(self, folder: Folder, epochs: int) -> None:
        counts = ", ".join(f"{len(part)} {split}" for split, part in folder.splits.items())
        self.console.print(
            f"[bold]{escape(str(folder.root))}[/]: {len(folder.classes)} classes, "
            f"images {counts}; {epochs} epochs",
            highlight=False,
        )
        for line in folder.warnings:
            self.console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False)
        total = sum(len(part) for part in folder.splits.values())
        self._reading = self.bars.add_task("reading images", total=total, text="")

    def image(self) -> None:
        if self._reading is not None:
            self.bars.advance(self._reading)

    def skipped(self, files: list[Skipped]) -> None:
        if self._reading is not None:
            self.bars.remove_task(self._reading)
        if not files:
            return
        self.console.print(
            f"[yellow]warning:[/] {len(files)} files could not be read and were skipped "
            "(--strict makes that an error):",
            highlight=False,
        )
        for file in files[:_LISTED]:
            self.console.print(
                f"  {escape(str(file.path))}: {escape(file.reason)}", highlight=False
            )
        if len(files) > _LISTED:
            self.console.print(f"  and {len(files) - _LISTED} more")

    def step(self, progress: Progress) -> None:
        p = progress
        if self._training is None:
            self._training = self.bars.add_task("", total=p.epochs * p.steps, text="")
        best = "" if p.val_accuracy is None else f"  best val {100 * p.val_accuracy:.1f} %"
        self.bars.update(
            self._training,
            description=f"epoch {p.epoch + 1}/{p.epochs}",
            completed=p.epoch * p.steps + p.step + 1,
            text=f"{p.images_per_second:.0f} images/s  loss {p.loss:.3f}{best}  "
            f"{clock(p.seconds_left)} left",
        )

    def epoch(self, record: dict[str, Any]) -> None:
        r = record
        self.console.print(
            f"epoch {r['epoch']:>3}  loss {r['loss']:.3f}  val {100 * r['val_accuracy']:5.1f} %  "
            f"{r['images_per_second']:5.0f} images/s  {clock(r['seconds'])}",
            highlight=False,
        )
        if self.log:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Bytes in decimal units: `512 B`, `83 kB`, `1.24 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage with one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"

"""Cells to pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ksm.compare import metrics
from ksm.compare.plot import INK, figure, save
from ksm.compare.report import Results

COLOURS = {
    "ksm": "#d1495b", "piggyback": "#0b6e99", "packnet": "#2e8b57", "cpg": "#8a5a00",
    "lora": "#e08e0b",
    "bn": "#7a5ea8", "probe": "#a9a9b2", "random-mask": "#c98fb5", "finetune": "#222222",
    "scratch": "#9c9c9c",
}  # fmt: skip

MARKERS = "svDx+^*"


def draw(results: Results, out: Path, against: str = "ksm") -> list[Path]:
    """Differences from one row; on the test split also accuracy against bytes, against training
    time and by task, and the accuracy matrices.

    Args:
        against: the row from which differences are taken.

    Returns:
        The PNG files.

    Raises:
        KsmError: matplotlib is not installed, or a file cannot be written.
    """
    rows = [row for row in results.rows if results.seeds(row)]

    def bytes_of(cell: dict[str, Any]) -> float:
        return cell["bytes"]["file"] / 1e6

    def seconds_of(cell: dict[str, Any]) -> float:
        return cell["seconds"]

    files: list[Path] = []

    def new(name: str) -> Path:
        files.append(out / f"{name}.png")
        return files[-1]

    base = results.accuracies(against)
    others = [r for r in rows if r != against and metrics.paired(base, results.accuracies(r))]
    if others:
        _differences(results, others, against, new("differences"))
    if results.split == "test":
        _scatter(results, rows, bytes_of, "a task's file (MB)", new("bytes"))
        _scatter(results, rows, seconds_of, "training of a task (s)", new("time"))
        _tasks(results, rows, new("tasks"))
        _matrices(results, rows, new("matrix"))
    return files


def _differences(results: Results, rows: list[str], against: str, file: Path) -> None:
    base = results.accuracies(against)
    picture = figure(figsize=(7, 0.24 * len(rows) + 1.3))
    axes = picture.subplots()
    marked = results.tasks if len(results.tasks) <= len(MARKERS) else ()
    for place, row in enumerate(reversed(rows)):
        found = results.accuracies(row)
        for task, marker in zip(marked, MARKERS, strict=False):
            of_task = metrics.paired(
                {k: v for k, v in found.items() if k[0] == task},
                {k: v for k, v in base.items() if k[0] == task},
            )
            axes.plot(
                [mean(of_task)], [place], marker, ms=4, ls="", color="#b9bdc6",
                label=task if place == 0 else None,
            )  # fmt: skip
        centre, half = metrics.interval(metrics.paired(found, base))
        colour = _colour(row, results)
        axes.errorbar(
            [centre], [place], xerr=None if np.isnan(half) else [half], fmt="o", ms=6,
            color=colour, capsize=3,
        )  # fmt: skip
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(rows)), reversed(rows), fontsize=8)
    axes.set(
        ylim=(-0.6, len(rows) - 0.4), xlabel=f"{results.what}, points above {against} (average)"
    )
    if marked:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _plain(axes)
    save(picture, file)


def _scatter(
    results: Results,
    rows: list[str],
    cost: Callable[[dict[str, Any]], float],
    label: str,
    file: Path,
) -> None:
    picture = figure(figsize=(7, 4.4))
    axes = picture.subplots()
    names: list[Any] = []
    bars: list[Any] = []
    for row in rows:
        x = mean(cost(cell) for cell in results.of_row(row))
        y, half = metrics.interval(results.averages(row))
        colour = _colour(row, results)
        half = 0 if np.isnan(half) else half
        axes.errorbar([x], [y], [[half]] * 2, fmt="o", ms=6, color=colour, capsize=3)
        bars.append(axes.plot([x, x], [y - half, y + half], color=colour)[0])
        names.append(
            axes.annotate(
                row, (x, y), textcoords="offset points", xytext=(7, 5), color=colour, fontsize=8
            )
        )
    axes.set(xscale="log", xlabel=f"{label}, log scale", ylabel=f"average {results.what} (%)")
    axes.xaxis.set_major_formatter("{x:g}")
    low, high = axes.get_xlim()
    axes.xaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    axes.margins(x=0.2)
    _plain(axes)
    picture.draw_without_rendering()  # places are known from here on
    for number, name in enumerate(names):
        taken = [one.get_window_extent() for one in (*names[:number], *bars)]
        for place in itertools.product((7, -7), (5, -13, 17, -25, -4)):
            name.set(position=place, ha="left" if place[0] > 0 else "right")
            if not any(name.get_window_extent().overlaps(box) for box in taken):
                break
    save(picture, file)


def _tasks(results: Results, rows: list[str], file: Path) -> None:
    picture = figure(figsize=(1.7 * len(results.tasks) + 2.5, 4.4))
    axes = picture.subplots()
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        found = results.accuracies(row)
        y = [mean(v for (t, _), v in found.items() if t == task) for task in results.tasks]
        x = [place + (number + 0.5) * width - 0.4 for place in range(len(y))]
        axes.bar(x, y, width * 0.92, color=_colour(row, results), label=row)
    axes.set_xticks(range(len(results.tasks)), results.tasks)
    axes.set(ylabel=f"{results.what} (%)", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    _plain(axes)
    save(picture, file)


def _matrices(results: Results, rows: list[str], file: Path) -> None:
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    count = len(results.tasks)
    picture = figure(figsize=(2.6 * columns + 1, 2.5 * lines + 0.6))
    grid = np.atleast_1d(picture.subplots(lines, columns, sharex=True, sharey=True)).reshape(-1)
    image = None
    for number, (axes, row) in enumerate(zip(grid, rows, strict=False)):
        matrix = 100 * np.mean([results.matrix(row, s) for s in results.seeds(row)], axis=0)
        image = axes.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
        for i in range(count):
            for j in range(i + 1 if count <= 6 else 0):
                value = matrix[i, j]
                colour = "white" if value < 60 else INK
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(row, fontsize=8)
        axes.set_xticks(range(count), results.tasks, rotation=90, fontsize=6)
        axes.set_yticks(range(count), results.tasks, fontsize=6)
        axes.tick_params(labelbottom=number + columns >= len(rows))
    for axes in grid[len(rows) :]:
        axes.axis("off")
    for axes in grid[::columns][:lines]:
        axes.set_ylabel("after learning", fontsize=7)
    picture.colorbar(image, ax=grid.tolist(), shrink=0.7, label="test accuracy (%)")
    save(picture, file)


def _colour(row: str, results: Results) -> str:
    """The colour of the row's method; a lighter one for a second row of the same method."""
    method = _method(results, row)
    same = [r for r in results.rows if _method(results, r) == method]
    share = 0.45 * same.index(row) / max(1, len(same))
    rgb = [int(COLOURS.get(method, "#555555")[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in rgb)


def _method(results: Results, row: str) -> str:
    return next(c["setup"]["method"]["name"] for (r, _, _), c in results.cells.items() if r == row)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)

"""The images of a comparison: the part of a folder that a protocol uses, as a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ksm.data.folder import scan, spread
from ksm.errors import KsmError

_DONE = "subset.json"


def subset(
    folder: Path, to: Path, limit: Mapping[str, int], classes: tuple[str, ...] | None = None
) -> Path:
    """Links to the images of `folder` that are used, as `to/train|val|test/CLASS/*`, made once.

    The same images each time: spread evenly over each split, which is sorted by class.

    Args:
        limit: at most so many images of a split, by the split's name.
        classes: only these.

    Raises:
        KsmError: the folder cannot be used, has no test split, or `to` holds another subset.
    """
    wanted = {"folder": str(folder.resolve()), "limit": dict(limit), "classes": classes}
    wanted = json.loads(json.dumps(wanted))
    if (to / _DONE).exists():
        if json.loads((to / _DONE).read_text(encoding="utf-8")) != wanted:
            raise KsmError(f"{to} holds other images than asked for: remove it")
        return to
    found = scan(folder)
    if not found.splits["test"]:
        raise KsmError(f"{folder} has no test split: a comparison needs one")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as temporary:
        for split, samples in found.splits.items():
            chosen = [(p, c) for p, c in samples if classes is None or found.classes[c] in classes]
            for number, (path, label) in enumerate(spread(chosen, limit.get(split))):
                place = Path(temporary) / split / found.classes[label]
                place.mkdir(parents=True, exist_ok=True)
                _link(path.resolve(), place / f"{number:06}-{path.name}")
        (Path(temporary) / _DONE).write_text(json.dumps(wanted), encoding="utf-8")
        shutil.rmtree(to, ignore_errors=True)
        os.chmod(temporary, 0o755)
        os.rename(temporary, to)
        os.mkdir(temporary)  # for the context manager to remove
    return to


def _link(path: Path, to: Path) -> None:
    try:
        to.symlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, to)

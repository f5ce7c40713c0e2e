"""A task file: one task, self-describing and checked.

`NAME.safetensors` holds the task's tensors and, in the safetensors metadata under the key `ksm`,
JSON that says everything else needed to use it. Its `digest` is the SHA-256 of all that the file
means (the JSON without it, and each tensor), so that an altered file is refused. Files are written
beside their place and renamed into it: a reader finds the old one or the new.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open

from ksm.errors import KsmError

if TYPE_CHECKING:
    from torch import Tensor

    from ksm.task import Task

FORMAT = 1
LARGEST = 16
"""How far a task's network may have grown, in sizes of the backbone."""
_SHAPE: dict[str, type] = {
    "name": str,
    "classes": list,
    "method.name": str,
    "backbone.name": str,
    "backbone.head": str,
    "backbone.fingerprint": str,
    "backbone.preprocess.size": int,
    "bytes.mask": int,
    "bytes.norm": int,
    "bytes.head": int,
    "record": dict,
    "metrics": dict,
}
"""What is always there; the rest of `record` and `metrics` is its author's affair."""


def write(path: Path, task: Task) -> None:
    """Write one task file, atomically.

    Raises:
        KsmError: no room, or no permission; a file that was there before is unharmed.
    """
    from safetensors.torch import save

    meta = _meta(task)
    meta["digest"] = _digest(meta, task.tensors)
    content = save(task.tensors, {"ksm": json.dumps(meta, ensure_ascii=False)})
    write_atomically(path, content)


def digest_of(task: Task) -> str:
    """SHA-256, in hex, of all that a task's file means; of a task from a file, that file's."""
    return task.digest or _digest(_meta(task), task.tensors)


def _meta(task: Task) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "format": FORMAT,
        "name": task.name,
        "classes": list(task.classes),
        "method": task.method.settings(),
        "backbone": {**asdict(task.backbone), "fingerprint": task.fingerprint},
        "bytes": task.sizes(),
        "record": task.record,
        "metrics": task.metrics,
    }
    if task.earlier:
        meta["earlier"] = [[one.name, digest_of(one)] for one in task.earlier]
    if task.grown != 1:
        meta["grown"] = task.grown
    return json.loads(json.dumps(meta))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, and rename it into place.

    Raises:
        KsmError: it cannot be written; a file that was there before is unharmed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise KsmError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON of a task file.

    Raises:
        KsmError: not a task file, damaged, or of a newer format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("ksm")
        if text is None:
            raise KsmError(f"{path} is a safetensors file but no ksm task")
        meta = json.loads(text)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise KsmError(f"{path} is damaged or no task file: {error}") from error
    check_header(meta, path)
    return meta


def check_header(meta: Any, path: Path) -> None:
    """Tell whether the JSON of a task file has what is always there.

    Raises:
        KsmError: it has not, or is of a newer format; the line names `path`.
    """
    found = _at(meta, "format")
    if not isinstance(found, int):
        raise KsmError(f"{path} is damaged or no task file: it does not say its format")
    if found > FORMAT:
        raise KsmError(f"{path} has format {found}, this ksm reads up to {FORMAT}: update ksm")
    for key, kind in _SHAPE.items():
        if not isinstance(_at(meta, key), kind):
            raise KsmError(f"{path} is damaged: expected a {kind.__name__} as its {key!r}")
    links, grown = meta.get("earlier", []), meta.get("grown", 1.0)
    if not isinstance(links, list) or not all(_is_link(link) for link in links):
        raise KsmError(f"{path} is damaged: expected a name and a digest for each earlier task")
    if not isinstance(grown, int | float) or not 1 <= grown <= LARGEST:
        raise KsmError(f"{path} is damaged: grown is {grown}, expected 1 to {LARGEST}")
    if not all(isinstance(name, str) for name in meta["classes"]):
        raise KsmError(f"{path} is damaged: expected text for each of its classes")


def read(path: Path) -> Task:
    """Read one task file and check it against its digest.

    Raises:
        KsmError: not a task file, damaged, of a newer format, or a task that builds on others,
            which only a bank can find.
    """
    task, links = read_link(path)
    if links:
        raise KsmError(
            f"{path} builds on task {links[-1][0]!r}: load it through the Bank that has both"
        )
    return task


def read_link(path: Path) -> tuple[Task, list[tuple[str, str]]]:
    """A task without those that it builds on, and the names and digests of these."""
    from safetensors.torch import load_file

    from ksm.backbones.describe import Description
    from ksm.data.preprocess import Preprocess
    from ksm.methods import make
    from ksm.task import Task

    meta = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise KsmError(f"{path} is damaged: {error}") from error
    digest = meta.pop("digest", None)
    if digest != _digest(meta, tensors):
        raise KsmError(f"{path} is damaged or was altered: its content does not fit its digest")
    backbone = meta["backbone"]
    try:
        prepare: dict[str, Any] = backbone["preprocess"]
        prepare = {**prepare, "mean": tuple(prepare["mean"]), "std": tuple(prepare["std"])}
        links = [(name, link) for name, link in meta.get("earlier", [])]
        task = Task(
            name=meta["name"],
            classes=tuple(meta["classes"]),
            method=make(**meta["method"]),
            backbone=Description(backbone["name"], backbone["head"], Preprocess(**prepare)),
            fingerprint=backbone["fingerprint"],
            tensors=tensors,
            grown=float(meta.get("grown", 1.0)),
            digest=digest,
            record=meta["record"],
            metrics=meta["metrics"],
        )
        return task, links
    except (KsmError, KeyError, TypeError, ValueError) as error:
        raise KsmError(
            f"{path} was written by another version of ksm or is damaged: {error}"
        ) from error


def _is_link(link: Any) -> bool:
    return isinstance(link, list) and [type(part) for part in cast("list[Any]", link)] == [str, str]


def _at(meta: Any, key: str) -> Any:
    """The value under a dotted key of nested objects; None where it is not there."""
    for part in key.split("."):
        meta = meta.get(part) if isinstance(meta, dict) else None
    return meta


def _digest(meta: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "no room left on the disk"
    if error.errno == errno.EEXIST:
        return "a file of that name is in the way"
    return error.strerror or str(error)

"""A task file: one task, self-describing and checked.

`NAME.safetensors` holds a few byte tensors, one a part, and in the safetensors metadata under the
key `ksm` JSON that says everything else needed to use it. A part is a zstandard frame:

| part | what is in the frame |
|---|---|
| `mask`, `norm`, `head`, `weights` | the task's tensors of that part, as safetensors |
| any other name | tensors of a part that the method names, as safetensors; see `Method.part_of` |
| `history` | the records of the epochs, as JSON |

The length of a part is what it takes on the disk. `digest` in the JSON is the SHA-256 of all other
JSON and of each part; a file with another digest is refused. `method_from` and `method_package` say
where a method from outside comes from: `package.module:Class`, and the distribution and its version
where these are known. Reading a file never imports what it names.
A file is written beside its place and renamed into it: a reader finds the old one or the new one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zstandard
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from ksm.bank.stored_method import PART, check_parts, check_source, method_of, source_of
from ksm.core.atomic import write_atomically
from ksm.errors import KsmError

if TYPE_CHECKING:
    from ksm.methods import Method
    from ksm.task import Task

FORMAT = 2
SUFFIX = ".safetensors"
LARGEST = 16
"""How far a task's network may have grown, in sizes of the backbone."""
PARTS = ("mask", "norm", "head", "weights")
UNPACKED = 2**33
"""Bytes that a part may have when it is unpacked: a damaged frame can claim any number."""
_LEVEL = {"mask": 19}
"""The level of zstandard: high for masks, low for floats, where a high one brings nothing."""
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
"""Required entries and their types; the rest of `record` and `metrics` is free."""


class _Here(threading.local):
    """A decompressor for each thread: making one takes as long as unpacking a head."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_HERE = _Here()


@dataclass(frozen=True, slots=True)
class Use:
    """Facts of a task's JSON; `classes` is how many there are."""

    method: Method
    head: str
    classes: int
    grown: float


@dataclass(frozen=True)
class Packed:
    """A task as its file holds it.

    Args:
        text: the JSON.
        parts: a zstandard frame for each part, see above.
    """

    text: str
    parts: dict[str, bytes]

    def header(self) -> dict[str, Any]:
        """Return the JSON, parsed."""
        return json.loads(self.text)

    @functools.cached_property
    def use(self) -> Use:
        """The facts that using the task takes beside its tensors; parsed once.

        Raises:
            KsmError: the method or a setting of it is not known here.
        """
        meta = self.header()
        head, classes = meta["backbone"]["head"], len(meta["classes"])
        return Use(method_of(meta, meta["name"]), head, classes, meta.get("grown", 1.0))

    def unpack(self, part: str) -> bytes:
        """Return the content of a part: safetensors, or JSON for the history.

        Raises:
            ValueError: the frame is damaged.
        """
        frame = self.parts[part]
        try:
            claimed = zstandard.frame_content_size(frame)
            if not 0 <= claimed <= UNPACKED:
                raise ValueError(f"its part {part} claims {claimed} bytes")
            return _HERE.zstd.decompress(frame)
        except zstandard.ZstdError as error:
            raise ValueError(f"its part {part} is no zstandard frame: {error}") from error


def pack(task: Task) -> Packed:
    """Return a task as its file will hold it.

    Raises:
        KsmError: the method stores tensors in a part that is not its own.
    """
    from safetensors.torch import save as save_tensors

    check_parts(task)

    def packed(part: str, content: bytes) -> bytes:
        return zstandard.ZstdCompressor(_LEVEL.get(part, 3)).compress(content)

    parts = {part: packed(part, save_tensors(tensors)) for part, tensors in task.parts().items()}
    record = {key: value for key, value in task.record.items() if key != "history"}
    meta: dict[str, Any] = {
        "format": FORMAT,
        "name": task.name,
        "classes": list(task.classes),
        "method": task.method.settings(),
        **source_of(task.method),
        "backbone": {**asdict(task.backbone), "fingerprint": task.fingerprint},
        "bytes": {part: len(parts.get(part, b"")) for part in dict.fromkeys([*PARTS, *parts])},
        "record": record,
        "metrics": task.metrics,
    }
    if task.earlier:
        meta["earlier"] = [[one.name, digest_of(one)] for one in task.earlier]
    if task.grown != 1:
        meta["grown"] = task.grown
    if "history" in task.record:
        parts["history"] = packed("history", json.dumps(task.record["history"]).encode())
    meta = json.loads(json.dumps(meta))
    return _signed(meta, parts)


def _signed(meta: Mapping[str, Any], parts: dict[str, bytes]) -> Packed:
    meta = {**meta, "digest": _digest(meta, parts)}
    return Packed(json.dumps(meta, ensure_ascii=False, separators=(",", ":")), parts)


def write(path: Path, task: Task) -> None:
    """Write one task file, atomically.

    Raises:
        KsmError: no room, or no permission; a file that was there before is unharmed.
    """
    write_atomically(path, content_of(pack(task)))


def content_of(packed: Packed) -> bytes:
    """Return the bytes of a task file."""
    parts = {name: np.frombuffer(part, np.uint8) for name, part in packed.parts.items()}
    return save(parts, {"ksm": packed.text})


def digest_of(task: Task) -> str:
    """Return the SHA-256, in hex, of the JSON and the parts of a task's file; of a task that was
    read from a file, that of this file."""
    return task.digest or pack(task).header()["digest"]


def read_header(path: Path) -> dict[str, Any]:
    """Return the JSON of a task file; its record is without the history of the epochs.

    Raises:
        KsmError: not a task file, damaged, or of another format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("ksm")
    except (SafetensorError, OSError) as error:
        raise KsmError(f"{path} is damaged or no task file: {error}") from error
    return _parsed(text, path)


def _parsed(text: object, path: Path) -> dict[str, Any]:
    if not isinstance(text, str):
        raise KsmError(f"{path} is a safetensors file but no ksm task")
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KsmError(f"{path} is damaged or no task file: {error}") from error
    check_header(meta, path)
    return meta


def check_header(meta: Any, path: Path) -> None:
    """Refuse JSON of a task file that lacks a required entry.

    Raises:
        KsmError: an entry is missing or wrong, or the format is another; the line names `path`.
    """
    found = _at(meta, "format")
    if not isinstance(found, int):
        raise KsmError(f"{path} is damaged or no task file: it does not say its format")
    if found > FORMAT:
        raise KsmError(f"{path} has format {found}, this ksm reads up to {FORMAT}: update ksm")
    if found < FORMAT:
        raise KsmError(
            f"{path} has format {found}, which was given up before ksm's first release; this ksm "
            f"reads format {FORMAT}: learn the task again"
        )
    for key, kind in _SHAPE.items():
        if not isinstance(_at(meta, key), kind):
            raise KsmError(f"{path} is damaged: expected a {kind.__name__} as its {key!r}")
    links, grown = meta.get("earlier", []), meta.get("grown", 1.0)
    if not isinstance(links, list) or not all(_is_link(link) for link in links):
        raise KsmError(f"{path} is damaged: expected a name and a digest for each earlier task")
    if not isinstance(grown, int | float) or not 1 <= grown <= LARGEST:
        raise KsmError(f"{path} is damaged: grown is {grown}, expected 1 to {LARGEST}")
    check_source(meta, path)
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
    """Read a task without those that it builds on, and the names and digests of these."""
    return unpack(read_packed(path), path)


def read_packed(path: Path) -> Packed:
    """Read a task file without unpacking its parts, and check it against its digest.

    Raises:
        KsmError: not a task file, damaged, or of another format.
    """
    try:
        content = path.read_bytes()
        parts = {name: part.tobytes() for name, part in load(content).items()}
        length = struct.unpack("<Q", content[:8])[0]
        text = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("ksm")
    except (SafetensorError, ValueError, KeyError, OSError, RecursionError) as error:
        raise KsmError(f"{path} is damaged or no task file: {error}") from error
    meta = _parsed(text, path)
    if odd := [part for part in parts if not PART.fullmatch(part)]:
        raise KsmError(f"{path} is damaged: it has a part {min(odd)!r}, which no task has")
    if meta.pop("digest", None) != _digest(meta, parts):
        raise KsmError(f"{path} is damaged or was altered: its content does not fit its digest")
    return Packed(text, parts)


def unpack(packed: Packed, path: Path) -> tuple[Task, list[tuple[str, str]]]:
    """Return a task without those that it builds on, and the names and digests of these.

    Args:
        path: of the file that it comes from, for the errors.

    Raises:
        UnknownMethod: its method comes from outside, and is not known here.
        KsmError: it is damaged, or of another version of ksm.
    """
    from safetensors.torch import load as load_tensors

    from ksm.core.backbone import Description
    from ksm.core.preprocess import Preprocess
    from ksm.methods.registry import UnknownMethod
    from ksm.task import Task

    meta = packed.header()
    try:
        plain = {part: packed.unpack(part) for part in packed.parts}
        record: dict[str, Any] = dict(meta["record"])
        if "history" in plain:
            record["history"] = json.loads(plain.pop("history"))
        tensors = {name: one for part in plain.values() for name, one in load_tensors(part).items()}
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise KsmError(f"{path} is damaged: {error}") from error
    except MemoryError:
        raise KsmError(f"{path} is damaged, or larger unpacked than memory") from None
    backbone = meta["backbone"]
    try:
        prepare: dict[str, Any] = backbone["preprocess"]
        prepare = {**prepare, "mean": tuple(prepare["mean"]), "std": tuple(prepare["std"])}
        links = [(name, link) for name, link in meta.get("earlier", [])]
        task = Task(
            name=meta["name"],
            classes=tuple(meta["classes"]),
            method=method_of(meta, path.name.removesuffix(SUFFIX)),
            backbone=Description(backbone["name"], backbone["head"], Preprocess(**prepare)),
            fingerprint=backbone["fingerprint"],
            tensors=tensors,
            grown=float(meta.get("grown", 1.0)),
            digest=meta["digest"],
            record=record,
            metrics=meta["metrics"],
        )
        return task, links
    except UnknownMethod:
        raise
    except (KsmError, KeyError, TypeError, ValueError) as error:
        raise KsmError(
            f"{path} was written by another version of ksm or is damaged: {error}"
        ) from error


def _is_link(link: Any) -> bool:
    return isinstance(link, list) and [type(part) for part in cast("list[Any]", link)] == [str, str]


def _at(meta: Any, key: str) -> Any:
    """Return the value under a dotted key of nested objects, None where there is none."""
    for part in key.split("."):
        meta = meta.get(part) if isinstance(meta, dict) else None
    return meta


def _digest(meta: Mapping[str, Any], parts: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(parts):
        digest.update(f"\n{name} {len(parts[name])}\n".encode())
        digest.update(parts[name])
    return digest.hexdigest()

"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import io
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ksm.cli.compare import bench, compare
from ksm.core.allocator import give_back_freed_blocks, keep_freed_blocks
from ksm.errors import KsmError

if TYPE_CHECKING:
    from torch import nn

    from ksm.bank import Bank
    from ksm.cli.display import Display
    from ksm.methods import Method
    from ksm.task import Task


app = typer.Typer(
    help="One frozen image backbone, a small task file for each new task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Benchmark images that package registries carry.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.command("compare")(compare)
app.command("bench")(bench)

BankOption = Annotated[Path, typer.Option("--bank", envvar="KSM_BANK", help="Folder of tasks.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Packaged, timm or torchvision name, or package.module:function. "
        "Default: mobilenetv2, or what the task says.",
    ),
]
BANK = Path("bank")


@app.command()
def learn(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    folder: Annotated[
        Path,
        typer.Argument(
            help="Images: FOLDER/CLASS/*.jpg, or FOLDER/train/CLASS/*.jpg with val and test."
        ),
    ],
    bank: BankOption = BANK,
    backbone: BackboneOption = None,
    method: Annotated[
        str,
        typer.Option(
            help="ksm, piggyback, packnet, cpg, lora, bn, probe, random-mask, finetune, scratch."
        ),
    ] = "ksm",
    recipe: Annotated[
        str, typer.Option(help="default, or released: the paper's settings and epochs.")
    ] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the method, such as alpha=0.25."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Image side, pixels.")] = None,
    crop: Annotated[float, typer.Option(help="Share of the short side that is seen.")] = 1.0,
    stretch: Annotated[
        bool, typer.Option("--stretch", help="Squeeze images into the square: no end is cut off.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Default: by the number of images.")] = None,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 32,
    augment: Annotated[
        str, typer.Option(help="none, flip, crop, pad, crop+flip, pad+flip.")
    ] = "flip",
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1).")] = 0.0,
    balance: Annotated[bool, typer.Option("--balance", help="Weigh rare classes more.")] = False,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a gain.")
    ] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Compute blocks twice: less memory, more time."),
    ] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Replay steps as a CUDA graph: faster on a GPU.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    seed: Annotated[int, typer.Option(help="Of head, order and augmentation.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many training images.")] = None,
    head: Annotated[str | None, typer.Option(help="Layer that the task's head replaces.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on unreadable images.")] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Store normalisation and head in float16.")
    ] = False,
    max_size: Annotated[
        str | None,
        typer.Option(help="Of the task's file, such as 150kB: learns again until it fits."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a task of that name.")] = False,
    json_: JsonOption = False,
) -> None:
    """Learn a task from a folder of labelled images."""
    if checkpointing:
        give_back_freed_blocks()

    from ksm.bank import Bank
    from ksm.data.folder import image_folder

    image_folder(folder)
    Bank(bank).check_free(name, force)

    from rich.console import Console

    from ksm.backbones import DEFAULT
    from ksm.backbones import backbone as load_backbone
    from ksm.cli.display import Display
    from ksm.methods import make
    from ksm.methods.ksm import KSM
    from ksm.train.learn import learn as learn_task
    from ksm.train.settings import Training
    from ksm.train.size_budget import bytes_of, fit_size

    wanted: dict[str, Any] = {
        "epochs": epochs,
        "batch": batch,
        "label_smoothing": label_smoothing,
        "balance": balance,
        "patience": patience,
        "augment": augment,
        "precision": precision,
        "checkpointing": checkpointing,
        "graph": graph,
        "workers": workers,
        "seed": seed,
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    console = Console(stderr=True, soft_wrap=True)
    settings = _settings(set_ or [])
    chosen = make(method, recipe, **settings)
    training = Training.released(chosen, **given) if recipe == "released" else Training(**given)
    most = bytes_of(max_size) if max_size else None
    if most and not isinstance(chosen, KSM):
        raise KsmError(f"--max-size goes with method ksm, not with {chosen.name}")
    log = Bank(bank).path(name).with_suffix(".log.jsonl")
    with Display(console, log) as display:
        module = load_backbone(DEFAULT if backbone is None else backbone)
        learn_by = partial(
            learn_task,
            module,
            folder,
            name=name,
            training=training,
            size=size,
            crop=crop,
            stretch=stretch,
            head=head,
            limit=limit,
            earlier=_earlier(Bank(bank), chosen, module, head, name),
            strict=strict,
            half=half,
            callback=display,
        )
        if most and isinstance(chosen, KSM):
            task = fit_size(lambda m: learn_by(method=m), chosen, most, display.say)
        else:
            task = learn_by(method=chosen)
        path = Bank(bank).save(task, force=force)
        picture = _draw_curves(task, path, display)
    if stopped := task.record["stopped"]:
        console.print(f"stopped early: {stopped}", highlight=False)
    if json_:
        _print_json(_summary(Bank(bank).header(name), path))
        return
    from ksm.core.text import clock, percent
    from ksm.core.text import size as size_text

    test = task.metrics.get("test")
    parts = [
        f"val {percent(task.metrics['val']['accuracy'])}",
        f"test {percent(test['accuracy'])}" if test else "no test split",
        f"{size_text(path.stat().st_size)} (a full copy: {size_text(task.record['full_copy'])})",
        f"{clock(task.record['seconds'])} of training",
    ]
    if fitted := task.record.get("max_size"):
        cost = 100 * fitted["cost"]
        parts.append(
            f"for its size {abs(cost):.1f} points {'less' if cost >= 0 else 'more'} on val"
        )
    print(f"{name}: {', '.join(parts)}\n{path}" + (f"\n{picture}" if picture else ""))


@app.command("eval")
def evaluate(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    folder: Annotated[Path, typer.Argument(help="Images: FOLDER/CLASS/*.jpg")],
    bank: BankOption = BANK,
    backbone: BackboneOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on unreadable images.")] = False,
    json_: JsonOption = False,
) -> None:
    """Accuracy of a task on a folder of labelled images."""
    from ksm.bank import Bank

    task = Bank(bank).load(name)

    from ksm.cli.display import skipped_text
    from ksm.core.text import percent
    from ksm.data.folder import scan_labelled
    from ksm.data.load import load
    from ksm.train.evaluate import device
    from ksm.train.evaluate import evaluate as evaluate_model

    samples = scan_labelled(folder, task.classes)
    images = load(samples, task.preprocess, strict=strict)
    found = evaluate_model(task.on(_backbone_of(task, backbone)).to(device()), images)
    if images.skipped:
        print(f"warning: {skipped_text(images.skipped)}", file=sys.stderr)
    if json_:
        _print_json({"task": name, **found, "skipped": len(images.skipped)})
        return
    by_class = zip(task.classes, found["correct"], found["count"], strict=True)
    rows = [[c, percent(right / n if n else None), f"{right} of {n}"] for c, right, n in by_class]
    _print_table(["class", "accuracy", "right"], rows)
    print(f"{name}: accuracy {percent(found['accuracy'])} on {found['images']} images")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    task: Annotated[str | None, typer.Option("--task", help="Name of the task.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Run every task of the bank.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Classes to show.")] = 3,
    bank: BankOption = BANK,
    backbone: BackboneOption = None,
    json_: JsonOption = False,
) -> None:
    """Most probable classes of images, by one task or by all."""
    if (task is None) == (not all_):
        raise KsmError("say which task: --task NAME, or --all for every task of the bank")
    from ksm.bank import Bank

    here = Bank(bank)
    tasks = _readable(here) if all_ else [here.load(str(task))]
    if not tasks:
        raise KsmError(f"there is no task in {bank}: learn one with `ksm learn NAME FOLDER`")

    from ksm.infer.predict import Prediction, predict_all

    by_backbone: dict[str, list[Task]] = {}
    for one in tasks:
        key = one.backbone.name if backbone is None else backbone
        by_backbone.setdefault(key, []).append(one)
    by_task: dict[str, list[Prediction]] = {}
    for same in by_backbone.values():
        by_task |= predict_all(same, _backbone_of(same[0], backbone), images, top)
    results = [result for one in tasks for result in by_task[one.name]]
    found: list[dict[str, Any]] = [
        {
            "file": str(result.file),
            "task": result.task,
            "classes": [{"name": c, "probability": p} for c, p in result.classes],
        }
        for result in results
    ]
    rows = [
        [
            str(result.file),
            result.task,
            ", ".join(f"{c} {100 * p:.1f} %" for c, p in result.classes),
        ]
        for result in results
    ]
    if json_:
        _print_json(found)
    else:
        _print_table(["file", "task", "classes"], rows)


@app.command()
def which(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    by: Annotated[
        str, typer.Option(help="statistics (of BatchNorm) or entropy (of the outputs).")
    ] = "statistics",
    top: Annotated[int, typer.Option(min=1, help="Tasks to show.")] = 3,
    bank: BankOption = BANK,
    backbone: BackboneOption = None,
    json_: JsonOption = False,
) -> None:
    """Rank the tasks of the bank by how well images fit them, where nobody says whose they are."""
    from ksm.bank import Bank

    if by not in ("statistics", "entropy"):
        raise KsmError(f"--by {by}: expected statistics or entropy")
    tasks = _readable(Bank(bank))
    if not tasks:
        raise KsmError(f"there is no task in {bank}: learn one with `ksm learn NAME FOLDER`")

    from ksm.infer.predict import which_task

    networks = {
        one.backbone.name: _backbone_of(one, backbone)
        for one in {task.backbone.name: task for task in tasks}.values()
    }
    ranked = which_task([(task, networks[task.backbone.name]) for task in tasks], images, by)
    found = [
        {
            "file": str(path),
            "tasks": [{"name": name, by: value} for name, value in order[:top]],
        }
        for path, order in ranked
    ]
    if json_:
        _print_json(found)
        return
    rows = [
        [str(path), ", ".join(f"{name} {value:.3f}" for name, value in order[:top])]
        for path, order in ranked
    ]
    _print_table(["file", f"tasks, by {by} (less fits better)"], rows)


@app.command()
def tasks(bank: BankOption = BANK, json_: JsonOption = False) -> None:
    """List the tasks of the bank."""
    from ksm.bank import Bank
    from ksm.core.text import percent, size

    here = Bank(bank)
    if not bank.is_dir():
        raise KsmError(f"no bank at {bank}: learn a task, or say where with --bank")
    headers, damaged = here.headers()
    for line in damaged:
        _left_out(line)
    found = [_summary(header, here.path(name)) for name, header in headers.items()]
    if json_:
        _print_json(found)
        return
    rows = [
        [
            one["name"],
            str(len(one["classes"])),
            one["method"]["name"],
            one["backbone"]["name"],
            percent(_accuracy(one, "val")),
            percent(_accuracy(one, "test")),
            size(one["bytes"]["file"]),
        ]
        for one in found
    ]
    _print_table(["task", "classes", "method", "backbone", "val", "test", "size"], rows)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    bank: BankOption = BANK,
    json_: JsonOption = False,
) -> None:
    """All that a task's file says."""
    from ksm.bank import Bank
    from ksm.core.text import clock, percent, size

    here = Bank(bank)
    one = _summary(here.header(name), here.path(name))
    if json_:
        _print_json(one)
        return
    record, sizes = one["record"], one["bytes"]
    rows = [
        ["task", one["name"]],
        ["file", one["file"]],
        ["classes", f"{len(one['classes'])}: {', '.join(one['classes'])}"],
        ["backbone", one["backbone"]["name"]],
        ["fingerprint", one["backbone"]["fingerprint"]],
        ["images", f"{one['backbone']['preprocess']['size']} pixels a side"],
        ["method", ", ".join(f"{k} {v}" for k, v in one["method"].items() if v is not None)],
        ["validation", percent(_accuracy(one, "val"))],
        ["test", percent(_accuracy(one, "test"))],
        ["size", f"{size(sizes['file'])}: " + ", ".join(
            f"{part} {size(sizes[part])}"
            for part in ("mask", "norm", "head", "weights") if sizes.get(part)
        )],
    ]  # fmt: skip
    if _numbers(record, "full_copy"):
        rows.append(["a full copy", size(record["full_copy"])])
    if mask := _numbers(record.get("mask"), "units", "weights", "layers", "off"):
        rows.append(["Piggyback's mask", f"{size(mask['weights'] / 8)}, counted as a bit a weight"])
        rows.append(["its scores", f"{size(4 * mask['units'])}, as float32"])
        rows.append(
            [
                "mask",
                f"{mask['units']:,} units over {mask['weights']:,} weights in {mask['layers']} "
                f"layers, {percent(mask['off'])} off, "
                f"{8 * sizes['mask'] / mask['weights']:.2f} bits a weight",
            ]
        )
    if owned := _numbers(record.get("mask"), "earlier", "own", "free"):
        before = ", ".join(link[0] for link in one.get("earlier", [])) or "the backbone alone"
        rows.append(["builds on", before])
        rows.append(
            [
                "weights",
                f"{percent(owned['earlier'])} owned before, {percent(owned['own'])} this task's, "
                f"{percent(owned['free'])} still free",
            ]
        )
    settings = _numbers(record.get("training"), "seed")
    if settings and _numbers(record, "seconds", "epochs", "best_epoch"):
        rows.append(
            [
                "training",
                f"{clock(record['seconds'])}, {record['epochs']} epochs, best "
                f"{record['best_epoch']}, seed {settings['seed']}, on {record.get('device')}",
            ]
        )
    _print_table(["", ""], rows, header=False)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    bank: BankOption = BANK,
    json_: JsonOption = False,
) -> None:
    """Delete a task, its log and its picture."""
    from ksm.bank import Bank

    here = Bank(bank)
    here.remove(name)
    for suffix in (".log.jsonl", ".png"):
        here.path(name).with_suffix(suffix).unlink(missing_ok=True)
    if json_:
        _print_json({"removed": name, "file": str(here.path(name))})
    else:
        print(f"removed {name} from {bank}")


@app.command()
def backbones(json_: JsonOption = False) -> None:
    """List the packaged backbones."""
    from ksm.backbones.packaged import PACKAGED

    found = [
        {"name": name, "about": one.about, "license": one.license, "source": one.source}
        for name, one in PACKAGED.items()
    ]
    if json_:
        _print_json(found)
        return
    _print_table(["backbone", "about", "licence", "package"], [list(one.values()) for one in found])
    print(
        "Any timm or torchvision name works too (weights from a model hub), "
        "and package.module:function."
    )


@data_app.command("list")
def data_list(json_: JsonOption = False) -> None:
    """List the data sets."""
    from ksm.data.sets import SETS

    found = [
        {"name": s.name, "about": s.about, "license": s.license, "needs": " ".join(s.needs)}
        for s in SETS.values()
    ]
    if json_:
        _print_json(found)
        return
    _print_table(["data set", "about", "licence", "needs"], [list(one.values()) for one in found])


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="Name of the data set.")],
    folder: Annotated[Path | None, typer.Argument(help="Where to. Default: the cache.")] = None,
) -> None:
    """Write a data set as an ImageFolder tree, and say where it is."""
    from ksm.data.sets import SETS, get

    path = get(name, folder, lambda line: print(line, file=sys.stderr))
    print(f"licence: {SETS[name].license}; see {path / 'LICENSE.txt'}", file=sys.stderr)
    print(path)


def _backbone_of(task: Task, name: str | None) -> nn.Module:
    from ksm.backbones import backbone as load_backbone
    from ksm.backbones import is_reference

    if name is None and is_reference(task.backbone.name):
        raise KsmError(
            f"task {task.name!r} was learned on {task.backbone.name}: to run that code, give "
            f"--backbone {task.backbone.name}"
        )
    try:
        return load_backbone(task.backbone.name if name is None else name)
    except KsmError as error:
        if name is not None:
            raise
        raise KsmError(f"{error}; give task {task.name!r} its network with --backbone") from error


def _earlier(
    bank: Bank, method: Method, backbone: nn.Module, head: str | None, name: str
) -> list[Task]:
    """The tasks that a new one builds on; not the one of its own name, which it replaces."""
    if not method.builds_on_tasks:
        return []
    from ksm.core.backbone import describe, fingerprint

    printed = fingerprint(backbone, describe(backbone, head).head)
    return [task for task in bank.chain(method.name, printed) if task.name != name]


def _settings(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise KsmError(f"--set {pair}: expected KEY=VALUE, such as alpha=0.5")
        if key in ("name", "recipe"):
            option = "--method" if key == "name" else "--recipe"
            raise KsmError(f"--set {pair}: {key} is no setting, give {option} {value}")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _summary(header: dict[str, Any], path: Path) -> dict[str, Any]:
    mask = _numbers(header["record"].get("mask"), "weights")
    sizes = {**header["bytes"], "file": path.stat().st_size}
    sizes["conv_weights"] = mask["weights"] if mask else 0
    return {**header, "file": str(path), "bytes": sizes}


def _numbers(value: Any, *keys: str) -> dict[str, Any] | None:
    """The value, where it is an object with a number under each of the keys.

    Who makes a task in Python can put anything into its record and metrics.
    """
    if isinstance(value, dict) and all(isinstance(value.get(key), int | float) for key in keys):
        return cast("dict[str, Any]", value)
    return None


def _accuracy(header: dict[str, Any], split: str) -> float | None:
    found = _numbers(header["metrics"].get(split), "accuracy")
    return found["accuracy"] if found else None


def _readable(bank: Bank) -> list[Task]:
    """The tasks of a bank; a damaged file costs a warning, not the others."""
    found: list[Task] = []
    for name in bank:
        try:
            found.append(bank.load(name))
        except KsmError as error:
            _left_out(error)
    return found


def _left_out(why: object) -> None:
    print(f"warning: left out: {why}", file=sys.stderr)


def _draw_curves(task: Task, path: Path, display: Display) -> Path | None:
    """The picture beside the task file; None where it cannot be drawn, which costs no task."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        return None
    import warnings

    from ksm.compare.plot import curves

    picture = path.with_suffix(".png")
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.png")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters that the font lacks
            curves(task.record["history"], task.record["best_epoch"], task.name, part)
        part.replace(picture)
    except (KsmError, OSError) as error:
        display.warn(f"no picture: {error}")
        part.unlink(missing_ok=True)
        return None
    return picture


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))  # ASCII: valid whatever the encoding of stdout


def _print_table(columns: list[str], rows: list[list[str]], header: bool = True) -> None:
    if len(rows) > 500:  # which rich takes seconds for
        from rich.cells import cell_len

        lines = [columns, *rows]
        widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
        for line in lines:
            cells = zip(line, widths, strict=True)
            print(
                "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in cells).rstrip()
            )
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=False)
    table = Table(box=None, pad_edge=False, show_header=header, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    if not console.is_terminal:
        console.width = 200
    console.print(table, highlight=False)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names can hold what has no encoding
            stream.reconfigure(errors="backslashreplace")
    keep_freed_blocks()
    try:
        app()
    except (KsmError, OSError) as error:
        print("ksm:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

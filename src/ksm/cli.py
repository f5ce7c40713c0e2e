"""The command line. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ksm.errors import KsmError

if TYPE_CHECKING:
    from torch import nn

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
    folder: Annotated[Path, typer.Argument(help="Images: FOLDER[/train|val|test]/CLASS/*.jpg")],
    bank: BankOption = BANK,
    backbone: BackboneOption = None,
    method: Annotated[str, typer.Option(help="ksm, bn or probe.")] = "ksm",
    recipe: Annotated[
        str, typer.Option(help="default, or released: the paper's settings and 30 epochs.")
    ] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the method, such as alpha=0.5."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Image side, pixels.")] = None,
    crop: Annotated[float, typer.Option(help="Share of the short side that is seen.")] = 1.0,
    epochs: Annotated[int | None, typer.Option(help="Default: by the number of images.")] = None,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 32,
    augment: Annotated[str, typer.Option(help="none, flip, crop or crop+flip.")] = "flip",
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1).")] = 0.0,
    balance: Annotated[bool, typer.Option("--balance", help="Weigh rare classes more.")] = False,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a gain.")
    ] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    seed: Annotated[int, typer.Option(help="Of head, order and augmentation.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many training images.")] = None,
    head: Annotated[str | None, typer.Option(help="Layer that the task's head replaces.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on unreadable images.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a task of that name.")] = False,
    json_: JsonOption = False,
) -> None:
    """Learn a task from a folder of labelled images."""
    from ksm.bank import Bank

    if not folder.is_dir():
        raise KsmError(f"no such folder: {folder}")
    Bank(bank).check_free(name, force)

    import dataclasses

    from rich.console import Console

    from ksm.backbones import DEFAULT
    from ksm.backbones import backbone as load_backbone
    from ksm.display import Display
    from ksm.learning import learn as learn_task
    from ksm.methods import make
    from ksm.training import Training

    training = Training(
        epochs=epochs,
        batch=batch,
        label_smoothing=label_smoothing,
        balance=balance,
        patience=patience,
        augment=augment,  # pyright: ignore[reportArgumentType]  (checked by Training)
        precision=precision,
        workers=workers,
        seed=seed,
    )
    if recipe == "released":
        training = dataclasses.replace(training, epochs=epochs or 30, warmup=0.0)
    console = Console(stderr=True)
    settings = _settings(set_ or [])
    chosen = make(method, recipe, **settings)
    log = Bank(bank).path(name).with_suffix(".log.jsonl")
    with Display(console, log) as display:
        module = load_backbone(backbone or DEFAULT)
        task = learn_task(
            module,
            folder,
            name=name,
            method=chosen,
            training=training,
            size=size,
            crop=crop,
            head=head,
            limit=limit,
            strict=strict,
            watcher=display,
        )
    path = Bank(bank).save(task, force=force)
    picture = _draw_curves(task, path)
    if stopped := task.record["stopped"]:
        console.print(f"stopped early: {stopped}", highlight=False)
    if json_:
        _print_json(_summary(Bank(bank).header(name), path))
        return
    from ksm.display import clock, percent
    from ksm.display import size as size_text

    test = task.metrics.get("test")
    parts = [
        f"val {percent(task.metrics['val']['accuracy'])}",
        f"test {percent(test['accuracy'])}" if test else "no test split",
        f"{size_text(path.stat().st_size)} (a full copy: {size_text(task.record['full_copy'])})",
        f"{clock(task.record['seconds'])} of training",
    ]
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

    from ksm.data.folder import scan_labelled
    from ksm.data.load import load
    from ksm.evaluation import evaluate as evaluate_model

    samples = scan_labelled(folder, task.classes)
    images = load(samples, task.preprocess, strict=strict)
    found = evaluate_model(task.on(_backbone_of(task, backbone)), images)
    if images.skipped:
        print(f"skipped {len(images.skipped)} files that cannot be read:", file=sys.stderr)
        for file in images.skipped:
            print(f"  {file.path}: {file.reason}", file=sys.stderr)
    if json_:
        _print_json({"task": name, **found, "skipped": len(images.skipped)})
        return
    from ksm.display import percent

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

    names = Bank(bank).names() if all_ else [str(task)]
    if not names:
        raise KsmError(f"there is no task in {bank}: learn one with `ksm learn NAME FOLDER`")
    tasks = [Bank(bank).load(name) for name in names]

    from ksm.prediction import predict as predict_files

    loaded: dict[str, nn.Module] = {}
    rows: list[list[str]] = []
    found: list[dict[str, Any]] = []
    for one in tasks:
        key = backbone or one.backbone.name
        if key not in loaded:
            loaded[key] = _backbone_of(one, backbone)
        for result in predict_files(one, one.on(loaded[key]), images, top):
            found.append(
                {
                    "file": str(result.file),
                    "task": result.task,
                    "classes": [{"name": c, "probability": p} for c, p in result.classes],
                }
            )
            shown = ", ".join(f"{c} {100 * p:.1f} %" for c, p in result.classes)
            rows.append([str(result.file), result.task, shown])
    if json_:
        _print_json(found)
    else:
        _print_table(["file", "task", "classes"], rows)


@app.command()
def tasks(bank: BankOption = BANK, json_: JsonOption = False) -> None:
    """List the tasks of the bank."""
    from ksm.bank import Bank
    from ksm.display import percent, size

    here = Bank(bank)
    if not bank.is_dir():
        raise KsmError(f"no bank at {bank}: learn a task, or say where with --bank")
    found = [_summary(here.header(name), here.path(name)) for name in here]
    if json_:
        _print_json(found)
        return
    rows = [
        [
            one["name"],
            str(len(one["classes"])),
            one["method"]["name"],
            one["backbone"]["name"],
            percent(one["metrics"].get("val", {}).get("accuracy")),
            percent(one["metrics"].get("test", {}).get("accuracy")),
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
    from ksm.display import clock, percent, size

    here = Bank(bank)
    one = _summary(here.header(name), here.path(name))
    if json_:
        _print_json(one)
        return
    record, metrics, sizes = one["record"], one["metrics"], one["bytes"]
    mask = record.get("mask", {})
    rows = [
        ["task", one["name"]],
        ["file", one["file"]],
        ["classes", f"{len(one['classes'])}: {', '.join(one['classes'])}"],
        ["backbone", one["backbone"]["name"]],
        ["fingerprint", one["backbone"]["fingerprint"]],
        ["images", f"{one['backbone']['preprocess']['size']} pixels a side"],
        ["method", ", ".join(f"{k} {v}" for k, v in one["method"].items() if v is not None)],
        ["validation", percent(metrics.get("val", {}).get("accuracy"))],
        ["test", percent(metrics.get("test", {}).get("accuracy"))],
        ["size", f"{size(sizes['file'])}: " + ", ".join(
            f"{part} {size(sizes[part])}" for part in ("mask", "norm", "head")
        )],
    ]  # fmt: skip
    if "full_copy" in record:
        rows.append(["a full copy", size(record["full_copy"])])
    if mask:
        rows.append(
            [
                "mask",
                f"{mask['units']:,} units over {mask['weights']:,} weights in {mask['layers']} "
                f"layers, {percent(mask['off'])} off, "
                f"{8 * sizes['mask'] / mask['weights']:.2f} bits a weight",
            ]
        )
    if "seconds" in record:
        history = record["history"]
        rows.append(
            [
                "training",
                f"{clock(record['seconds'])}, {len(history)} epochs, best {record['best_epoch']}, "
                f"seed {record['training']['seed']}, on {record['device']}",
            ]
        )
    _print_table(["", ""], rows, header=False)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the task.")], bank: BankOption = BANK
) -> None:
    """Delete a task, its log and its picture."""
    from ksm.bank import Bank

    here = Bank(bank)
    here.remove(name)
    for suffix in (".log.jsonl", ".png"):
        here.path(name).with_suffix(suffix).unlink(missing_ok=True)
    print(f"removed {name} from {bank}")


@app.command()
def backbones(json_: JsonOption = False) -> None:
    """List the packaged backbones."""
    from ksm.backbones import PACKAGED

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

    return load_backbone(name or task.backbone.name)


def _settings(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise KsmError(f"--set {pair}: expected KEY=VALUE, such as alpha=0.5")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _summary(header: dict[str, Any], path: Path) -> dict[str, Any]:
    mask = header["record"].get("mask", {})
    sizes = {**header["bytes"], "file": path.stat().st_size}
    sizes["conv_weights"] = mask.get("weights", 0)
    return {**header, "file": str(path), "bytes": sizes}


def _draw_curves(task: Task, path: Path) -> Path | None:
    """The picture beside the task file; None where matplotlib is not installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        return None
    from ksm.plot import curves

    picture = path.with_suffix(".png")
    curves(task.record["history"], task.record["best_epoch"], task.name, picture)
    return picture


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(columns: list[str], rows: list[list[str]], header: bool = True) -> None:
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
    try:
        app()
    except KsmError as error:
        print(f"ksm: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""`ksm compare` and `ksm bench`: comparisons on a user's folders, and the fixed protocols."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ksm.errors import KsmError

if TYPE_CHECKING:
    from ksm.compare.protocol import Protocol, Row

ROWS = "probe,bn,piggyback+bn,ksm,finetune"

MethodsOption = Annotated[
    str | None,
    typer.Option("--methods", help="Rows, with commas: `ksm bench rows` lists them."),
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Seeds 0 ... N-1.")]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for cells, report and pictures. Default: comparison/NAME."),
]
ProcessesOption = Annotated[int, typer.Option(min=1, help="Cells at the same time.")]
BackboneOption = Annotated[str | None, typer.Option("--backbone", help="Backbone by name.")]
RenderOption = Annotated[
    bool, typer.Option("--render", help="Only make report and pictures from the cells there.")
]

bench = typer.Typer(help="The comparison protocols.", no_args_is_help=True)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of labelled images, a task each.")],
    methods: MethodsOption = ROWS,
    backbone: BackboneOption = None,
    seeds: SeedsOption = 1,
    size: Annotated[int, typer.Option(help="Image side, pixels.")] = 96,
    epochs: Annotated[int, typer.Option(help="Of each task.")] = 15,
    augment: Annotated[str, typer.Option(help="none, flip, crop or crop+flip.")] = "flip",
    limit: Annotated[int | None, typer.Option(help="At most so many training images.")] = None,
    out: OutOption = None,
    processes: ProcessesOption = 1,
    render: RenderOption = False,
) -> None:
    """Compare methods on your own folders: one table, every number from a file of its own."""
    from ksm.backbones import DEFAULT
    from ksm.compare.protocol import Domain, Protocol, rows_named
    from ksm.data.load import AUGMENTS, Augment

    def checked(value: str) -> Augment:
        for known in AUGMENTS:
            if value == known:
                return known
        raise KsmError(f"augment {value!r}: expected one of {', '.join(AUGMENTS)}")

    rows = rows_named((methods or ROWS).split(","))
    domains = tuple(
        Domain(folder.resolve().name, str(folder.resolve()), checked(augment)) for folder in folders
    )
    protocol = Protocol(
        "comparison",
        domains,
        backbone or DEFAULT,
        size,
        epochs,
        limit={"train": limit} if limit else {},
    )
    _go(protocol, rows, seeds, out or Path("comparison"), processes, render)


@bench.command("rows")
def rows() -> None:
    """List the rows that can be compared."""
    from ksm.compare.protocol import ROWS

    for row in ROWS.values():
        settings = ", ".join(f"{k} {v}" for k, v in row.settings.items())
        recipe = " released" if row.recipe == "released" else ""
        print(f"{row.name:22}{row.method}{recipe}{f' ({settings})' if settings else ''}")


@bench.command("five-domains")
def five_domains(
    methods: MethodsOption = None,
    backbone: BackboneOption = None,
    seeds: SeedsOption = 1,
    out: OutOption = None,
    processes: ProcessesOption = 1,
    render: RenderOption = False,
) -> None:
    """Five unlike domains from package registries, at small size."""
    from ksm.compare.protocol import five_domains as protocol

    _bench(protocol(backbone or "resnet50_1by2"), methods, seeds, out, processes, render)


@bench.command("twenty-tasks")
def twenty_tasks(
    methods: MethodsOption = None,
    backbone: BackboneOption = None,
    seeds: SeedsOption = 1,
    out: OutOption = None,
    processes: ProcessesOption = 1,
    render: RenderOption = False,
) -> None:
    """22 tasks of five letters or digits, from package registries."""
    from ksm.compare.public import twenty_tasks as protocol

    _bench(protocol(backbone or "resnet50_1by2"), methods, seeds, out, processes, render)


@bench.command("imagenet-to-sketch")
def imagenet_to_sketch(
    folder: Annotated[Path, typer.Argument(help="With cubs_cropped, stanford_cars_cropped, ...")],
    methods: MethodsOption = None,
    backbone: BackboneOption = None,
    seeds: SeedsOption = 1,
    out: OutOption = None,
    processes: ProcessesOption = 1,
    render: RenderOption = False,
) -> None:
    """The field's five tasks at 224 pixels, from a folder that you have."""
    from ksm.compare.public import imagenet_to_sketch as protocol

    chosen = protocol(folder, backbone or "torchvision:resnet50")
    _bench(chosen, methods, seeds, out, processes, render)


@bench.command("cifar100")
def cifar100(
    folder: Annotated[Path, typer.Argument(help="With cifar-100-python.")],
    methods: MethodsOption = None,
    backbone: BackboneOption = None,
    seeds: SeedsOption = 1,
    out: OutOption = None,
    processes: ProcessesOption = 1,
    render: RenderOption = False,
) -> None:
    """CIFAR-100 in 20 tasks of five classes, from a folder that you have."""
    from ksm.compare.public import VGG16_BN
    from ksm.compare.public import cifar100 as protocol

    place = out or Path("comparison") / "cifar-100"
    chosen = protocol(folder, place / "cifar-100", backbone or VGG16_BN)
    _bench(chosen, methods, seeds, place, processes, render)


@bench.command("ablation")
def ablation(
    backbone: BackboneOption = None,
    seeds: SeedsOption = 1,
    out: OutOption = None,
    processes: ProcessesOption = 1,
    render: RenderOption = False,
) -> None:
    """One setting of ksm changed at a time, on two of the five domains."""
    from ksm.compare.protocol import ABLATION, SELECTION
    from ksm.compare.protocol import ablation as protocol

    chosen = protocol(backbone or "resnet50_1by2")
    rows = tuple({**SELECTION, **ABLATION}.values())
    _go(chosen, rows, seeds, out or _default(chosen), processes, render)


def _bench(
    protocol: Protocol,
    methods: str | None,
    seeds: int,
    out: Path | None,
    processes: int,
    render: bool,
) -> None:
    from ksm.compare.protocol import ROWS, rows_named

    rows = rows_named(methods.split(",") if methods else list(ROWS))
    _go(protocol, rows, seeds, out or _default(protocol), processes, render)


def _default(protocol: Protocol) -> Path:
    return Path("comparison") / f"{protocol.name}-{protocol.backbone.replace(':', '-')}"


def _go(
    protocol: Protocol,
    rows: tuple[Row, ...],
    seeds: int,
    out: Path,
    processes: int,
    render: bool,
) -> None:
    from ksm.bank import write_atomically
    from ksm.compare.cells import run
    from ksm.compare.pictures import draw
    from ksm.compare.report import Results, markdown

    if not render:
        run(protocol, rows, range(seeds), out, processes)
    results = Results.of(out)
    text = markdown(results)
    write_atomically(out / "report.md", text.encode())
    print(text)
    for path in [out / "report.md", *draw(results, out)]:
        print(path)

"""What is compared: the tasks and their order, the rows (methods with settings), the budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ksm.bank import Bank
from ksm.data.load import Augment
from ksm.data.sets import SETS, get
from ksm.errors import KsmError
from ksm.methods import METHODS, make
from ksm.training import Training


@dataclass(frozen=True)
class Domain:
    """One task of a comparison.

    Args:
        name: of the task.
        source: one of ksm's data sets by name, or a folder of labelled images.
        augment, min_area: what suits its images; see `ksm.Training`.
        stretch: see `ksm.learn`.
        classes: only these; None: all.
    """

    name: str
    source: str
    augment: Augment = "flip"
    classes: tuple[str, ...] | None = None
    min_area: float = 0.8
    stretch: bool = False

    def folder(self) -> Path:
        return get(self.source) if self.source in SETS else Path(self.source)


@dataclass(frozen=True)
class Row:
    """One row of the table: a method with settings.

    Args:
        name: of the row.
        method: see `ksm.methods`.
        recipe: `default`, or `released` for the published settings, schedule included; the
            protocol's epochs stay.
        settings: of the method.
        training: settings of the training that differ; see `ksm.Training`.
        goal_of: name of the row whose validation accuracy on the same task and seed is this one's
            `goal` (CPG).
        budget: how many times the protocol's epochs it has; the product is rounded.
    """

    name: str
    method: str
    recipe: str = "default"
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    goal_of: str | None = None
    budget: float = 1


@dataclass(frozen=True)
class Protocol:
    """A comparison's common ground.

    Args:
        name: of the comparison.
        domains: in the order in which they are learned.
        backbone: by name.
        size: image side in pixels.
        epochs, batch: of each task; a method divides the epochs among its phases.
        limit: at most so many images of a split, by the split's name.
        start: `pretrained`, or `first-task`: the backbone's weights are fresh, trained on the
            first task with seed 0, and then frozen for all rows.
    """

    name: str
    domains: tuple[Domain, ...]
    backbone: str
    size: int = 64
    epochs: int = 8
    batch: int = 32
    limit: Mapping[str, int] = field(default_factory=dict[str, int])
    start: Literal["pretrained", "first-task"] = "pretrained"

    def __post_init__(self) -> None:
        names = [domain.name for domain in self.domains]
        if len(set(names)) != len(names):
            raise KsmError(f"two tasks have the same name: {', '.join(sorted(names))}")
        for name in names:
            Bank().path(name)  # a task's name must be plain


_EVERYWHERE: Mapping[str, Any] = {"mask_from": None}

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("probe", "probe", settings={"lr": 1e-2}),
        Row("bn", "bn", settings={"lr": 1e-2}),
        Row("random-mask", "random-mask", settings={"lr": 1e-2, "off": 0.34}),
        Row("piggyback", "piggyback", settings={"lr": 1e-2, "score_lr": 3e-4, "norms": "frozen"}),
        Row("piggyback+bn", "piggyback", settings={"lr": 1e-2}),
        Row("piggyback-ternary+bn", "piggyback", settings={"lr": 1e-2, "values": "ternary"}),
        Row("packnet", "packnet", settings={"norms": "frozen"}),
        Row("packnet+bn", "packnet"),
        Row("finetune", "finetune", settings={"weight_lr": 3e-3}),
        Row("cpg", "cpg", goal_of="finetune"),
        Row("cpg-grow", "cpg", settings={"max_size": 2.0}, goal_of="finetune"),
        Row("cpg-3x", "cpg", goal_of="finetune", budget=3),
        Row("scratch", "scratch"),
        Row("ksm", "ksm"),
        Row("ksm-everywhere", "ksm", settings={"levels": 16, **_EVERYWHERE}),
        Row("bn-stride16", "bn", settings={"lr": 1e-2, "mask_from": "stride16"}),
        Row("finetune-stride16", "finetune", settings={"weight_lr": 3e-3, "mask_from": "stride16"}),
        Row("ksm-released", "ksm", recipe="released"),
        Row("piggyback-released", "piggyback", recipe="released"),
        Row("packnet-released", "packnet", recipe="released"),
        Row("cpg-released", "cpg", recipe="released", goal_of="finetune"),
    )
}
"""The rows by name. `+bn`: a task has its own BatchNorm; without, the backbone's, as published.
`-released`: published learning rates, optimizer and schedule too. `cpg` may not grow; `cpg-grow`
may, to twice the size; `cpg-3x` has three times the epochs. Learning rates of bn, piggyback,
finetune and ksm are those that the ablation selected on validation. `ksm` has its defaults, masks
from stride 16 on; `ksm-everywhere` masks all layers, with 16 levels, as before `SIZES` was done.
`-stride16`: the others that start there too. `random-mask` turns off the share of kernels that
`ksm-everywhere` did, in every layer the same."""


def rows_named(names: Sequence[str], known: Mapping[str, Row] = ROWS) -> tuple[Row, ...]:
    """Rows by name, each once.

    Raises:
        KsmError: there is no such row.
    """
    wanted = dict.fromkeys(name.strip() for name in names)
    for name in wanted:
        if name not in known:
            raise KsmError(f"no row {name!r}: expected one of {', '.join(known)}")
    return tuple(known[name] for name in wanted)


FIVE_DOMAINS = (
    Domain("fashion", "fashion"),
    Domain("solar", "solar"),
    Domain("emoji-line", "emoji-line"),
    Domain("emoji-style", "emoji-style"),
    Domain("characters", "characters", augment="none"),  # a mirrored letter is another letter
)


def five_domains(backbone: str = "resnet50_1by2") -> Protocol:
    """Photographs, inspection, line drawings, art styles and characters on one backbone: a small
    stand-in for the field's ImageNet-to-Sketch from package registries alone."""
    limit = {"train": 1000, "val": 500, "test": 1000}
    return Protocol("five-domains", FIVE_DOMAINS, backbone, limit=limit)


def sizes(backbone: str = "resnet50_1by2") -> Protocol:
    """The five domains, for the size of task files."""
    return dataclasses.replace(five_domains(backbone), name="sizes")


def stages(backbone: str = "resnet50_1by2") -> Protocol:
    """The five domains, for where the mask starts."""
    return dataclasses.replace(five_domains(backbone), name="stages")


def recipes(backbone: str = "resnet50_1by2") -> Protocol:
    """The five domains, for how soon a recipe reaches an accuracy: the released one has 30
    epochs."""
    return dataclasses.replace(five_domains(backbone), name="recipes", epochs=30)


def ablation(backbone: str = "resnet50_1by2") -> Protocol:
    """Two of the five domains, to choose settings on their validation splits."""
    return dataclasses.replace(five_domains(backbone), name="ablation", domains=FIVE_DOMAINS[3:])


def _variants(method: str, base: dict[str, Any], *changes: dict[str, Any]) -> list[Row]:
    return [
        Row("-".join([method, *(f"{k}={v}" for k, v in one.items())]), method, settings=base | one)
        for one in changes
    ]


_START = {"lr": 3e-3, "score_lr": 1e-3}

ABLATION = {
    row.name: row
    for row in (
        *_variants("bn", {}, {"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-2}),
        *_variants(
            "piggyback",
            _START,
            {},
            {"lr": 1e-2},
            {"score_lr": 3e-3},
            {"score_lr": 3e-4},
            {"start": 6e-3},
            {"start": 6e-3, "lr": 1e-2},
            {"norms": "frozen", "lr": 1e-2},
            {"norms": "frozen", "lr": 1e-2, "score_lr": 3e-4},
            {"norms": "frozen", "lr": 1e-2, "score_lr": 1e-4},
        ),
        *_variants(
            "finetune",
            {"lr": 3e-3, "weight_lr": 1e-3},
            {},
            {"lr": 1e-2},
            {"weight_lr": 3e-4},
            {"weight_lr": 3e-3},
            {"weight_lr": 1e-2},
        ),
        *_variants(
            "lora",
            {"rank": 4},
            {"adapter_lr": 3e-4},
            {"adapter_lr": 1e-3},
            {"adapter_lr": 3e-3},
            {"adapter_lr": 1e-2},
        ),
        *_variants(
            "ksm",
            _START
            | {"temperature": 10.0, "alpha": 1.0, "scaling": "continuous", "levels": 16}
            | _EVERYWHERE,
            {},
            {"lr": 1e-2},
            {"scaling": "none"},
            {"scaling": "minmax", "alpha": 0.5},
            {"scaling": "released", "alpha": 0.5},
            {"alpha": 0.5},
            {"granularity": "group"},
            {"granularity": "channel"},
            {"granularity": "element"},
            {"temperature": 100.0},
            {"temperature": 1.0},
            {"temperature": 100.0, "temperature_end": 1.0},
            {"scaling": "detached"},
            {"learn_alpha": True},
            {"noise": True},
            {"score_lr": 2e-4},
            {"score_lr": 5e-3},
            {"mask_from": "layer2"},
            {"mask_from": "layer3"},
            {"start": 6e-3},
            {"lr": 1e-2, "score_lr": 5e-3},
            *(
                {"scaling": "minmax", "alpha": 0.5} | more
                for more in (
                    {"lr": 1e-2},
                    {"score_lr": 2e-3},
                    {"start": 6e-3},
                    {"alpha": 0.25},
                    {"start": 6e-3, "score_lr": 2e-3},
                )
            ),
            {"scaling": "none", "lr": 1e-2},
            {"start": 6e-3, "lr": 1e-2},
        ),
        Row("ksm-released", "ksm", recipe="released", settings={"levels": 16}),
    )
}
"""One thing of ksm changed at a time; min-max with the published alpha. And learning rates of its
rivals. All start from settings said here: the methods' defaults were chosen by this."""

SIZES = {
    row.name: row
    for row in (
        *(ROWS[name] for name in ("bn", "piggyback+bn", "piggyback")),
        Row("lora-rank1", "lora", settings={"rank": 1, "adapter_lr": 1e-2}),
        Row("lora-rank4", "lora", settings={"rank": 4, "adapter_lr": 1e-2}),
        *(
            Row(name, "ksm", settings={**settings, **_EVERYWHERE})
            for name, settings in {
                "ksm-unpacked": {"levels": 255},
                "ksm": {},
                "ksm-small": {"pointwise": 4},
                "ksm-rate": {"rate": 5.0, "levels": 2},
                "ksm-smaller": {"pointwise": 8},
                "ksm-smaller-rate": {"pointwise": 4, "rate": 5.0, "levels": 2},
                "ksm-smallest": {"pointwise": 8, "rate": 10.0, "levels": 2},
            }.items()
        ),
    )
}
"""From nearly unpacked masks (8 bits for the factor of an off unit) to the smallest; all layers
have one."""

ABOUT_SIZES = (
    "The five domains again, for the size of task files: how few bytes a mask needs, and what that "
    "costs. `ksm-unpacked` has 255 levels and no penalty: what packing is measured against. All "
    "masks, Piggyback's too, are entropy-coded."
)

STAGES = {
    row.name: row
    for row in (
        Row("ksm", "ksm", settings=_EVERYWHERE),
        *(
            Row(f"ksm-from={stage}", "ksm", settings={"mask_from": stage})
            for stage in ("layer2", "layer3", "layer4")
        ),
    )
}
"""The mask starts at the input, or at a stage of a ResNet: what is before it, all tasks share."""

ABOUT_STAGES = (
    "The five domains again, for where the mask starts. `ksm-from=layer3` leaves the layers before "
    "`layer3` as they are: many tasks run them once for an image, and training keeps their outputs."
)

_SHORT = {"30": 1, "15": 1 / 2, "10": 1 / 3, "5": 1 / 6}

RECIPES = {
    row.name: row
    for row in (
        Row("ksm-released", "ksm", recipe="released"),
        *(
            Row(f"ksm-{epochs}", "ksm", settings=_EVERYWHERE, budget=share)
            for epochs, share in _SHORT.items()
        ),
        *(
            Row(f"finetune-{epochs}", "finetune", settings={"weight_lr": 3e-3}, budget=share)
            for epochs, share in _SHORT.items()
        ),
        *(
            dataclasses.replace(row, name=row.name.replace("ksm-", "ksm-10-"), budget=1 / 3)
            for row in _variants("ksm", dict(_EVERYWHERE), {"lr": 1e-2}, {"score_lr": 4e-3})
        ),
        Row(
            "ksm-15-bf16",
            "ksm",
            settings=_EVERYWHERE,
            training={"precision": "bf16"},
            budget=1 / 2,
        ),
        *(
            Row(
                f"ksm-{epochs}-layer3",
                "ksm",
                settings={"score_lr": 4e-3, "mask_from": "layer3"},
                budget=_SHORT[epochs],
            )
            for epochs in ("5", "10", "15")
        ),
        Row(
            "ksm-15-layer3-score_lr=0.002",
            "ksm",
            settings={"mask_from": "layer3"},
            budget=_SHORT["15"],
        ),
    )
}
"""The number in a name is that of the epochs; the released recipe has 30. All layers have a mask
but in the rows from `layer3` on; the last row is the defaults on a ResNet."""

ABOUT_RECIPES = (
    "The five domains again, for how soon a recipe reaches the accuracy with which the released "
    "one ends. The number in a row's name is its epochs; `ksm-released` has the published 30."
)

ABOUT_ABLATION = (
    "One setting changed at a time, to choose defaults on validation. The rows `ksm`, `piggyback` "
    "and `finetune` are where it starts, not the defaults that came of it; piggyback has the "
    "task's own BatchNorm here. A second round changes several settings at once."
)


def described(protocol: Protocol) -> dict[str, Any]:
    """All of a protocol that decides results, ready for JSON."""
    facts = dataclasses.asdict(protocol)
    tasks = [{**task, "source": Path(task["source"]).name} for task in facts.pop("domains")]
    return json.loads(json.dumps({**facts, "tasks": tasks}))


def training_of(protocol: Protocol, row: Row, place: int, seed: int) -> Training:
    """How a cell is trained."""
    domain = protocol.domains[place]
    budget: dict[str, Any] = {
        "epochs": max(1, round(row.budget * protocol.epochs)),
        "batch": protocol.batch,
        "augment": domain.augment,
        "min_area": domain.min_area,
        "seed": seed,
        **row.training,
    }
    if row.recipe == "released":
        return Training.released(METHODS[row.method], **budget)
    return Training(**budget)


def setup_of(protocol: Protocol, row: Row, place: int, seed: int) -> dict[str, Any]:
    """All that decides a cell's result, ready for JSON; the goal of a row that has one, and the
    images themselves, aside."""
    method = make(row.method, row.recipe, **row.settings)
    facts = {
        "protocol": described(protocol),
        "task": protocol.domains[place].name,
        "row": row.name,
        "recipe": row.recipe,
        "method": method.settings(),
        "goal_of": row.goal_of,
        "training": dataclasses.asdict(training_of(protocol, row, place, seed)),
        "seed": seed,
    }
    return json.loads(json.dumps(facts))

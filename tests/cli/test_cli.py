"""The command as people run it: what it prints, what it exits with, and what it leaves behind."""

import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from test_bank import no_file_longer_than

import ksm.cli
from conftest import picture, write_folder
from ksm import Bank, KsmError, Task, add_task
from ksm.backbones import backbone as load_backbone
from ksm.bank.index import NAME
from ksm.bank.taskfile import write
from ksm.cli.display import Display
from ksm.core.text import clock, percent, size

TINY = ["--backbone", "conftest:tiny"]
FAST = [*TINY, "--size", "32", "--epochs", "1"]
HERE = Path(__file__).parent


@pytest.fixture
def ksm_(monkeypatch, capsys):
    """Run the command in this process: its exit status and the text on stdout and stderr."""

    def run(*arguments):
        if (
            arguments[:1]
            and arguments[0] in ("eval", "predict", "which")
            and "--backbone" not in arguments
        ):
            arguments = (*arguments, *TINY)
        monkeypatch.setattr(sys, "argv", ["ksm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            ksm.cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(status=stop.value.code or 0, out=out, err=err)

    return run


@pytest.fixture
def works(ksm_):
    def run(*arguments):
        found = ksm_(*arguments)
        assert found.status == 0, found.err
        return found

    return run


@pytest.fixture
def refused(ksm_):
    """The one line that tells of a mistake; nothing may be on stdout."""

    def run(*arguments, told=()):
        found = ksm_(*arguments)
        assert found.status == 1 and found.out == "", found
        lines = [line for line in found.err.splitlines() if line.startswith("ksm: ")]
        assert len(lines) == 1 and found.err.splitlines()[-1] == lines[0], found.err
        for part in [told] if isinstance(told, str) else told:
            assert part in lines[0], lines[0]
        return found.err

    return run


def parsed(found):
    """stdout as strict JSON: neither NaN nor anything before or after it."""

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(found.out, parse_constant=no_constant)


def test_learning_says_what_is_masked_and_where_it_starts(home, works):
    told = works("learn", "t", "images", *FAST, "--set", "mask_from=stride4").err
    assert "a mask of 128 units over 1 layers" in told
    assert "the task starts at body; the layers before stay the backbone's" in told
    told = works("learn", "u", "images", *FAST).err
    assert "a mask of 152 units over 2 layers" in told and "starts at" not in told


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """A folder of images, and a bank with two tasks learned from it. Copy before a change."""
    root = tmp_path_factory.mktemp("learned")
    write_folder(root / "images", 24)
    for name, more in [("colours", ["--epochs", "12"]), ("other", ["--method", "bn"])]:
        arguments = ["learn", name, "images", *FAST, *more]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="0"):
            patch.chdir(root)
            patch.setattr(sys, "argv", ["ksm", *arguments])
            ksm.cli.main()
    return root


@pytest.fixture
def home(learned, tmp_path, monkeypatch):
    """A copy of `learned` as the current folder: ./bank and ./images."""
    for part in ("bank", "images"):
        shutil.copytree(learned / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KSM_BANK", raising=False)
    return tmp_path


def files(folder):
    """What is in a folder, but for a bank's index, which is a cache."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != NAME
    }


# A task from its start to its end.


def test_a_task_from_learning_to_removal(home, works):
    image = home / "red one é.png"
    picture("red", 99).save(image)

    told = works("learn", "new", "images", *FAST, "--epochs", "2")
    assert told.out.startswith("new: val ") and "bank/new.safetensors\nbank/new.png" in told.out
    assert "epoch   1" in told.err and "epoch   2" in told.err
    assert {path.name for path in (home / "bank").iterdir() if path.name.startswith("new")} == {
        "new.safetensors", "new.png", "new.log.jsonl",
    }  # fmt: skip
    log = [json.loads(line) for line in (home / "bank/new.log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    Image.open(home / "bank/new.png").verify()

    told = works("eval", "colours", "images", *TINY)
    assert "colours: accuracy " in told.out and "of 24" in told.out and told.err == ""
    told = works("predict", image, image, "--task", "colours", "--top", "1")
    assert told.out.count("red one é.png") == 2 and told.out.count("red ") >= 2
    told = works("predict", image, "--all")
    assert [name in told.out for name in ("colours", "other", "new")] == [True] * 3
    told = works("tasks")
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == ["colours", "new", "other"]
    told = works("info", "new")
    assert "conftest:tiny" in told.out and "blue, green, red" in told.out
    assert "2 epochs" in told.out and "bits a weight" in told.out and "as float32" in told.out

    assert works("remove", "new").out == "removed new from bank\n"
    assert not [path for path in (home / "bank").iterdir() if path.name.startswith("new")]
    assert files(home / "bank").keys() >= {"colours.safetensors", "other.safetensors"}


def test_json_of_every_command(home, works):
    picture("blue", 99).save("blue.png")
    found = parsed(works("learn", "new", "images", *FAST, "--json"))
    assert found["name"] == "new" and found["classes"] == ["blue", "green", "red"]
    assert found["bytes"]["file"] == (home / found["file"]).stat().st_size
    assert set(found["metrics"]) == {"val", "test"}

    found = parsed(works("eval", "colours", "images", "--json"))
    assert found["images"] == 72 and sum(found["count"]) == 72 and found["skipped"] == 0
    assert found["accuracy"] == sum(found["correct"]) / 72 > 0.6

    found = parsed(
        works(
            "predict", "blue.png", "images/red/0.png", "--task", "colours", "--top", "2", "--json"
        )
    )
    assert [one["file"] for one in found] == ["blue.png", "images/red/0.png"]
    assert [len(one["classes"]) for one in found] == [2, 2]
    assert found[0]["classes"][0]["name"] == "blue"
    assert 1 >= found[0]["classes"][0]["probability"] >= found[0]["classes"][1]["probability"]

    found = parsed(works("predict", "blue.png", "--all", "--top", "99", "--json"))
    assert [one["task"] for one in found] == ["colours", "new", "other"]
    assert sum(one["probability"] for one in found[0]["classes"]) == pytest.approx(1)

    assert [one["name"] for one in parsed(works("tasks", "--json"))] == ["colours", "new", "other"]
    found = parsed(works("info", "colours", "--json"))
    assert found["record"]["training"]["epochs"] == 12 and found["bytes"]["conv_weights"] == 1368
    assert parsed(works("remove", "new", "--json"))["removed"] == "new"
    assert len(parsed(works("backbones", "--json"))) == 3
    assert parsed(works("data", "list", "--json"))


def test_eval_says_the_same_as_learning_did(home, works):
    """The test split's accuracy that the task states is what eval finds on those files."""
    from ksm.data.folder import scan

    for path, label in scan("images").splits["test"]:
        target = home / "held out" / ["blue", "green", "red"][label] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    stated = parsed(works("info", "colours", "--json"))["metrics"]["test"]
    found = parsed(works("eval", "colours", "held out", "--json"))
    assert found["loss"] == pytest.approx(stated["loss"])
    assert {key: found[key] for key in stated if key != "loss"} == {
        key: value for key, value in stated.items() if key != "loss"
    }


def test_which_task_an_image_belongs_to(home, works, refused):
    images = sorted((home / "images" / "red").iterdir())[:3]
    found = parsed(works("which", *images, "--json"))
    assert [one["file"] for one in found] == [str(path) for path in images]
    for one in found:
        assert {task["name"] for task in one["tasks"]} == {"colours", "other"}
        values = [task["statistics"] for task in one["tasks"]]
        assert values == sorted(values) and values[0] >= 0
    shown = works("which", images[0], "--by", "entropy", "--top", "1").out
    assert "by entropy" in shown and str(images[0]) in shown
    refused("which", images[0], "--by", "colour", told="expected statistics or entropy")
    refused("which", "none.png", told="no such image")
    refused("which", images[0], "--bank", "nowhere", told="no task in nowhere")


def test_a_file_of_at_most_so_many_bytes(home, works, refused):
    found = works("learn", "small", "images", *FAST, "--max-size", "1MB", "--half")
    assert "for its size 0.0 points less on val" in found.out and "as asked: " in found.err
    header = parsed(works("info", "small", "--json"))
    assert header["record"]["max_size"]["bytes"] == 1_000_000
    line = refused(
        "learn", "tiny", "images", *FAST, "--max-size", "2kB", told="max size 2000 bytes"
    )
    assert "as asked: " in line and not (home / "bank" / "tiny.safetensors").exists()
    refused("learn", "x", "images", *FAST, "--max-size", "big", told="expected bytes such as")
    refused(
        "learn", "x", "images", *FAST, "--method", "bn", "--max-size", "1MB",
        told="--max-size goes with method ksm",
    )  # fmt: skip


def test_the_bank_can_be_named_by_the_environment(home, works, monkeypatch):
    os.rename("bank", "elsewhere")
    monkeypatch.setenv("KSM_BANK", "elsewhere")
    assert "colours" in works("tasks").out


def test_eval_on_some_of_the_classes(home, works):
    shutil.rmtree("images/red")
    shutil.rmtree("images/blue")
    found = works("eval", "colours", "images")
    assert "on 24 images" in found.out and "0 of 0" in found.out
    assert parsed(works("eval", "colours", "images", "--json"))["count"] == [0, 24, 0]


def test_names_with_spaces_and_letters_of_all_scripts(home, works):
    os.rename("images/red", "images/rot & grün")
    os.rename("images/blue", "images/青 [x]")
    shutil.copy("images/green/0.png", "images/green/naïve [b] 0.png")
    os.rename("images", "meine Bilder")
    works("learn", "größe", "meine Bilder", *FAST)
    found = parsed(works("info", "größe", "--json"))
    assert found["classes"] == ["green", "rot & grün", "青 [x]"]
    told = works("predict", "meine Bilder/green/naïve [b] 0.png", "--task", "größe")
    assert "naïve [b] 0.png" in told.out and "青 [x]" in told.out


def test_a_file_name_that_is_not_utf8(home, works, monkeypatch, capsys):
    odd = os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy("images/red/0.png", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert r"caf\udce9.png" in works("predict", odd, "--task", "colours").out
    found = parsed(works("predict", odd, "--task", "colours", "--json"))
    assert found[0]["file"] == odd


def test_a_renamed_task_has_its_new_name_everywhere(home, works):
    os.rename("bank/colours.safetensors", "bank/renamed.safetensors")
    assert "renamed" in works("tasks").out and "colours" not in works("tasks").out
    assert parsed(works("info", "renamed", "--json"))["name"] == "renamed"
    found = parsed(works("predict", "images/red/0.png", "--task", "renamed", "--json"))
    assert found[0]["task"] == "renamed"


def test_a_task_made_in_python_with_any_record(home, works):
    model = add_task(load_backbone("conftest:tiny"), 2)
    for number, (record, metrics) in enumerate(
        [({}, {}), ({"seconds": 3}, {"val": 0.9}), ({"mask": "yes", "training": 7}, {"test": {}})]
    ):
        Bank("bank").save(Task.of(model, f"t{number}", "ab", record=record, metrics=metrics))
        works("info", f"t{number}")
        assert parsed(works("info", f"t{number}", "--json"))["record"].items() >= record.items()
    works("tasks")
    parsed(works("tasks", "--json"))


# Images that cannot be read.


def spoil(folder):
    (folder / "zero.png").touch()
    (folder / "text.jpg").write_text("no image")
    whole = (folder / "0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.png").write_bytes(whole[:16] + b"\0\0\xff\xff" * 2 + whole[24:])
    return 4


def test_tasks_that_share_weights(home, works, refused):
    options = [*TINY, "--size", "32", "--epochs", "3", "--method", "packnet"]
    first = works("learn", "one", "images", *options)
    assert "of 1,368 weights 50.0 % are owned" in first.err and "50.0 % are free" in first.err
    second = works("learn", "two", "images", *options)
    assert "62.5 % are owned" in second.err
    assert "packnet" in works("tasks").out
    shown = works("info", "two").out
    assert "builds on" in shown and "one" in shown and "62.5 % owned before" in shown
    told = refused("remove", "one", told="task 'two' builds on 'one'")
    assert "Traceback" not in told and "one" in works("tasks").out
    refused("learn", "one", "images", *options, "--force", told="builds on 'one'")
    before = works("eval", "one", "images", "--json").out
    again = works("learn", "two", "images", *options, "--force")
    assert "62.5 % are owned" in again.err
    assert works("eval", "one", "images", "--json").out == before
    works("remove", "two")
    works("remove", "one")


@pytest.mark.slow
def test_a_comparison_of_own_folders(home, works, refused):
    write_folder(home / "second", 20, ("red", "green"))
    options = [*TINY, "--size", "32", "--epochs", "2", "--methods", "probe,bn"]
    found = works("compare", "images", "second", *options, "--out", "out")
    assert "| bn | 1 |" in found.out and "images · seed 0" in found.out
    names = {"report.md", "bytes.png", "time.png", "tasks.png", "matrix.png"}
    assert names <= {path.name for path in (home / "out").iterdir()}
    assert (home / "out" / "report.md").read_text() in found.out
    again = works("compare", "images", "second", *options, "--out", "out")
    assert "seed 0:" not in again.out
    works("compare", "images", "second", *options, "--out", "out", "--render")
    for arguments, told in [
        (["images", "--methods", "nope"], "no row 'nope'"),
        (["images", "images"], "same name"),
        (["nothing"], "no such folder"),
        (["images", "--augment", "x"], "augment 'x'"),
        (["images", "--out", "new", "--render"], "no cells in"),
    ]:
        refused("compare", *arguments, *TINY, told=told)


def test_protocols_by_name(home, works, refused):
    assert "piggyback+bn" in works("bench", "rows").out
    for arguments, told in [
        (
            ["nope"],
            "no protocol 'nope': expected one of five-domains, sizes, stages, recipes",
        ),
        (["cifar100"], "bench cifar100: expected a folder with your copy"),
        (["five-domains", "images"], "bench five-domains: expected no folder"),
        (["imagenet-to-sketch", "images"], "has no folder cubs_cropped/train"),
        (["cifar100", "images", "--out", "out"], "images"),
        (["ablation", "--methods", "ksm,x"], "no row 'x'"),
    ]:
        refused("bench", *arguments, told=told)
    assert not (home / "out").exists() and not (home / "comparison").exists()


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0, 2, 10])  # as the processes start, import, and learn
def test_an_interrupted_comparison_leaves_whole_cells_alone(home, wait):
    write_folder(home / "second", 20, ("red", "green"))
    options = [*TINY, "--size", "32", "--epochs", "40000", "--methods", "probe,bn", "--out", "out"]
    command = [sys.executable, "-m", "ksm.cli", "compare", "images", "second", *options]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with subprocess.Popen(
        [*command, "--processes", "2"], stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as run:  # fmt: skip
        deadline = time.time() + 60
        while time.time() < deadline and len(list(home.glob("out/images/*/subset.json"))) < 2:
            time.sleep(0.1)
        time.sleep(wait)
        os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err, err
    assert not list(home.glob("out/cells/*"))


def test_unreadable_images_are_counted_and_listed(home, works):
    count = spoil(home / "images/red")
    told = works("learn", "new", "images", *FAST)
    assert f"{count} files could not be read and were skipped" in told.err.replace("\n", " ")
    for name in ("zero.png", "text.jpg", "half.png", "bomb.png"):
        assert name in told.err.replace("\n", "")
    assert parsed(works("info", "new", "--json"))["record"]["skipped"] == count

    told = works("eval", "colours", "images", "--json")
    assert parsed(told)["skipped"] == count and parsed(told)["images"] == 72
    assert told.err.count("images/red/") == count


def test_many_unreadable_images_are_counted_but_not_all_listed(home, works):
    for number in range(30):
        (home / f"images/red/bad{number}.png").write_bytes(b"bad" + bytes([number]))
    told = works("learn", "new", "images", *FAST).err
    assert "30 files" in told and told.count("images/red/bad") == 10 and "and 20 more" in told
    told = works("eval", "colours", "images").err
    assert "30 files" in told and told.count("images/red/bad") == 10 and "and 20 more" in told


def test_strict_makes_an_unreadable_image_fatal(home, refused):
    (home / "images/red/bad.png").touch()
    before = files(home)
    refused("learn", "new", "images", *FAST, "--strict", told="red/bad.png: not an image")
    refused("eval", "colours", "images", "--strict", told="red/bad.png: not an image")
    assert files(home) == before


def test_a_class_emptied_by_unreadable_files(home, refused):
    for path in (home / "images/green").iterdir():
        path.write_bytes(b"spoilt " + path.name.encode())
    told = refused("learn", "new", "images", *FAST, told=("class 'green'", "images"))
    assert "24 files" in told
    assert "new" not in Bank("bank")


def test_a_validation_split_emptied_by_unreadable_files(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "x/train", 4)
    write_folder(tmp_path / "x/val", 1)
    for number, path in enumerate((tmp_path / "x/val").rglob("*.png")):
        path.write_bytes(bytes([number]))
    refused("learn", "new", "x", *FAST, told=("none of 3 images can be read", "val"))


def test_the_same_image_in_two_splits_is_a_warning(tmp_path, works, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "x/train", 4)
    write_folder(tmp_path / "x/val", 2)
    told = works("learn", "new", "x", *FAST)
    assert "6 images are in train and val alike" in told.err.replace("\n", " ")
    assert "no test split" in told.out


# Bad input, command by command.


def test_learn_refuses_folders_that_are_no_data(home, refused):
    before = files(home)
    write_folder(home / "one", 3, ("red",))
    (home / "empty").mkdir()
    shutil.copytree("images", "hole")
    (home / "hole/yellow").mkdir()
    learn = ("learn", "new")
    refused(*learn, "none", *FAST, told="no such folder: none")
    refused(*learn, "images/red/0.png", *FAST, told="images/red/0.png is no folder")
    refused(*learn, "empty", *FAST, told="no images below empty")
    refused(*learn, "images/red", *FAST, told="24 images lie in images/red itself")
    refused(*learn, "one", *FAST, told=("one class, 'red'", "at least two"))
    refused(*learn, "hole", *FAST, told="class yellow has no image")
    assert {k: v for k, v in files(home).items() if k in before} == before
    assert len(list((home / "bank").iterdir())) == 6


OPTIONS = [
    (["--set", "nonsense"], "--set nonsense: expected KEY=VALUE"),
    (["--set", "=3"], "expected KEY=VALUE"),
    (["--set", "nonsense=1"], "no setting 'nonsense'"),
    (["--set", "alpha=2"], "alpha 2"),
    (["--set", "alpha=x"], "'x'"),
    (["--set", "alpha="], "alpha"),
    (["--set", "levels=2.5"], "levels"),
    (["--set", "granularity=pixel"], "granularity 'pixel'"),
    (["--set", "target_modules=("], "not a valid regex"),
    (["--set", "target_modules=nothing"], "no layer to mask"),
    (["--set", "mask_from=nothing"], "no module named 'nothing'"),
    (["--set", "name=bn"], "give --method bn"),
    (["--set", "recipe=released"], "give --recipe released"),
    (["--method", "nope"], "no method named 'nope': expected one of ksm, piggyback"),
    (["--method", "bn", "--set", "alpha=0.5"], "method bn has no setting 'alpha'"),
    (["--method", "bn", "--recipe", "released"], "method bn has no released recipe"),
    (["--recipe", "nope"], "no recipe named 'nope': expected default or released"),
    (["--size", "3"], "size is 3"),
    (["--size", "-5"], "size is -5"),
    (["--crop", "0"], "crop is 0"),
    (["--crop", "2"], "crop is 2"),
    (["--epochs", "0"], "epochs is 0"),
    (["--batch", "1"], "batch is 1"),
    (["--augment", "foo"], "augment 'foo': expected one of none, flip, crop, crop+flip, pad"),
    (["--label-smoothing", "1"], "label smoothing is 1"),
    (["--patience", "0"], "patience is 0"),
    (["--precision", "fp8"], "precision 'fp8'"),
    (["--workers", "-1"], "workers is -1"),
    (["--limit", "1"], "limit is 1"),
    (["--memory", "little"], "memory 'little': expected one of most, less, least"),
    (["--memory", "least", "--compile"], "memory 'least' and compile do not go together"),
    (["--memory", "less", "--graph"], "memory 'less' and graph do not go together"),
    (["--balance", "--label-smoothing", "0.1", "--graph"], "does not go with graph: leave one out"),
    (["--compile", "--graph"], "compile and graph do not go together"),
    (["--head", "nothing"], "nothing"),
    (["--head", "norm1"], "norm1"),
]


@pytest.mark.parametrize(("options", "told"), OPTIONS, ids=lambda value: str(value)[:40])
def test_learn_refuses_bad_values_and_harms_nothing(home, refused, options, told):
    before = files(home / "bank")
    refused("learn", "colours", "images", *FAST, *options, "--force", told=told)
    assert files(home / "bank") == before


def test_training_in_least_memory_gives_it_back(home, refused, monkeypatch):
    asked = []
    monkeypatch.setattr(ksm.cli, "give_back_freed_blocks", lambda: asked.append(True))
    refused(
        "learn", "colours", "images", *FAST, "--memory", "least", "--force", told="has no blocks"
    )
    assert asked == [True]
    refused("learn", "colours", "images", *FAST, "--batch", "1", "--force", told="batch")
    assert asked == [True]


USERS = """
from torch import nn
from conftest import tiny
def broken(): return 1 / 0
def nothing(): return None
def needy(width): return tiny()
def headless(): return nn.Conv2d(3, 8, 3)
number = 7
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nope", ("no backbone named 'nope'", "ksm backbones")),
        ("mobilenetv3", ("no backbone named 'mobilenetv3'", "did you mean")),
        ("", "no backbone named ''"),
        ("no_such_package.module:function", "no_such_package"),
        ("users:", "users:"),
        (":function", ":function"),
        ("users:missing", "missing"),
        ("users:number", "users:number"),
        ("users:nothing", "users:nothing: returned NoneType, expected nn.Module"),
        ("users:needy", ("users:needy", "width")),
        ("users:broken", ("users:broken", "division by zero")),
        ("users:headless", "no Linear layer"),
        ("wrong_syntax:function", "wrong_syntax"),
        ("raises_at_import:function", ("raises_at_import", "oh")),
    ],
)
def test_backbones_that_cannot_be_had(home, refused, monkeypatch, name, told):
    (home / "users.py").write_text(USERS)
    (home / "wrong_syntax.py").write_text("def function(:\n")
    (home / "raises_at_import.py").write_text("raise RuntimeError('oh')")
    monkeypatch.syspath_prepend(str(home))
    before = files(home / "bank")
    options = ["--size", "32", "--epochs", "1", "--force", "--backbone", name]
    refused("learn", "colours", "images", *options, told=told)
    if name.startswith("no_such"):
        refused("eval", "colours", "images", "--backbone", name, told=told)
        refused("predict", "images/red/0.png", "--all", "--backbone", name, told=told)
    assert files(home / "bank") == before


def test_names_that_are_taken_or_not_plain(home, refused):
    before = files(home)
    refused(
        "learn", "colours", "images", *FAST, told=("bank/colours.safetensors exists", "--force")
    )
    for name in ("../up", "a/b", "", ".x", "a b", "x" * 101, "猫" * 100):
        refused("learn", name, "images", *FAST, told=f"task name {name!r}")
        refused("info", name, told="task name")
        refused("remove", name, told="task name")
        refused("eval", name, "images", told="task name")
        refused("predict", "images/red/0.png", "--task", name, told="task name")
    assert files(home) == before


def test_tasks_that_are_not_there(home, refused):
    line = "no task 'none' in bank; the tasks there: colours, other"
    refused("info", "none", told=line)
    refused("remove", "none", told=line)
    refused("eval", "none", "images", told=line)
    refused("predict", "images/red/0.png", "--task", "none", told=line)


def test_banks_that_are_not_there(home, refused):
    bank = ("--bank", "none")
    refused("tasks", *bank, told="no bank at none")
    refused("tasks", "--bank", "images/red/0.png", told="no bank at")
    refused("predict", "images/red/0.png", "--all", *bank, told="there is no task in none")
    refused("info", "colours", *bank, told="no task 'colours' in none; the tasks there: none")
    assert not (home / "none").exists()


def test_predict_refuses_what_is_no_image(home, refused):
    (home / "zero.png").touch()
    (home / "text.jpg").write_text("no image")
    for which in (("--task", "colours"), ("--all",)):
        refused("predict", "none.png", *which, told="no such image: none.png")
        refused("predict", "images/red", *which, told="images/red is a folder")
        refused("predict", "zero.png", *which, told="zero.png: not an image")
        refused("predict", "images/red/0.png", "text.jpg", *which, told="text.jpg: not an image")
        refused("predict", "x" * 300 + ".png", *which, told="too long")
    refused("predict", "images/red/0.png", told="--task NAME, or --all")
    refused(
        "predict", "images/red/0.png", "--all", "--task", "colours", told="--task NAME, or --all"
    )


def test_eval_refuses_folders_that_do_not_fit(home, refused):
    write_folder(home / "splits/train", 1)
    write_folder(home / "splits/test", 1)
    write_folder(home / "yellow/yellow", 1, ("red",))
    (home / "empty").mkdir()
    refused("eval", "colours", "none", told="no such folder: none")
    refused("eval", "colours", "images/red/0.png", told="is no folder")
    refused("eval", "colours", "empty", told="no images below empty")
    refused("eval", "colours", "images/red", told="24 images lie in images/red itself")
    refused("eval", "colours", "splits", told=("test, train", "did you mean splits/test?"))
    refused("eval", "colours", "yellow", told=("yellow is none of", "(blue, green, red)"))


def test_code_named_by_a_task_file_is_not_run_unasked(home, monkeypatch, capsys):
    for command in (["eval", "colours", "images"], ["predict", "images/red/0.png", "--all"]):
        monkeypatch.setattr(sys, "argv", ["ksm", *command])
        with pytest.raises(SystemExit, match="1"):
            ksm.cli.main()
        assert "to run that code, give --backbone conftest:tiny" in capsys.readouterr().err


def test_another_backbone_is_refused_with_both_fingerprints(home, refused, monkeypatch):
    (home / "another.py").write_text(
        "import conftest\ndef net():\n    m = conftest.tiny()\n    m.stem.weight.data += 1\n"
        "    return m\n"
    )
    monkeypatch.syspath_prepend(str(home))
    known = Bank("bank").load("colours").fingerprint[:16]
    for command in (("eval", "colours", "images"), ("predict", "images/red/0.png", "--all")):
        line = refused(*command, "--backbone", "another:net", told=("conftest:tiny", known))
        shown = {word.strip(",;") for word in line.split() if len(word.strip(",;")) == 16}
        assert len(shown - {known}) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["learn"],
        ["nope"],
        ["predict"],
        ["learn", "x", "images", "--nope"],
        ["learn", "x", "images", "--epochs", "many"],
        ["predict", "x", "--top", "0"],
    ],
)
def test_mistakes_of_use_exit_with_2(home, ksm_, arguments):
    found = ksm_(*arguments)
    assert found.status == 2 and found.out == "" and found.err


COMMANDS = ["learn", "eval", "predict", "tasks", "info", "remove", "backbones", "data"]


@pytest.mark.parametrize("command", ["", *COMMANDS, "data list", "data get"])
def test_help(works, command):
    assert "Usage" in works(*command.split(), "--help").out


# Damaged task files.


def damage(path, how):
    content = path.read_bytes()
    wrecks = {"truncated": content[: len(content) // 2], "zero": b"", "text": b"no task"}
    path.write_bytes(wrecks[how])


@pytest.mark.parametrize("how", ["truncated", "zero", "text"])
def test_one_damaged_task_among_good_ones(home, works, refused, how):
    shutil.copy("bank/other.safetensors", "bank/bad.safetensors")
    damage(home / "bank/bad.safetensors", how)
    before = files(home / "bank")
    told = works("tasks")
    assert "colours" in told.out and "other" in told.out and "bad" not in told.out
    assert told.err.count("\n") == 1 and "bank/bad.safetensors" in told.err
    told = works("tasks", "--json")
    assert [one["name"] for one in parsed(told)] == ["colours", "other"] and "bad" in told.err
    told = works("predict", "images/red/0.png", "--all", "--json")
    assert [one["task"] for one in parsed(told)] == ["colours", "other"] and "bad" in told.err
    refused("info", "bad", told="bank/bad.safetensors")
    refused("eval", "bad", "images", told="bank/bad.safetensors")
    refused("predict", "images/red/0.png", "--task", "bad", told="bank/bad.safetensors")
    assert files(home / "bank") == before
    works("remove", "bad")
    assert "bad.safetensors" not in files(home / "bank")


def test_a_bank_of_nothing_but_damaged_tasks(home, works, refused):
    for path in (home / "bank").glob("*.safetensors"):
        damage(path, "truncated")
    assert parsed(works("tasks", "--json")) == []
    told = refused("predict", "images/red/0.png", "--all", told="no task in bank")
    assert told.count("damaged") == 2


def test_a_damaged_task_can_be_learned_anew(home, works):
    damage(home / "bank/colours.safetensors", "truncated")
    works("learn", "colours", "images", *FAST, "--force")
    works("info", "colours")


# Nothing on the disk is harmed.


def test_a_run_that_fails_leaves_the_task_its_log_and_its_picture(home, refused, monkeypatch):
    before = files(home / "bank")

    def fail(*_, **__):
        raise KsmError("the loss is nan")

    monkeypatch.setattr("ksm.train.phases.fit", fail)
    refused("learn", "colours", "images", *FAST, "--force", told="the loss is nan")
    assert files(home / "bank") == before


def test_a_run_that_replaces_a_task_replaces_its_log(home, works):
    works("learn", "colours", "images", *FAST, "--force")
    assert len((home / "bank/colours.log.jsonl").read_text().splitlines()) == 1
    assert len(list((home / "bank").iterdir())) == 6


def test_no_room_for_the_task_leaves_the_old_one(home, refused, monkeypatch):
    before = files(home / "bank")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused("learn", "colours", "images", *FAST, "--force", told="no room left on the disk")
    assert files(home / "bank") == before
    refused("learn", "new", "images", *FAST, told="no room left on the disk")
    assert files(home / "bank") == before


def test_no_room_for_log_and_picture_costs_no_task(home, works, monkeypatch):
    before = files(home / "bank")

    real = Path.open

    def full(path, *arguments, **options):
        if isinstance(path, Path) and not path.name.endswith(".part"):
            return real(path, *arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", full)
        patch.setattr(Path, "open", full)
        told = works("learn", "new", "images", *FAST, "--epochs", "2")
    assert told.err.count("warning: no log") == 1 and told.err.count("warning: no picture") == 1
    assert files(home / "bank").keys() - before.keys() == {"new.safetensors"}
    works("info", "new")


def test_banks_that_cannot_be_written_to(home, refused):
    before = files(home)
    for bank in ("images/red/0.png", "images/red/0.png/bank"):
        told = refused("learn", "x", "images", *FAST, "--bank", bank, told="cannot write to bank")
        assert "epoch" not in told, "told only after the work was done"
    assert files(home) == before


def test_an_error_of_the_system_is_a_line(home, refused, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "bank/colours.png")

    monkeypatch.setattr(Bank, "header", fail)
    refused("info", "colours", told=("Permission denied", "bank/colours.png"))


def test_a_message_of_many_lines_becomes_one(home, refused, monkeypatch):
    def fail(*_):
        raise KsmError("one\ntwo")

    monkeypatch.setattr(Bank, "header", fail)
    refused("info", "colours", told="ksm: one two")


# Ctrl-C.


def test_ctrl_c_while_training_keeps_the_best(home, works, monkeypatch):
    real = Display.epoch

    def epoch(self, record):
        real(self, record)
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "epoch", epoch)
    told = works("learn", "new", "images", *FAST, "--epochs", "50")
    assert "stopped early: interrupted" in told.err
    found = parsed(works("info", "new", "--json"))["record"]
    assert found["stopped"] == "interrupted" and found["epochs"] == 2
    assert found["best_epoch"] in (1, 2)
    assert len((home / "bank/new.log.jsonl").read_text().splitlines()) == 2
    works("predict", "images/red/0.png", "--task", "new")


def test_ctrl_c_before_the_first_epoch_ends_keeps_what_was_there(home, refused, monkeypatch):
    before = files(home / "bank")

    def step(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Display, "step", step)
    refused(
        "learn",
        "colours",
        "images",
        *FAST,
        "--force",
        told="interrupted before there was anything to keep",
    )
    assert files(home / "bank") == before


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("ksm.bank.Bank.load", ["eval", "colours", "images"]),
        ("ksm.data.load.read_image", ["eval", "colours", "images"]),
        ("ksm.train.evaluate.evaluate", ["eval", "colours", "images"]),
        ("ksm.infer.predict.predict_all", ["predict", "images/red/0.png", "--all"]),
        ("ksm.bank.index.read_header", ["tasks"]),
        ("ksm.bank.Bank.header", ["info", "colours"]),
        ("ksm.train.learn.scan", ["learn", "colours", "images", *FAST, "--force"]),
        ("ksm.data.load.read_image", ["learn", "colours", "images", *FAST, "--force"]),
        ("ksm.bank.taskfile.os.fsync", ["learn", "colours", "images", *FAST, "--force"]),
    ],
)
def test_ctrl_c_anywhere_else_exits_with_130(home, ksm_, monkeypatch, place, command):
    before = files(home)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    found = ksm_(*command)
    assert found.status == 130 and found.out == ""
    assert files(home) == before


# Real processes.


def command(*arguments):
    return [str(Path(sys.executable).with_name("ksm")), *map(str, arguments)]


def environment():
    return {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}


def test_the_installed_command(home):
    done = subprocess.run(command("tasks", "--json"), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert [one["name"] for one in json.loads(done.stdout)] == ["colours", "other"]
    done = subprocess.run(command("info", "none"), capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "ksm: no task 'none' in bank; the tasks there: colours, other\n"


def test_listing_imports_no_torch(home):
    script = "import sys, ksm.cli; sys.argv[1:] = {}; ksm.cli(standalone_mode=False); "
    for arguments in (["tasks"], ["info", "colours"]):
        code = script.format(arguments) + "sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done


def test_a_real_ctrl_c_keeps_the_best_epoch(home):
    run = subprocess.Popen(
        command("learn", "new", "images", *FAST, "--epochs", "100000", "--json"),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell that runs the tests in the background has them ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("epoch   3"):
                break
        time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0 and "Traceback" not in err
    found = json.loads(out)["record"]
    assert found["stopped"] == "interrupted" and found["epochs"] >= 3


def test_a_disk_that_fills_up_for_real(home, refused):
    before = files(home)
    with no_file_longer_than(1000):
        told = ("cannot write bank/colours.safetensors", "File too large")
        refused("learn", "colours", "images", *FAST, "--force", "--json", told=told)
    assert files(home) == before


def test_a_reader_that_goes_away(home):
    run = subprocess.Popen(
        command("info", "colours", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert b"Traceback" not in run.stderr.read()
    run.stderr.close()
    run.wait()


def test_output_without_unicode(home, monkeypatch):
    task = Bank("bank").load("colours")
    write(Bank("bank").path("colours"), dataclasses.replace(task, classes=("青", "b", "c")))
    for more in ([], ["--json"]):
        out = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", ["ksm", "info", "colours", *more])
        with pytest.raises(SystemExit, match="0"):
            ksm.cli.main()
        out.seek(0)
        text = out.read()
        assert r"\u9752" in text
    assert json.loads(text)["classes"][0] == "青"


# What is shown.


def test_figures_for_people():
    assert [clock(s) for s in (0, 59.6, 61, 3600, 36_061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1000, 83_400, 1_240_000)] == [
        "0 B", "999 B", "1 kB", "83 kB", "1.24 MB",
    ]  # fmt: skip
    assert [percent(p) for p in (None, 0, 0.12345, 1)] == ["-", "0.0 %", "12.3 %", "100.0 %"]

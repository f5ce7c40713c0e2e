"""What is measured once is remembered, and a cache that cannot be used costs time alone."""

import json

import pytest
import torch

from ksm import measured
from ksm.measured import Measured, machine, seconds

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("KSM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "test.json"


class Ways:
    """Two ways that count how often they ran."""

    def __init__(self):
        self.runs = {"slow": 0, "quick": 0}

    def ask(self, known, kind="kind"):
        def run(name):
            self.runs[name] += 1

        return known.fastest(kind, {name: lambda n=name: run(n) for name in self.runs}, CPU)


@pytest.fixture
def ways(monkeypatch):
    """Ways whose times are made up."""

    def timed(ways, device):
        for run in ways.values():
            run()
        return {"slow": 2.0, "quick": 1.0}

    monkeypatch.setattr(measured, "seconds", timed)
    return Ways()


def test_each_kind_is_measured_once_and_by_the_next_process_not_at_all(ways, file):
    known = Measured("test")
    assert [ways.ask(known) for _ in range(3)] == ["quick"] * 3
    assert ways.runs == {"slow": 1, "quick": 1}
    assert not file.exists()
    known.save()
    assert ways.ask(Measured("test")) == "quick"
    assert ways.runs == {"slow": 1, "quick": 1}
    ways.ask(known, "another kind")
    assert ways.runs == {"slow": 2, "quick": 2}


def test_the_file_says_what_was_measured_where(ways, file):
    known = Measured("test")
    ways.ask(known)
    known.save()
    content = json.loads(file.read_text())
    assert content == {f"{machine(CPU)}, kind": {"slow": 2.0, "quick": 1.0}}
    assert torch.__version__ in machine(CPU) and f"{torch.get_num_threads()} threads" in machine(
        CPU
    )


def test_two_writers_lose_nothing(ways, file):
    one, two = Measured("test"), Measured("test")
    ways.ask(one, "a")
    ways.ask(two, "b")
    one.save()
    two.save()
    assert len(json.loads(file.read_text())) == 2


def test_another_machine_measures_again(ways, monkeypatch):
    known = Measured("test")
    ways.ask(known)
    known.save()
    monkeypatch.setattr(measured, "machine", lambda device: "a faster one")
    ways.ask(Measured("test"))
    assert ways.runs == {"slow": 2, "quick": 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b'{"kind": 3}', b'{"kind": {"slow": "x"}}', b"\xff\xfe", b"[" * 9999],
)
def test_a_damaged_file_is_measured_anew_and_mended(ways, file, content):
    file.parent.mkdir()
    file.write_bytes(content)
    known = Measured("test")
    assert ways.ask(known) == "quick" and ways.runs == {"slow": 1, "quick": 1}
    known.save()
    assert len(json.loads(file.read_text())) == 1


def test_an_entry_of_other_ways_is_measured_anew(ways, file):
    file.parent.mkdir()
    file.write_text(json.dumps({f"{machine(CPU)}, kind": {"slow": 0.1}}))
    assert ways.ask(Measured("test")) == "quick"


def test_a_cache_that_cannot_be_written(ways, file):
    file.parent.write_text("a file where the folder should be")
    known = Measured("test")
    assert ways.ask(known) == "quick"
    known.save()
    assert ways.ask(known) == "quick" and ways.runs == {"slow": 1, "quick": 1}
    assert file.parent.is_file()


def test_seconds_are_the_least_of_runs_that_take_turns(monkeypatch):
    now, runs = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def run(name, times):
        runs.append(name)
        now[0] += times.pop(0)

    a, b = [100, 5, 9, 4, 7, 6], [1, 8, 8, 8, 3, 8]  # the first run does not count
    found = seconds({"a": lambda: run("a", a), "b": lambda: run("b", b)}, CPU)
    assert found == {"a": 4, "b": 3}
    assert runs == ["a", "b"] * 6

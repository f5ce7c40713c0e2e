"""What is measured once is remembered, and a cache that cannot be used costs time alone."""

import itertools
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
    """Ways whose times are made up: the first that is timed takes 2 s, the second 1 s."""
    times = itertools.cycle([2.0, 1.0])

    def timed(run, device):
        run()
        return next(times)

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
    assert torch.__version__ in machine(CPU) and "1 threads" in machine(CPU)


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


def test_seconds_is_the_median_without_the_first(monkeypatch):
    # begin and end of each run: 100, 5, 1 and 3 s
    clock = iter([0, 100, 100, 105, 105, 106, 106, 109])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert seconds(lambda: None, CPU) == 3

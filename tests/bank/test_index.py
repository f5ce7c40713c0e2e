"""The index of a bank: what it saves, and that nothing hangs on it."""

import json
import os

import pytest

import ksm.bank.index
from ksm import Bank
from ksm.bank.index import NAME
from ksm.cli.tables import print_table
from making import made


@pytest.fixture
def bank(tmp_path):
    bank = Bank(tmp_path / "bank")
    for name in ("a", "b"):
        bank.save(made(name))
    return bank


@pytest.fixture
def read(monkeypatch):
    """Names of the task files that were opened."""
    names, real = [], ksm.bank.index.read_header

    def counted(path):
        names.append(path.stem)
        return real(path)

    monkeypatch.setattr(ksm.bank.index, "read_header", counted)
    return names


def test_a_file_is_read_again_only_where_it_has_changed(bank, read):
    first, damaged = bank.headers()
    assert read == ["a", "b"] and not damaged
    assert first == {name: bank.header(name) for name in ("a", "b")}
    assert bank.headers() == (first, []) and read == ["a", "b"]
    bank.save(made("a", method="bn"), force=True)
    bank.save(made("c"))
    found, _ = bank.headers()
    assert read == ["a", "b", "a", "c"]
    assert found == {name: bank.header(name) for name in ("a", "b", "c")}
    bank.remove("b")
    assert list(bank.headers()[0]) == ["a", "c"]
    assert list(json.loads((bank.folder / NAME).read_text())) == ["a", "c"]


def test_a_file_of_the_same_size_and_time_in_its_place_is_noticed(bank, read):
    bank.headers()
    path, state = bank.path("a"), bank.path("a").stat()
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes().replace(b"some words", b"more words"))
    os.utime(new, ns=(state.st_atime_ns, state.st_mtime_ns))
    new.replace(path)
    assert bank.headers()[0]["a"]["record"]["note"] == "more words"


def test_a_renamed_file_is_a_renamed_task(bank):
    bank.headers()
    bank.path("a").rename(bank.path("z"))
    found, _ = bank.headers()
    assert [header["name"] for header in found.values()] == ["b", "z"]


def test_the_history_of_the_epochs_is_left_out(bank):
    import dataclasses

    task = dataclasses.replace(made("a"), record={"history": [{"loss": 1.0}], "seconds": 3})
    bank.save(task, force=True)
    assert bank.headers()[0]["a"]["record"] == {"seconds": 3}
    assert bank.load("a").record == task.record


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "5", '{"a": 5}', '{"a": [[1], {}]}', '{"a": [null, null]}', "[" * 100_000],
)
def test_a_damaged_index_costs_nothing(bank, content):
    expected = bank.headers()
    (bank.folder / NAME).write_text(content)
    assert bank.headers() == expected
    assert set(json.loads((bank.folder / NAME).read_text())) == {"a", "b"}


def test_an_entry_that_is_no_header_is_read_from_the_file(bank):
    expected = bank.headers()
    entries = json.loads((bank.folder / NAME).read_text())
    del entries["a"][1]["method"]
    entries["b"][1] = None
    (bank.folder / NAME).write_text(json.dumps(entries))
    assert bank.headers() == expected


def test_damaged_files_are_told_each_time(bank):
    bank.path("broken").write_bytes(b"x" * 50)
    for _ in range(2):
        found, damaged = bank.headers()
        assert list(found) == ["a", "b"]
        assert len(damaged) == 1 and "broken.safetensors is damaged" in damaged[0]


def test_a_folder_that_cannot_be_written_to_does_without(bank, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ksm.core.atomic.os.fsync", full)
    assert list(bank.headers()[0]) == ["a", "b"]
    assert not (bank.folder / NAME).exists()


def test_a_long_table_has_the_cells_of_a_short_one(capsys):
    rows = [[f"task{n}", "x" * (n % 7), "猫"] for n in range(501)]
    print_table(["name", "long column", ""], rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name     long column"
    assert lines[4] == "task3    xxx          猫" and len(lines) == 502

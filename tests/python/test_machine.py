"""This machine's figures: kept in a file of their own, used if they are this machine's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tamis
from tamis import _C, cli
from tamis.layout import Layout
from tamis.ops import cost, machine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder; the figures are what they were afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.load.cache_clear()
    _C.set_machine(None)
    yield tmp_path / "tamis"
    monkeypatch.undo()
    machine.load.cache_clear()
    _C.set_machine(None)


def put(**changes: object) -> None:
    """A file of this machine with some figures changed."""
    stored = {"key": machine.key(), "figures": {**_C.machine(), **changes}}
    machine.write(machine.file(), json.dumps(stored))
    machine.load.cache_clear()


def test_without_a_file_the_built_in_figures_are_used(folder: Path) -> None:
    before = _C.machine()
    assert machine.load() == ""
    assert _C.machine() == before
    assert "built in" in tamis.info()["machine"]["figures"]


def test_a_file_is_used_and_named(folder: Path) -> None:
    put(read_one=123.0)
    assert machine.load() == str(machine.file())
    assert _C.machine()["read_one"] == 123.0
    assert tamis.info()["machine"]["figures"] == str(machine.file())
    assert [path.name for path in folder.iterdir()] == [machine.file().name]  # no part is left


@pytest.mark.parametrize("change", ["key", "text", "number", "table", "missing"])
def test_a_file_of_another_machine_or_a_damaged_one_is_passed_over(
    folder: Path, change: str
) -> None:
    before = _C.machine()
    put()
    stored = json.loads(machine.file().read_text())
    if change == "key":
        stored["key"]["cpu"] = "another"
    if change == "number":
        stored["figures"]["fork"] = -1.0
    if change == "table":
        stored["figures"]["dense_16"][0][0].pop()
    if change == "missing":
        del stored["figures"]["weights_one"]
    machine.file().write_text("{" if change == "text" else json.dumps(stored))
    machine.load.cache_clear()
    assert machine.load() == ""
    assert _C.machine() == before


def test_slower_memory_and_slower_kernels_are_predicted_slower(folder: Path) -> None:
    layout = Layout("bitmap", 1024, 1024, "bf16")
    before = cost.sparse_ns(layout, 1 << 19)
    put(weights_one=1.0, weights_all=1.0)
    slower = cost.sparse_ns(layout, 1 << 19)
    assert before is not None
    assert slower is not None
    assert slower > 2 * before
    name = _C.choose("bitmap", "bf16", "bf16", 1, 1024, 1024, 1 << 19, _C.isa()["active"])
    _C.set_machine(None)
    put(kernels={name: 10.0})
    slower = cost.sparse_ns(layout, 1 << 19, 64)
    _C.set_machine(None)
    assert slower is not None
    assert slower > (cost.sparse_ns(layout, 1 << 19) or 0)


def test_measuring_keeps_figures_of_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command, with little memory and few calls."""
    monkeypatch.setattr(machine, "_COLD_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_DENSE_S", 0.0)
    monkeypatch.setattr(machine, "_KERNEL_CALLS", 1)
    monkeypatch.setattr(machine, "_ROUNDS", 1)
    monkeypatch.setattr(machine, "TOKENS", (1, 1, 1, 1, 1, 1, 1))
    assert cli.main(["info", "--measure"]) == 0
    assert str(machine.file()) in capsys.readouterr().out
    figures = json.loads(machine.file().read_text())["figures"]
    here = {row["name"] for row in _C.kernels() if row["runs_here"]}
    assert figures.keys() == _C.machine().keys()
    assert here & figures["kernels"].keys()
    assert all(0 < scale < 1e6 for scale in figures["kernels"].values())
    assert 0 < figures["share"] <= 1


def test_the_fastest_is_not_much_larger_than_the_smallest() -> None:
    small, large = Layout("csr", 64, 64, "f32"), Layout("bitmap", 64, 64, "f32")
    assert cost.fastest([]) is None
    assert cost.fastest([(small, 4), (large, 4)]) == (small, 4)
    assert cost.fastest([(large, 2048)]) == (large, 2048)


def test_figures_of_other_constants_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = machine.file()
    monkeypatch.setattr(machine, "_constants", lambda: "those of an earlier kernel")
    assert machine.file() != before

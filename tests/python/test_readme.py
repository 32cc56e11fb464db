"""README.md cannot rot: its Python blocks run in order, its commands parse, its links exist."""

import re
import shlex
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tamis import cli  # noqa: E402

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run_in_order(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "my-model").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README.md, python block {number}", "exec"), names)
    assert len(blocks("python")) >= 8
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "my-dense-model" / "config.json").is_file()


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).splitlines()
    return [line for line in lines if line.startswith("tamis ")]


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    arguments = cli.build_parser().parse_args(shlex.split(line)[1:])
    assert arguments.command in line


def test_every_command_is_shown():
    shown = {line.split()[1] for line in commands()}
    assert shown == set(cli.COMMANDS)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z]+) ", "\n".join(blocks("sh"))))
    assert used
    assert used <= targets


def test_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_methods_are_named():
    for method in cli.methods():
        assert f"`{method}`" in README

"""Every CUDA kernel is run by the simulator's tests: each row of a list, and the code of each launch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPS = ROOT / "csrc" / "ops"
TESTS = "\n".join(
    path.read_text()
    for path in sorted([*ROOT.glob("tests/cpp/cuda_sim/*.*"), *ROOT.glob("tests/cpp/*_problem.h")])
)


def kernels() -> dict[str, str]:
    """The body of every function that is launched, by file and name."""
    found = {}
    for path in sorted([*OPS.rglob("*.cu"), *OPS.rglob("*.cuh")]):
        text = path.read_text()
        for match in re.finditer(r"TAMIS_GLOBAL void[^{;]*?(\w+)\(const [^{;]*\{", text):
            end, depth = match.end(), 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            found[f"{path.name}: {match[1]}"] = text[match.end() : end]
    return found


@pytest.mark.parametrize(
    "path", sorted(OPS.glob("*/kernels_cuda.def")), ids=lambda p: p.parent.name
)
def test_every_list_is_read_by_the_simulators_tests(path: Path) -> None:
    op = path.parent.name
    rows = re.findall(r"^TAMIS_\w+\(", path.read_text(), re.MULTILINE)
    assert rows
    included = f'#include "ops/{op}/kernels_cuda.def"' in TESTS
    assert included or re.search(rf"\b{op}_cuda_kernels\(\)", TESTS)


def test_every_launch_is_of_code_that_the_simulators_tests_call() -> None:
    missing, found = [], kernels()
    for name, body in found.items():
        called = re.findall(r"(?<!dev::)\b([a-z]\w+)(?:<[^;{]*?>)?\(", body)
        names = {name.split(": ")[1], *called} - {"if", "for", "while"}
        if not any(re.search(rf"\b{each}\b", TESTS) for each in names):
            missing.append(name)
    assert len(found) > 40
    assert not missing

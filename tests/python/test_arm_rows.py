"""No operator falls back to portable C++ on AArch64 where x86-64 has a vector kernel.

Tiles are not vectors: a row of AMX is one more way to multiply, and asks nothing of AArch64.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
OPS = SOURCES / "ops"
# Arguments of a row that say what it computes; the one after a form's dtypes is its level.
KEYS = {"TAMIS_SPMM": (0, 3), "TAMIS_SPMM_FORM": (1, 4), "TAMIS_KV_QUANTIZE": (0, 1)}
KEYS |= {"TAMIS_SPARSE_INPUT": (0, 1), "TAMIS_SPARSE_MLP": (0, 1)}
# One dtype of q serves all others of these, so only the storage counts.
KEYS |= {"TAMIS_ATTENTION": (0, 1), "TAMIS_KV_SCORE": (0, 2), "TAMIS_KV_REDUCE": (0, 0)}
KEYS |= {"TAMIS_KV_SUMMARY": (0, 1)}
KEYS |= {"TAMIS_CONV2D": (0, 1), "TAMIS_PLANE_MEAN": (0, 1)}
KEYS |= {"TAMIS_PREFILL": (0, 0), "TAMIS_PREFILL_TILES": (0, 0)}
KEYS |= {"TAMIS_SPMM_GRAD": (0, 0)}


def rows(text: str) -> dict[tuple[str, ...], int]:
    """Operands of the rows, each with the fewest tokens that one of its rows takes."""
    found: dict[tuple[str, ...], int] = {}
    for macro, arguments in re.findall(r"^(TAMIS_\w+)\((.*)\)$", text, re.MULTILINE):
        values = arguments.split(", ")
        first, last = KEYS[macro]
        if values[last].startswith("amx"):
            continue
        tokens = int(values[last + 1]) if macro == "TAMIS_SPMM_FORM" else 1
        key = tuple(values[first:last])
        found[key] = min(found.get(key, tokens), tokens)
    return found


# No vector kernel on either: a row of a sparse product touches a few columns far apart.
SCALAR = {"spgemm"}


@pytest.mark.parametrize("op", sorted({p.parent.name for p in OPS.glob("*/kernels.def")} - SCALAR))
def test_every_x86_vector_row_has_one_on_aarch64(op: str) -> None:
    text = (OPS / op / "kernels.def").read_text()
    x86, _, others = text.partition("#elif defined(__aarch64__)")
    arm, _, portable = others.partition("#endif")
    assert x86.count("#if defined(__x86_64__)") == 1
    assert "scalar)" in portable or ", scalar, " in portable
    wanted, there = rows(x86), rows(arm)
    assert wanted
    missing = {k: m for k, m in wanted.items() if there.get(k, m + 1) > m}
    assert not missing


# Products of many tokens in integers: both ways of x86 are smmla's on AArch64. What x86 does with
# a few tokens laid side by side, skip does there; codes laid out as x's columns, groupq; rows in
# lanes, panels.
ELSEWHERE = {
    "dozens": "panels",
    "int8dozens": "pairs",
    "int8quads": "pairs",
    "int8octets": "pairs",
    "int8turns": "pairs",
    "strips": "skip",
    "octets": "skip",
    "columns": "skip",
    "lists": "skip",
    "groupqhalves": "groupq",
    "groupqlanes": "groupq",
}


def test_every_x86_vector_file_has_one_on_aarch64() -> None:
    """What no kernels.def lists as well: encoding, activations, preparing x."""
    found: dict[str, set[tuple[Path, str]]] = {"x86": set(), "arm": set()}
    for path in SOURCES.rglob("*_*.cc"):
        parts = re.fullmatch(r"(.*?)_(?:(avx\w+)|neon\w*)", path.stem)
        if parts:
            stem = ELSEWHERE.get(parts[1], parts[1])
            found["x86" if parts[2] else "arm"].add((path.parent, stem))
    assert len(found["x86"]) > 15
    assert found["x86"] <= found["arm"]


def test_tiles_are_left_out() -> None:
    text = "TAMIS_SPMM_FORM(tiles, bitmap, bf16, bf16, amx, 2, 16, 32)\n"
    assert rows(text) == {}
    assert rows(text.replace("amx", "avx512bf16")) == {("bitmap", "bf16", "bf16"): 2}

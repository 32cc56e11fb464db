"""Bytes that a cache says it holds are the process's, over 4096 tokens in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

BENCH = Path(__file__).parents[2] / "bench" / "kv_memory.py"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "formula", "most"),
    [
        # 127 pages of 32 tokens in (bits + 1) / 8 bytes a number, and 32 tokens as they came
        ("kivi4", (127 * 32 * 5 / 16 + 32) / 4096, 0.32),
        ("kivi2", (127 * 32 * 3 / 16 + 32) / 4096, 0.20),
        ("full", 1.0, 1.0),
    ],
)
def test_the_process_grows_by_what_nbytes_says(method, formula, most):
    found = measured(method)
    assert found["nbytes"] == round(formula * found["plain"])
    assert formula <= most
    assert abs(found["grown"] - found["nbytes"]) < 0.1 * found["nbytes"]


def test_so_it_does_with_tokens_in_a_file():
    found = measured("tiers")
    assert found["nbytes"] < 0.15 * found["plain"]
    assert abs(found["grown"] - found["nbytes"]) < 0.1 * found["nbytes"]


def measured(method):
    command = [sys.executable, str(BENCH), "--inside", "--methods", method]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

"""What `import tamis` costs and brings, in fresh processes."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

import tamis
from tamis import _C


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_fast_and_light() -> None:
    code = """
import sys, time
start = time.perf_counter()
import tamis
taken = time.perf_counter() - start
heavy = [name for name in ("torch", "numpy", "scipy", "transformers", "matplotlib") if name in sys.modules]
print(1e3 * taken, *heavy)
"""
    best = float("inf")
    deadline = time.monotonic() + 30
    while best > 50 and time.monotonic() < deadline:
        milliseconds, *heavy = run(code).split()
        assert heavy == []
        best = min(best, float(milliseconds))
    assert best < 50


def test_numpy_work_never_imports_torch() -> None:
    code = """
import sys
import numpy as np
import tamis
w = np.eye(8, dtype=np.float32)
a = tamis.compress(w)
assert np.array_equal(a @ w, w) and np.array_equal(a.to_dense(), w)
tamis.compress(w, "nm", dtype="i8", n_m=(1, 4)).nbytes, repr(a), a.keep()
str(tamis.info()), tamis.kernels(), tamis.Layout, tamis.TamisError
print("torch" in sys.modules, "scipy" in sys.modules)
"""
    assert run(code) == "False False"


@pytest.mark.parametrize("name", ["sparsify_", "nn", "method"])
def test_without_torch_a_name_says_what_to_install(name: str) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import tamis
try:
    tamis.{name}
except ImportError as error:
    print(error.name, error)
"""
    wanted = f"torch tamis.{name}: torch: got no such package, wanted it installed; pip install"
    assert run(code).startswith(wanted)


@pytest.mark.parametrize("first", ["tamis", "torch"])
def test_either_import_order(first: str) -> None:
    second = {"tamis": "torch", "torch": "tamis"}[first]
    code = f"""
import {first}, {second}
from tamis import _C
linear = torch.nn.Linear(64, 32)
layer = tamis.nn.SparseLinear.from_linear(linear)
x = torch.ones(2, 64)
print(torch.allclose(layer(x), linear(x), atol=1e-5))
"""
    assert run(code) == "True"


def test_every_public_name_resolves() -> None:
    assert sorted(set(tamis.__all__)) == tamis.__all__
    for name in tamis.__all__:
        assert getattr(tamis, name) is not None
    assert set(tamis.__all__) <= set(dir(tamis))
    with pytest.raises(AttributeError, match="module 'tamis' has no attribute 'prune'"):
        tamis.prune  # noqa: B018


def test_info_stays_a_function_whatever_is_imported() -> None:
    importlib.import_module("tamis._info")
    info = tamis.info()
    assert info["backends"]["cuda"].startswith(("on, ", "off, "))  # test_cuda knows which
    assert info["isa"]["active"] in str(info)
    assert info["threads"] >= 1
    for variable in ("TAMIS_ISA", "TAMIS_CUDA", "TAMIS_NUM_THREADS", "TAMIS_LOG"):
        assert variable in str(info)


def test_kernels_lists_what_runs() -> None:
    rows = tamis.kernels()
    keys = {"name", "op", "format", "w_dtype", "x_dtype", "isa"}
    keys |= {"tile_m", "tile_n", "from_m", "runs_here"}
    assert all(set(row) == keys for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)
    assert all(row["runs_here"] for row in rows if row["isa"] == "scalar")


def test_info_shows_a_narrowed_isa() -> None:
    code = """
import os
os.environ["TAMIS_ISA"] = "scalar"
import tamis
info = tamis.info()
print(info["isa"]["active"], all(r["runs_here"] == (r["isa"] == "scalar") for r in tamis.kernels()))
"""
    assert run(code) == "scalar True"


def test_a_wheel_stays_below_40_mb() -> None:
    """The package as a wheel holds it, CUDA library included, compressed as wheels are."""
    root = Path(tamis.__file__).parent
    kinds = (".py", ".pyi", ".so", ".def", ".typed")
    held = [p for p in root.rglob("*") if p.suffix in kinds and "__pycache__" not in p.parts]
    assert any(p.name.startswith("_C.") for p in held)
    size = sum(len(zlib.compress(p.read_bytes(), 1)) for p in held)
    assert size < 40 << 20


def test_the_stub_names_what_the_core_takes() -> None:
    """Every function of the core with its arguments in order, and every other name."""
    stub = ast.parse((Path(tamis.__file__).parent / "_C.pyi").read_text())
    taken: dict[str, list[str]] = {}
    named = {"__doc__"}
    for node in stub.body:
        if isinstance(node, ast.FunctionDef):
            a = node.args
            taken[node.name] = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        elif isinstance(node, ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named.add(node.target.id)
    assert named | set(taken) >= {n for n in dir(_C) if not n.startswith("__")}
    for name, arguments in taken.items():
        signature = (getattr(_C, name).__doc__ or "").splitlines()[0]
        inner = re.sub(r"\[[^][]*\]", "", re.sub(r"\[[^][]*\]", "", signature))
        assert re.findall(r"(\w+): ", inner) == arguments, name

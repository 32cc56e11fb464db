"""The arrows of DESIGN.md: reads every import and include and fails on one that turns back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "tamis"
CSRC = ROOT / "csrc"

# What each part of the package may import, besides itself. A module that is not named here is part
# of "top": it may import everything, and only top may import it.
BASE = {"errors", "layout"}
MAY_IMPORT = {
    "errors": set[str](),
    "layout": {"errors"},
    "ops": BASE | {"_C"},
    "tensor": BASE | {"_C", "ops"},
    "nn": BASE | {"ops", "tensor"},
    "recipe": {"errors"},
    "policy": {"errors", "recipe"},
    "method": {"errors", "recipe", "policy"},
    "model": {"errors"},
    "checkpoint": {"errors"},
    "kv": BASE | {"_C", "ops", "tensor", "recipe", "policy", "method", "checkpoint"},
}
# The only knowledge of model families has few readers; the command line has none but itself.
READERS = {
    "model": {"activation", "calibrate", "decode", "scope"},
    "cli": {"__main__"},
    "commands": {"cli", "__main__"},
}
# What a user without torch imports: nothing of it may reach torch before it is asked to.
LIGHT = (
    "tamis",
    "tamis.errors",
    "tamis.layout",
    "tamis._info",
    "tamis.ops.handle",
    "tamis.tensor.matrix",
    "tamis.tensor.compress",
    "tamis.cli",
)
CPP = ("base", "format", "ops", "binding")


def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def part_of(module: str) -> str:
    """First component below tamis: "tamis.ops.spmm" is in "ops"; tamis itself is "__init__"."""
    return module.split(".")[1] if "." in module else "__init__"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def nodes(tree: ast.AST, *, run_at_import: bool) -> Iterator[ast.AST]:
    """Every node; or only those that run when the module is imported."""
    for child in ast.iter_child_nodes(tree):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if run_at_import and (deferred or is_type_checking(child)):
            continue
        yield child
        yield from nodes(child, run_at_import=run_at_import)


def imports(tree: ast.AST, *, run_at_import: bool = False, known: set[str]) -> set[str]:
    """Modules that ``tree`` imports; of tamis, the deepest module that exists."""
    found: set[str] = set()
    for node in nodes(tree, run_at_import=run_at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"relative import of {node.module}"
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = {name for name in deeper if name in known or name == "tamis._C"}
            found |= inside or {node.module}
    return found


def turns_back(module: str, target: str) -> bool:
    """Whether ``module`` may not import ``target``."""
    here, there = part_of(module), part_of(target)
    if here == there or here == "__init__":
        return False
    if there in READERS and here not in READERS[there]:
        return True
    return here in MAY_IMPORT and there not in MAY_IMPORT[here]


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    targets = {
        name
        for name in imports(MODULES[module], known=set(MODULES))
        if name.split(".")[0] == "tamis"
    }
    assert not {target for target in targets if turns_back(module, target)}


def reached(module: str) -> set[str]:
    """Modules that importing ``module`` imports, through those of tamis."""
    seen, todo = set[str](), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            if name in MODULES:
                todo += imports(MODULES[name], run_at_import=True, known=set(MODULES))
                todo += [name.rpartition(".")[0]] if "." in name else []
    return {name.split(".")[0] for name in seen}


@pytest.mark.parametrize("module", LIGHT)
def test_no_torch_at_import(module: str) -> None:
    assert not reached(module) & {"torch", "transformers", "scipy"}


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) in ("policy", "method")])
def test_policies_and_methods_see_tensors_only(module: str) -> None:
    tree = MODULES[module]
    foreign = {"transformers", "torch.nn", "torch.nn.functional"}
    assert not imports(tree, known=set(MODULES)) & foreign
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not {w for w in words if w in ("Module", "Linear") or w.startswith("register_forward")}


# C++.

INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cc", ".cu", ".cuh", ".def"))


def bad_includes(path: Path, text: str) -> list[str]:
    """Includes of the source at ``path`` (below csrc) that its folder may not have."""
    folder = path.parts[0]
    bad = []
    for target in INCLUDE.findall(text):
        first = target.split("/")[0]
        on_gpu = path.suffix in (".cu", ".cuh") or path.parts[:2] == ("base", "cuda")
        turns = first in CPP and CPP.index(first) > CPP.index(folder)
        binds = first == "pybind11" and folder != "binding"
        python = target == "Python.h" and folder != "binding"
        cuda = (first.startswith("cuda") or first in ("mma.h", "cub", "cooperative_groups.h")) and (
            not on_gpu
        )
        torch = first in ("torch", "ATen", "c10")
        relative = target.startswith(".")
        if turns or binds or python or cuda or torch or relative:
            bad.append(target)
    return bad


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_includes_follow_the_arrows(path: Path) -> None:
    assert path.relative_to(CSRC).parts[0] in CPP
    assert bad_includes(path.relative_to(CSRC), path.read_text()) == []


# The checks themselves find what they are for.


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 20
    assert {part_of(module) for module in MODULES} >= {"ops", "tensor", "nn", "policy", "method"}
    assert len(SOURCES) > 20


@pytest.mark.parametrize(
    ("module", "code", "bad"),
    [
        ("tamis.ops.spmm", "from tamis.tensor.matrix import SparseMatrix", True),
        ("tamis.ops.spmm", "def f():\n    import tamis.nn", True),
        ("tamis.tensor.matrix", "from tamis import nn", True),
        ("tamis.layout", "from tamis import _C", True),
        ("tamis.policy.score", "from tamis.method import load", True),
        ("tamis.recipe", "from tamis.policy import score", True),
        ("tamis.nn", "from tamis.rewrite import sparsify_", True),
        ("tamis.io", "from tamis.model import family_of", True),
        ("tamis.rewrite", "from tamis import cli", True),
        ("tamis.calibrate", "from tamis.model import family_of", False),
        ("tamis.nn", "from tamis.tensor.matrix import SparseMatrix", False),
        ("tamis.method.prune.wanda", "from tamis.policy import score", False),
    ],
)
def test_a_bad_import_is_found(module: str, code: str, bad: bool) -> None:
    targets = imports(ast.parse(code), known=set(MODULES))
    assert any(turns_back(module, target) for target in targets) == bad


def test_a_torch_import_is_found() -> None:
    assert "torch" in reached("tamis.nn") & reached("tamis.tensor.torch_side")


@pytest.mark.parametrize(
    ("path", "text", "bad"),
    [
        ("base/isa.cc", '#include "format/nm.h"', True),
        ("format/nm.cc", '#include "ops/spmm/spmm.h"', True),
        ("ops/spmm/spmm.cc", "#include <pybind11/pybind11.h>", True),
        ("ops/spmm/spmm.cc", "#include <cuda_runtime.h>", True),
        ("binding/module.cc", "#  include <torch/extension.h>", True),
        ("format/nm.cc", '#include "../base/isa.h"', True),
        ("ops/spmm/nm_sm80.cu", "#include <cuda_bf16.h>", False),
        ("binding/module.cc", "#include <pybind11/pybind11.h>", False),
        ("ops/spmm/spmm.cc", '#include "format/matrix.h"', False),
    ],
)
def test_a_bad_include_is_found(path: str, text: str, bad: bool) -> None:
    assert bool(bad_includes(Path(path), text)) == bad

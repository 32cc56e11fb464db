"""tamis: weight sparsity as memory and time, on the machine in front of you.

Importing this package imports neither torch nor NumPy; every public name is loaded on first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers read as true; importing typing would cost 10 ms
if TYPE_CHECKING:
    from typing import Any

    from tamis import activation, kv, lora, nn
    from tamis._info import info, kernels
    from tamis.decode import fuse_decode_
    from tamis.errors import (
        TamisError,
        TamisFileError,
        TamisTypeError,
        TamisUnsupported,
        TamisValueError,
    )
    from tamis.fuse import fuse_
    from tamis.io import convert, export, load, save
    from tamis.layout import Layout
    from tamis.permute import permute_for_groups
    from tamis.prepack import prepack_
    from tamis.report import LayerReport, Report
    from tamis.rewrite import dense_, explain, optimize_, sparsify_
    from tamis.tensor.compress import compress
    from tamis.tensor.matrix import SparseMatrix

__version__ = "0.1.0"

_HOME = {
    "LayerReport": "report",
    "Layout": "layout",
    "Report": "report",
    "SparseMatrix": "tensor.matrix",
    "TamisError": "errors",
    "TamisFileError": "errors",
    "TamisTypeError": "errors",
    "TamisUnsupported": "errors",
    "TamisValueError": "errors",
    "compress": "tensor.compress",
    "convert": "io",
    "dense_": "rewrite",
    "explain": "rewrite",
    "export": "io",
    "fuse_": "fuse",
    "fuse_decode_": "decode",
    "info": "_info",
    "kernels": "_info",
    "load": "io",
    "optimize_": "rewrite",
    "permute_for_groups": "permute",
    "prepack_": "prepack",
    "save": "io",
    "sparsify_": "rewrite",
}
_MODULES = ("activation", "hf", "kv", "lora", "method", "nn")

__all__ = [
    "LayerReport",
    "Layout",
    "Report",
    "SparseMatrix",
    "TamisError",
    "TamisFileError",
    "TamisTypeError",
    "TamisUnsupported",
    "TamisValueError",
    "activation",
    "compress",
    "convert",
    "dense_",
    "explain",
    "export",
    "fuse_",
    "fuse_decode_",
    "info",
    "kernels",
    "kv",
    "load",
    "lora",
    "nn",
    "optimize_",
    "permute_for_groups",
    "prepack_",
    "save",
    "sparsify_",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _MODULES and name not in _HOME:
        raise AttributeError(f"module 'tamis' has no attribute {name!r}")
    try:
        module = import_module(f"tamis.{_HOME.get(name, name)}")
    except ImportError as error:
        if error.name not in ("torch", "transformers", "safetensors"):
            raise
        raise ImportError(
            f"tamis.{name}: {error.name}: got no such package, wanted it installed; pip install "
            "'tamis[hf]'.",
            name=error.name,
        ) from error
    if name in _HOME:
        globals()[name] = module = getattr(module, name)
    return module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

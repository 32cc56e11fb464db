"""Reads "sparse-bitmask" and "sparse-24-bitmask" weights, which compressed-tensors once wrote.

Per linear layer ``p``: ``p.shape`` (rows, cols), ``p.compressed`` (kept values in row order; a
matrix [rows, cols / 2] for 2:4), ``p.bitmask`` uint8 [rows, ceil(cols / 8)] with column 8 j + i in
bit i of byte j, and for sparse-bitmask ``p.row_offsets`` [rows], where each row's values start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tamis import stored
from tamis.checkpoint import Checkpoint
from tamis.errors import TamisUnsupported
from tamis.layout import Layout
from tamis.tensor.matrix import SparseMatrix

_VALUES = ".compressed"
_PARTS = (".shape", ".bitmask", ".row_offsets")
_FORMATS = ("sparse-bitmask", "sparse-24-bitmask")
_DAMAGED = "the file is damaged, copy it again."
_DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
# What quantized layers of compressed-tensors store beside their weights.
_QUANTIZED = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_g_idx")


def check_config(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Refuses what neither this module nor a plain read understands.

    Raises:
        TamisUnsupported: The weights are quantized, or sparse in another format.
    """
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    method = quantization.get("quant_method", "compressed-tensors")
    sparsity = quantization.get("sparsity_config") or config.get("sparsity_config") or {}
    format = sparsity.get("format", "dense")
    packed = next((name for name in checkpoint.entries if name.endswith(_QUANTIZED)), None)
    if method != "compressed-tensors" or packed is not None:
        raise TamisUnsupported(
            f"convert: src: got weights quantized by {method!r} ({packed or 'config.json'}), "
            "wanted floating-point weights; convert the unquantized model."
        )
    if format not in (*_FORMATS, "dense"):
        raise TamisUnsupported(
            f"convert: src: got the sparsity format {format!r}, wanted {' or '.join(_FORMATS)}."
        )


def is_values(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor holds the kept values of a weight in this form."""
    prefix = name.removesuffix(_VALUES)
    return prefix != name and f"{prefix}.bitmask" in checkpoint


def is_companion(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor is read together with such values."""
    prefix, _, part = name.rpartition(".")
    return f".{part}" in _PARTS and is_values(f"{prefix}{_VALUES}", checkpoint)


def read(name: str, checkpoint: Checkpoint) -> tuple[str, SparseMatrix | torch.Tensor]:
    """State-dict name and weight of the values ``name``: compressed, or dense if not a matrix.

    Raises:
        TamisFileError: The parts are missing or contradict each other.
        TamisUnsupported: The values are of a type that tamis does not store.
    """
    prefix = name.removesuffix(_VALUES)
    weight = f"{prefix.removesuffix('.weight')}.weight"
    dtype = checkpoint.entries[name].dtype
    if dtype not in _DTYPES:
        raise TamisUnsupported(
            f"convert: {name}: got {dtype} values, wanted {', '.join(_DTYPES)}; tamis stores no "
            "fp8."
        )
    shape = _shape(prefix, checkpoint)
    rows, cols = (1, shape[0]) if len(shape) == 1 else shape
    layout, arrays = _arrays(prefix, checkpoint, rows, cols, _DTYPES[dtype])
    where = f"{checkpoint.entries[name].file.name}: {prefix}"
    matrix = stored.checked_matrix(layout, arrays, where, "convert")
    return weight, matrix.to_dense().reshape(shape) if len(shape) == 1 else matrix


def _shape(prefix: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    name = f"{prefix}.shape"
    if name not in checkpoint:
        raise checkpoint.error(name, "no such tensor", "the weight's shape", _DAMAGED)
    shape = tuple(int(n) for n in checkpoint.numpy(name).reshape(-1))
    if len(shape) not in (1, 2) or any(not 1 <= n < 2**31 for n in shape):
        raise checkpoint.error(name, str(list(shape)), "one or two positive sizes", _DAMAGED)
    return shape


def _arrays(
    prefix: str, checkpoint: Checkpoint, rows: int, cols: int, dtype: str
) -> tuple[Layout, dict[str, torch.Tensor]]:
    values = stored.tensor(checkpoint, f"{prefix}{_VALUES}")
    arrays = {"values": values.reshape(-1), "mask": _mask(prefix, checkpoint, rows, cols)}
    if f"{prefix}.row_offsets" not in checkpoint:
        _expect(checkpoint, f"{prefix}{_VALUES}", (rows, cols // 2))
        return Layout("nm", rows, cols, dtype, keep=2, of=4), arrays
    starts = checkpoint.numpy(f"{prefix}.row_offsets").reshape(-1)
    _expect(checkpoint, f"{prefix}.row_offsets", (rows,))
    offsets = np.append(starts.astype(np.int64), values.numel())
    arrays["row_offsets"] = torch.from_numpy(offsets)
    return Layout("bitmap", rows, cols, dtype), arrays


def _mask(prefix: str, checkpoint: Checkpoint, rows: int, cols: int) -> torch.Tensor:
    """Mask words [rows, ceil(cols / 64)]: the bytes are in the same order, rows padded to words."""
    width = -(-cols // 8)
    _expect(checkpoint, f"{prefix}.bitmask", (rows, width))
    padded = np.zeros((rows, -(-cols // 64) * 8), np.uint8)
    padded[:, :width] = checkpoint.raw(f"{prefix}.bitmask").reshape(rows, width)
    return torch.from_numpy(padded.view("<i8"))


def _expect(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    entry = checkpoint.entries.get(name)
    got = None if entry is None else entry.shape
    if got is not None and tuple(n for n in got if n != 1) == tuple(n for n in shape if n != 1):
        return
    found = "no such tensor" if got is None else f"shape {list(got)}"
    raise checkpoint.error(name, found, f"shape {list(shape)}", _DAMAGED)

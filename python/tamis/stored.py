"""Compressed weights as a checkpoint holds them: layouts by module name, companion tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tamis import __version__
from tamis.checkpoint import Checkpoint, file_error
from tamis.errors import TamisError, TamisFileError
from tamis.layout import Layout
from tamis.nn import SparseLinear
from tamis.tensor.matrix import SparseMatrix

FORMAT_VERSION = 1

# Names of element types in safetensors.
SAFE_DTYPE = {"f32": "F32", "f16": "F16", "bf16": "BF16", "i8": "I8", "u4": "U8", "u8": "U8"}
COMPANIONS = ("mask", "row_offsets", "col_indices", "scales")


def layouts_of(model: torch.nn.Module) -> dict[str, Layout]:
    """Layout of every SparseLinear of ``model``, by module name."""
    return {
        name: module.layout
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    }


def is_transformers(model: Any) -> bool:
    """Whether this is a PreTrainedModel; transformers is not imported for other models."""
    return any(
        cls.__name__ == "PreTrainedModel" and cls.__module__.startswith("transformers.")
        for cls in type(model).__mro__
    )


def follow(model: Any) -> None:
    """Lets save_pretrained of a transformers model know which layers are sparse now.

    Without it, save_pretrained would write tensors that from_pretrained replaces by random ones. The
    model may lie in others, as in those of peft.
    """
    if is_transformers(model):
        from tamis import hf

        hf.follow(model)
        return
    for child in model.children():
        follow(child)


def to_json(layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """Format version and layouts as the plain dict that config.json and tamis.json hold."""
    return {
        "format_version": FORMAT_VERSION,
        "tamis_version": __version__,
        "modules": {name: layout.to_json() for name, layout in layouts.items()},
    }


def check_version(data: Mapping[str, Any], where: str, caller: str) -> None:
    """Refuses what another format version wrote.

    Raises:
        TamisFileError: ``format_version`` is not the one this tamis writes.
    """
    version = data.get("format_version")
    if version == FORMAT_VERSION and type(version) is int:
        return
    if type(version) is int and version > FORMAT_VERSION:
        by = data.get("tamis_version")
        known = isinstance(by, str) and re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,30}", by)
        need = f"tamis>={by}" if known else "tamis"
        fix = f"run pip install -U '{need}'."
    else:
        fix = "the file is damaged, copy or save it again."
    raise file_error(
        caller, f"{where}: format_version", repr(version),
        f"{FORMAT_VERSION}, all that tamis {__version__} reads", fix,
    )  # fmt: skip


def layouts_from_json(modules: Any, where: str, caller: str) -> dict[str, Layout]:
    """Layouts by module name from an untrusted file.

    Raises:
        TamisFileError: ``modules`` is not such a dict.
    """
    if not isinstance(modules, Mapping):
        raise file_error(
            caller, f"{where}: modules", type(modules).__name__, "layouts by module name",
            "the file is damaged, copy or save it again.",
        )  # fmt: skip
    layouts = {}
    for name, data in modules.items():
        try:
            layouts[str(name)] = Layout.from_json(data)
        except TamisError as err:
            raise TamisFileError(f"{caller}: {where}: {name}: {err}") from err
    return layouts


def check_stored(checkpoint: Checkpoint, prefix: str, layout: Layout) -> int:
    """Compares the companion tensors of one module with its layout, from the headers alone.

    Args:
        checkpoint: The opened files.
        prefix: Name of the module in the files.
        layout: What the configuration says about it.

    Returns:
        The number of stored values.

    Raises:
        TamisFileError: A companion tensor is missing or has another dtype or shape.
    """
    values = f"{prefix}.weight_values"
    entry = checkpoint.entries.get(values)
    size = entry.shape[0] if entry is not None and len(entry.shape) == 1 else 0
    nnz = layout.stored(size)
    try:
        shapes = layout.array_shapes(nnz)
    except TamisError as err:
        raise TamisFileError(f"{checkpoint.caller}: {values}: {err}") from err
    for array, shape in shapes.items():
        name = f"{prefix}.weight_{array}"
        own = array == "values"
        dtype = SAFE_DTYPE[layout.dtype] if own else layout.index_dtype(array).upper()
        _check_entry(checkpoint, name, dtype, shape, layout)
    return nnz


def _check_entry(
    checkpoint: Checkpoint, name: str, dtype: str, shape: tuple[int, ...], layout: Layout
) -> None:
    entry = checkpoint.entries.get(name)
    if entry is not None and entry.dtype == dtype and entry.shape == shape:
        return
    where = f"{entry.file.name}: {name}" if entry else name
    got = f"{entry.dtype} {list(entry.shape)}" if entry else "no such tensor in the files"
    raise checkpoint.error(
        where,
        got,
        f"{dtype} {list(shape)} of a {layout.label} weight [{layout.rows}, {layout.cols}]",
        "the file is damaged or from another model, copy or save it again.",
    )


def tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A stored tensor, mapped copy-on-write where its offset allows."""
    array = checkpoint.numpy(name)
    if not array.size:
        array = array.copy()
    dtype = checkpoint.entries[name].dtype
    if dtype == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        kind = torch.float8_e4m3fn if dtype == "F8_E4M3" else torch.float8_e5m2
        return torch.from_numpy(array).view(kind)
    return torch.from_numpy(array)


def read_matrix(checkpoint: Checkpoint, prefix: str, layout: Layout) -> SparseMatrix:
    """The compressed weight of one module, checked in full.

    Raises:
        TamisFileError: The tensors are missing, misshapen or contradict each other.
    """
    check_stored(checkpoint, prefix, layout)
    names = {array: f"{prefix}.weight_{array}" for array in layout.array_names}
    arrays = {array: tensor(checkpoint, name) for array, name in names.items()}
    return checked_matrix(layout, arrays, prefix, checkpoint.caller)


def checked_matrix(
    layout: Layout, arrays: Mapping[str, torch.Tensor], where: str, caller: str
) -> SparseMatrix:
    """SparseMatrix of arrays from a file, once they hold all that a kernel relies on.

    Raises:
        TamisFileError: An array contradicts another: popcounts, offsets, index ranges.
    """
    try:
        return SparseMatrix(layout, arrays)
    except TamisError as err:
        text = str(err).rstrip(".")
        raise TamisFileError(
            f"{caller}: {where}: {text}; the file is damaged, copy or save it again."
        ) from err

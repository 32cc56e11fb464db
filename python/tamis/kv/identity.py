"""Marks that tell one model's layers from another's, so that a cache or a plan meets its own model."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisUnsupported, TamisValueError

_VALUES = 64  # of each tensor; models that differ, differ in their first weights


def layer_mark(module: Any) -> str:
    """Eight hex digits that depend on the first weights of a layer; "" without weights."""
    if not isinstance(module, torch.nn.Module):
        return ""
    tensors = chain(module.parameters(), module.buffers())
    return _mark(islice(tensors, 8))


def model_mark(model: torch.nn.Module) -> str:
    """Eight hex digits that depend on the first weights of every tensor of a model."""
    return _mark(model.parameters())


def check_mark(function: str, what: str, got: str, wanted: str) -> None:
    """Refuses what was made with another model; an empty mark fits every model.

    Raises:
        TamisValueError: The marks differ.
    """
    if got and wanted and got != wanted:
        raise TamisValueError(
            f"{function}: {what}: got one made with another model (mark {got}), wanted this "
            f"model's {wanted}; make a new one."
        )


def check_attention(function: str, model: Any) -> None:
    """Refuses models whose attention cannot be replaced.

    Raises:
        TamisUnsupported: It has no ``config`` or no ``set_attn_implementation``.
    """
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        raise TamisUnsupported(
            f"{function}: model: got {type(model).__name__}, which does not take attention "
            "functions, wanted one of transformers' newer models."
        )


def _mark(tensors: Iterable[Tensor]) -> str:
    crc = 0
    for x in tensors:
        if x.is_meta:
            continue
        crc = zlib.crc32(repr((tuple(x.shape), str(x.dtype))).encode(), crc)
        # a copy, as NumPy forbids a parameter's own storage to be resized, which FSDP does
        first = x.detach().flatten()[:_VALUES].cpu().clone()
        crc = zlib.crc32(first.view(torch.uint8).numpy().tobytes(), crc)
    return f"{crc:08x}" if crc else ""

"""Quantized pages of a store: its older tokens, in rows named ``records``."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis._C import KvPageLayout
from tamis.kv.rows import Rows, indices
from tamis.ops.attention import ALL, Lists, PageSegment
from tamis.ops.kv_quantize import kv_quantize, kv_unpack, page_layout
from tamis.policy.kv_recipe import Quantize


def layout_of(d: int, how: Quantize) -> KvPageLayout:
    """The records of heads of ``d`` channels.

    Raises:
        TamisValueError: The format has no such sizes.
    """
    group = d if how.group == 0 else how.group
    return page_layout(d, how.key_bits, how.value_bits, how.page, group)


def seal(rows: dict[str, Rows], how: Quantize) -> None:
    """Moves whole pages of ``keys`` and ``values``, oldest first, while ``residual`` tokens remain."""
    keys, values = rows["keys"], rows["values"]
    pages = (keys.count - how.residual) // how.page
    if how.key_bits >= 16 or pages <= 0:
        return
    b, g, _, d = keys.buffer.shape
    layout = layout_of(d, how)
    if "records" not in rows:
        rows["records"] = Rows(keys.buffer.new_empty(b, g, 0, layout.nbytes, dtype=torch.uint8))
    n = pages * how.page
    out = rows["records"].extend(pages)
    kv_quantize(keys.view[:, :, :n], values.view[:, :, :n], layout, out)
    keys.drop_first(n)
    values.drop_first(n)


def tokens(rows: dict[str, Rows], how: Quantize | None) -> int:
    """Tokens in the pages."""
    return rows["records"].count * how.page if how is not None and "records" in rows else 0


def segment(rows: dict[str, Rows], how: Quantize, first: Tensor | None) -> PageSegment:
    """All pages, from the first tokens [b, g] on that count."""
    d = rows["keys"].buffer.shape[3]
    layout = layout_of(d, how)
    lists = ALL if first is None else Lists(begin=indices(first))
    return PageSegment(rows["records"].view, layout, lists)


def unpack(rows: dict[str, Rows], how: Quantize) -> tuple[Tensor, Tensor]:
    """Keys and values [b, g, tokens, d] of the pages, in the store's dtype."""
    keys = rows["keys"].buffer
    layout = layout_of(keys.shape[3], how)
    k, v = kv_unpack(rows["records"].view, layout)
    return k.to(keys), v.to(keys)

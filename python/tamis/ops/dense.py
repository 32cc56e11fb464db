"""Compressed to dense and back in plain torch: any device, any float dtype, no kernels.

The CPU operators use the C++ core where it has the function; this is the rest of them, and all of
them on other devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.layout import Layout


def keep_of(
    layout: Layout, mask: Tensor | None, row_offsets: Tensor | None, col_indices: Tensor | None
) -> Tensor:
    """Boolean [rows, cols], true where a value is stored (block: where its block is stored)."""
    if mask is not None:
        bits = torch.arange(8, dtype=torch.uint8, device=mask.device)
        octets = mask.contiguous().view(torch.uint8)  # little-endian words
        kept = torch.bitwise_right_shift(octets.unsqueeze(-1), bits).bitwise_and_(1)
        return kept.view(torch.bool).view(layout.rows, -1)[:, : layout.cols].contiguous()
    if row_offsets is None or col_indices is None:
        raise TypeError("keep_of: row_offsets, col_indices: got None, wanted tensors.")
    if layout.format == "csr8":
        return _keep_of_bytes(layout, col_indices)
    r, c = layout.block if layout.format == "block" else (1, 1)
    grid = torch.zeros(
        layout.rows // r, layout.cols // c, dtype=torch.bool, device=row_offsets.device
    )
    grid[_row_of_entry(row_offsets, col_indices), col_indices.long()] = True
    return grid.repeat_interleave(r, 0).repeat_interleave(c, 1)


def _keep_of_bytes(layout: Layout, col_bytes: Tensor) -> Tensor:
    """The same of csr8: counts of each word, then columns within it."""
    words = -(-layout.cols // 64)
    counts, columns = col_bytes.long().tensor_split([layout.rows * words])
    word = torch.arange(counts.numel(), device=counts.device)
    word = word.repeat_interleave(counts, output_size=columns.numel())
    keep = torch.zeros(layout.rows, 64 * words, dtype=torch.bool, device=counts.device)
    keep.view(-1)[64 * word + columns] = True
    return keep[:, : layout.cols].contiguous()


def gather_dense(
    dense: Tensor,
    layout: Layout,
    mask: Tensor | None,
    row_offsets: Tensor | None,
    col_indices: Tensor | None,
) -> Tensor:
    """Values [nnz] of ``dense`` [rows, cols] where the structure stores one, in storage order."""
    if layout.format == "block" and row_offsets is not None and col_indices is not None:
        where = _row_of_entry(row_offsets, col_indices), col_indices.long()
        return _as_blocks(dense, layout)[where].reshape(-1)
    return dense.masked_select(keep_of(layout, mask, row_offsets, col_indices))


def unpack_dense(
    values: Tensor,
    layout: Layout,
    mask: Tensor | None,
    row_offsets: Tensor | None,
    col_indices: Tensor | None,
    scales: Tensor | None,
) -> Tensor:
    """Dense [rows, cols] in the dtype of ``values``; float32 where they are int8 codes."""
    codes = values if scales is None else values.to(torch.float32)
    dense = codes.new_zeros(layout.rows, layout.cols)
    if layout.format == "block" and row_offsets is not None and col_indices is not None:
        where = _row_of_entry(row_offsets, col_indices), col_indices.long()
        _as_blocks(dense, layout)[where] = codes.view(-1, *layout.block)
    else:
        dense.masked_scatter_(keep_of(layout, mask, row_offsets, col_indices), codes)
    if scales is not None:
        size = layout.group_size or layout.cols
        dense *= scales.repeat_interleave(size, 1)[:, : layout.cols]
    return dense


def _row_of_entry(row_offsets: Tensor, col_indices: Tensor) -> Tensor:
    """Row (or block row) of each column index, int64."""
    rows = torch.arange(row_offsets.numel() - 1, device=row_offsets.device)
    return rows.repeat_interleave(row_offsets.diff(), output_size=col_indices.numel())


def _as_blocks(dense: Tensor, layout: Layout) -> Tensor:
    """View [rows / r, cols / c, r, c] of a contiguous dense [rows, cols]."""
    r, c = layout.block
    return dense.view(layout.rows // r, r, layout.cols // c, c).transpose(1, 2)

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
    """Boolean [rows, cols], true where a value is stored (block, groupq: where its group is)."""
    if mask is not None:
        width = layout.group_size if layout.format == "groupq" else 1
        bits = torch.arange(8, dtype=torch.uint8, device=mask.device)
        octets = mask.contiguous().view(torch.uint8)  # little-endian words
        kept = torch.bitwise_right_shift(octets.unsqueeze(-1), bits).bitwise_and_(1)
        kept = kept.view(torch.bool).view(layout.rows, -1)[:, : layout.cols // width]
        return kept.contiguous() if width == 1 else kept.repeat_interleave(width, 1)
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
    """Dense [rows, cols] in the dtype of ``values``; float32 where they are codes."""
    if layout.format == "groupq" and scales is not None:
        return _unpack_groups(values, layout, mask, row_offsets, scales)
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


def unpack_traced(
    values: Tensor,
    layout: Layout,
    mask: Tensor | None,
    row_offsets: Tensor | None,
    col_indices: Tensor | None,
    scales: Tensor | None,
) -> Tensor:
    """The same written so that every transform of torch.func goes through, batched values included."""
    if scales is not None:
        return unpack_dense(values, layout, mask, row_offsets, col_indices, scales)
    places = torch.arange(1, values.shape[0] + 1, device=values.device)
    places = unpack_dense(places, layout, mask, row_offsets, col_indices, None)
    return torch.cat([values.new_zeros(1), values])[places]


def _unpack_groups(
    values: Tensor, layout: Layout, mask: Tensor | None, row_offsets: Tensor | None, scales: Tensor
) -> Tensor:
    """Dense w [rows, cols] = scale * (code - zero); the low halves of u4 come first."""
    codes = values.view(scales.shape[0], -1)
    if layout.dtype == "u4":
        codes = torch.cat([codes.bitwise_and(15), codes.bitwise_right_shift(4)], 1)
    scale, zero = scales.float().unsqueeze(-1).unbind(1)
    groups = scale * (codes.float() - zero)
    dense = groups.new_zeros(layout.rows, layout.cols)
    return dense.masked_scatter_(keep_of(layout, mask, row_offsets, None), groups)


def _row_of_entry(row_offsets: Tensor, col_indices: Tensor) -> Tensor:
    """Row (or block row) of each column index, int64."""
    rows = torch.arange(row_offsets.numel() - 1, device=row_offsets.device)
    return rows.repeat_interleave(row_offsets.diff(), output_size=col_indices.numel())


def _as_blocks(dense: Tensor, layout: Layout) -> Tensor:
    """View [rows / r, cols / c, r, c] of a contiguous dense [rows, cols]."""
    r, c = layout.block
    return dense.view(layout.rows // r, r, layout.cols // c, c).transpose(1, 2)

"""prefill_attention: attention of a prompt's queries, each over the tokens that a pattern lets it see.

``sparse_attention`` is for queries that all see the same tokens. Here they may be limited by
causality, padding, spans, blocks or a subset of the tokens; several limits hold together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisValueError
from tamis.ops import cuda_kv
from tamis.ops.handle import core_errors
from tamis.ops.kv_quantize import float_code, rows_of

__all__ = ["CAUSAL", "Blocks", "Pattern", "Spans", "Subset", "prefill_attention"]


@dataclass(frozen=True)
class Spans:
    """First tokens and the latest, per head: token t of a query at p if t < sink or t > p - window.

    Attributes:
        sink: [p] int32, 0 or more; p is 1, the KV heads or the query heads.
        window: [p] int32, 1 or more.
    """

    sink: Tensor
    window: Tensor


@dataclass(frozen=True)
class Blocks:
    """Which blocks of tokens see which, compressed rows over the blocks of queries, per head.

    Blocks cover tokens [0, s) of the keys; the last may be shorter (S2-Attention, arXiv:2407.17678).

    Attributes:
        size: Tokens of a block.
        offsets: [p, ceil(s / size) + 1] int32, first entry of each row; p as in ``Spans``.
        columns: [p, width] int32, seen blocks, ascending in a row.
    """

    size: int
    offsets: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Subset:
    """Queries that are answered, or tokens that are pattern.

    Attributes:
        index: [b, width] int32, ascending.
        count: How many of them, [b] int32; all by default.
    """

    index: Tensor
    count: Tensor | None = None


@dataclass(frozen=True)
class Pattern:
    """What each query sees: the tokens that everything given here allows.

    Attributes:
        causal: Whether a query sees only tokens up to its own.
        first: Token of query 0; by default the queries are those of the last n tokens.
        begin: First token that counts, [b] int32: left padding.
        spans: First and latest tokens.
        blocks: Blocks of tokens; with ``spans``, one set of heads for both.
        rows: Queries to answer, numbers of q's rows.
        columns: Tokens to see.
    """

    causal: bool = True
    first: int | None = None
    begin: Tensor | None = None
    spans: Spans | None = None
    blocks: Blocks | None = None
    rows: Subset | None = None
    columns: Subset | None = None


CAUSAL = Pattern()


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern = CAUSAL,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Output [b, h, n, d] in q's dtype and the logarithm of its weights' sum [b, h, n] f32.

    A query that sees nothing, or that ``pattern.rows`` leaves out, gets 0 and -inf. Nothing of size n * s
    exists on the way.

    Args:
        q: [b, h, n, d] float32, float16 or bfloat16 on the CPU or a CUDA device, h a multiple of the
            KV heads. On CUDA all three are float16 or all bfloat16, d is 64 or 128, and blocks come
            without rows and columns; nothing there is read by the host, so lists are not checked.
        k: [b, g, s, d] of one such dtype.
        v: Like k.
        pattern: What each query sees.
        scale: Of the scores; 1 / sqrt(d) by default.
        softcap: c of c * tanh(score / c); 0 for none.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisUnsupported: On CUDA, operands that no kernel takes, or CUDA is off.
        TamisValueError: Shapes disagree, or a list is out of range or order.
    """
    op = "prefill_attention"
    codes = (float_code(op, q, cuda=True), float_code(op, k, cuda=True))
    b, h, n, d = q.shape
    g, s = k.shape[1:3]
    alike = v.shape == k.shape and v.dtype == k.dtype and {k.device, v.device} == {q.device}
    if k.shape != (b, g, s, d) or not alike or g == 0 or h % g != 0:
        raise TamisValueError(
            f"prefill_attention: q, k, v: got shapes {list(q.shape)}, {list(k.shape)}, "
            f"{list(v.shape)}, wanted [b, h, n, d] and [b, g, s, d] twice of one dtype with h a "
            "multiple of g, all on one device."
        )
    start = s - n if pattern.first is None else pattern.first
    q, k, v = rows_of(q), rows_of(k), rows_of(v)
    if pattern.rows is None:
        out = torch.empty(b, n, h, d, dtype=q.dtype, device=q.device).transpose(1, 2)
        lse = torch.empty(b, h, n, device=q.device)
    else:
        out = torch.zeros(b, n, h, d, dtype=q.dtype, device=q.device).transpose(1, 2)
        lse = torch.full((b, h, n), float("-inf"), device=q.device)
    lists = _Lists(q.device)
    arguments = (
        codes,
        (b, h, g, n, s, d),
        _array(q),
        _array(k),
        _array(v),
        _array(out),
        lse.data_ptr(),
        d**-0.5 if scale is None else scale,
        softcap,
        pattern.causal,
        start,
        lists.address("begin", pattern.begin, b),
        _pattern(pattern.spans, pattern.blocks, s, lists),
        _subset("rows", pattern.rows, b, lists),
        _subset("columns", pattern.columns, b, lists),
    )
    if q.is_cuda:
        cuda_kv.prefill_attention(q, *arguments)
    else:
        with core_errors():
            _C.prefill_attention(*arguments)
    return out, lse


def _array(x: Tensor) -> tuple[int, int, int, int]:
    steps = x.stride()
    return x.data_ptr(), steps[0], steps[1], steps[2]


def _pattern(
    spans: Spans | None, blocks: Blocks | None, tokens: int, lists: _Lists
) -> tuple[int, int, int, int, int, int, int]:
    """Heads, addresses of sink and window, size of blocks, their addresses and width."""
    heads = 1
    if spans is not None:
        heads = spans.window.numel()
    elif blocks is not None:
        heads = blocks.offsets.shape[0]
    sink = window = offsets = columns = size = width = 0
    if spans is not None:
        sink = lists.address("spans.sink", spans.sink, heads)
        window = lists.address("spans.window", spans.window, heads)
    if blocks is not None:
        size, width = blocks.size, blocks.columns.shape[-1]
        if size < 1:
            raise TamisValueError(
                f"prefill_attention: blocks.size: got {size}, wanted 1 token or more."
            )
        each = -(-tokens // size) + 1
        offsets = lists.address("blocks.offsets", blocks.offsets, heads * each)
        columns = lists.address("blocks.columns", blocks.columns, heads * width)
    return heads, sink, window, size, offsets, columns, width


def _subset(name: str, x: Subset | None, b: int, lists: _Lists) -> tuple[int, int, int]:
    if x is None:
        return 0, 0, 0
    width = x.index.shape[-1]
    index = lists.address(name, x.index, b * width)
    return index, width, lists.address(f"{name}.count", x.count, b)


class _Lists:
    """Addresses of lists on one device, which live until the call is over."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.held = device, list[Tensor]()

    def address(self, name: str, x: Tensor | None, size: int) -> int:
        """0 for none; an empty one still has an address."""
        if x is None:
            return 0
        if x.dtype != torch.int32 or x.device != self.device or x.numel() != size:
            raise TamisValueError(
                f"prefill_attention: {name}: got {x.dtype} of shape {list(x.shape)} on {x.device}, "
                f"wanted torch.int32 with {size} elements on {self.device}."
            )
        some = x.contiguous() if size else torch.zeros(1, dtype=torch.int32, device=self.device)
        self.held.append(some)
        return some.data_ptr()

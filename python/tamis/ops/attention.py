"""sparse_attention: attention of a few query rows over segments of a KV cache, read as stored.

A segment is memory, dense, ``kv_page`` records or keys as a product, and which of its tokens count.
Several segments are merged exactly, by the logarithm of their sums: a quantized past and its dense
tail, or two spans of one memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from tamis import _C
from tamis.errors import TamisValueError
from tamis.ops import chosen, cuda_kv
from tamis.ops.kv_quantize import float_code, kv_unpack, rows_of
from tamis.ops.plain_attention import has_kernel, plain_attention, say_once
from tamis.ops.tensors import by_16_bytes

__all__ = [
    "ALL",
    "DenseSegment",
    "Lists",
    "LowRankSegment",
    "PageSegment",
    "attention",
    "key_turns",
    "merge_lse",
    "sparse_attention",
]


@dataclass(frozen=True)
class Lists:
    """Which tokens of a segment count; all of them where nothing is said.

    A unit is a page of a packed segment, a token of the others.

    Attributes:
        index: Units to read, [b, g, k] int32.
        count: How many of them, [b, g] int32; without ``index``, how many units from the first.
        begin: First token that counts, [b, g] int32.
        end: One past the last token that counts, [b, g] int32.
        bias: Added to the scaled scores, [b, g, tokens] float32.
        choice: Tokens that the call chooses before it reads them, in place of ``index`` and ``count``.
    """

    index: Tensor | None = None
    count: Tensor | None = None
    begin: Tensor | None = None
    end: Tensor | None = None
    bias: Tensor | None = None
    choice: chosen.Choice | None = None


ALL = Lists()


@dataclass(frozen=True)
class DenseSegment:
    """Keys and values [b, g, tokens, d] of one float dtype."""

    keys: Tensor
    values: Tensor
    lists: Lists = field(default=ALL)

    @property
    def tokens(self) -> int:
        """Slots per head."""
        return self.keys.shape[2]


@dataclass(frozen=True)
class PageSegment:
    """Records [b, g, pages, nbytes] uint8, those of a head contiguous."""

    records: Tensor
    layout: _C.KvPageLayout
    lists: Lists = field(default=ALL)

    @property
    def tokens(self) -> int:
        """Slots per head."""
        return self.records.shape[2] * self.layout.tokens


@dataclass(frozen=True)
class LowRankSegment:
    """Keys that are a product of few columns before they turn, and dense values.

    Key t of head j is ``coordinates[t] @ basis[j]``, turned to place t. On a CUDA device listed tokens
    are made dense first (fastest where the rank is a multiple of 8); a list with ``begin`` ascends there.

    Attributes:
        coordinates: [b, tokens, r], the same for all KV heads.
        basis: [b, g, r, d] of the same dtype.
        values: [b, g, tokens, d] of the same dtype.
        turns: Of ``key_turns``, for at least as many tokens.
        lists: Which tokens count.
    """

    coordinates: Tensor
    basis: Tensor
    values: Tensor
    turns: Tensor
    lists: Lists = field(default=ALL)

    @property
    def tokens(self) -> int:
        """Slots per head."""
        return self.values.shape[2]


Segment = DenseSegment | PageSegment | LowRankSegment

_FINE = 64  # kTurnFine


def key_turns(
    frequencies: Tensor,
    tokens: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Tensor:
    """Cosines and sines [64 + tokens / 64 rounded up, 2, pairs] f32 that turn keys to places below ``tokens``.

    An angle is that of a place's remainder by 64, in the first rows, and that of the rest.

    Args:
        frequencies: [pairs], radians a token.
        tokens: How many places.
        device: Where the table is to lie.
    """
    return _turns(tuple(frequencies.tolist()), -(-tokens // _FINE), device)


@lru_cache(maxsize=4)  # the layers of a model share one
def _turns(frequencies: tuple[float, ...], coarse: int, device: torch.device) -> Tensor:
    places = torch.cat([torch.arange(_FINE), torch.arange(coarse) * _FINE]).double()
    angle = places.unsqueeze(1) * torch.tensor(frequencies, dtype=torch.double)
    return torch.stack([angle.cos(), angle.sin()], 1).float().to(device)


def sparse_attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Output [b, h, n, d] in q's dtype and the logarithm of its weights' sum [b, h, n] f32.

    Every row of q sees every token that the segments name, so n > 1 is for several new tokens over
    a past that they all see. A row that sees nothing gets 0 and -inf.

    Args:
        q: [b, h, n, d] float32, float16 or bfloat16 on the CPU or a CUDA device (see
            ``tamis.kernels()`` for what it takes there: other dense dtypes and head sizes go to torch's
            operators, with one warning), h a multiple of the KV heads.
        segments: What to read; at least one.
        scale: Of the scores; 1 / sqrt(d) by default.
        softcap: c of c * tanh(score / c); 0 for none.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: Shapes disagree, or an index lies outside its segment (on a CUDA device,
            where indices are not read here, the nearest unit is taken).
        NotImplementedError: No CUDA kernel takes these segments.
    """
    lse = torch.empty(q.shape[:3], device=q.device)
    return _attend(q, segments, scale, softcap, lse), lse


def _attend(
    q: Tensor, segments: Sequence[Segment], scale: float | None, softcap: float, lse: Tensor | None
) -> Tensor:
    """The output of ``sparse_attention``; lse [b, h, n] is written where it is wanted."""
    code = float_code("sparse_attention", q, cuda=True)
    b, h, n, d = q.shape
    g = _kv_heads(segments)
    if h % g != 0:
        raise TamisValueError(
            f"sparse_attention: q: got {h} heads, wanted a multiple of the {g} KV heads."
        )
    held: list[Tensor] = []  # alive until the call is over
    shape = b, g, d
    rows = q.contiguous()  # [b, g, h / g * n, d] of the same bytes
    what = code, (b, g, h // g * n, d)
    scale = d**-0.5 if scale is None else scale
    if q.is_cuda:
        rows = by_16_bytes(rows)
        out = torch.empty_like(rows)
        lse = torch.empty(b, h, n, device=q.device) if lse is None else lse
        choice = segments[0].lists.choice
        if choice is not None and len(segments) == 1:
            alone = _segment(replace(segments[0], lists=ALL), shape, held, q.device)
            by_head = rows.view(what[1])
            if chosen.attend(what, by_head, out, lse, (scale, softcap), alone, choice):
                return out
    listed = [_listed(s, q) for s in segments]
    dense = [_dense(s, shape, held, q) if q.is_cuda else s for s in listed]
    if q.is_cuda and not all(_has_kernel(q, s) for s in dense):
        return _by_torch(q, dense, scale, softcap, lse)
    parts = [_segment(s, shape, held, q.device) for s in dense]
    if q.is_cuda and lse is not None:
        cuda_kv.sparse_attention(what, rows, out, lse, scale, softcap, parts)
        return out
    out = torch.empty_like(rows)
    sums = 0 if lse is None else lse.data_ptr()
    _C.sparse_attention(*what, rows.data_ptr(), out.data_ptr(), sums, scale, softcap, parts)
    return out


def attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """The output [b, h, n, d] of ``sparse_attention`` alone, by torch's SDPA where ``left_to_torch``."""
    s = segments[0] if left_to_torch(q, segments, softcap) else None
    if isinstance(s, DenseSegment):
        return functional.scaled_dot_product_attention(
            q, s.keys, s.values, scale=scale, enable_gqa=True
        )
    return _attend(q, segments, scale, softcap, None)


def left_to_torch(q: Tensor, segments: Sequence[Segment], softcap: float) -> bool:
    """Whether torch's SDPA is the faster kernel.

    It is on a CUDA device, for all tokens of dense keys and values (12 to 23 % on H100 and H200;
    bench/results/gpu.md).
    """
    if not q.is_cuda or softcap or len(segments) != 1:
        return False
    s = segments[0]
    return (
        isinstance(s, DenseSegment) and s.lists is ALL and s.tokens > 0 and s.keys.dtype == q.dtype
    )


def merge_lse(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint sets of tokens, from the output and lse of each.

    Args:
        parts: Output [b, h, n, d] and lse [b, h, n] of each set, as ``sparse_attention`` and
            ``prefill_attention`` return them.
    """
    lse = torch.stack([each for _, each in parts])
    total = torch.logsumexp(lse, 0)
    weight = (lse - total).exp().nan_to_num_(0.0).unsqueeze(-1)
    outs = torch.stack([out.float() for out, _ in parts])
    return (weight * outs).sum(0).to(parts[0][0].dtype), total


def _has_kernel(q: Tensor, s: Segment) -> bool:
    if isinstance(s, PageSegment):
        return s.layout.head_dim in (64, 128)
    return not isinstance(s, DenseSegment) or has_kernel(q, s.keys)


def _of_tokens(a: Lists, page: int) -> Lists:
    """Lists of pages as lists of their tokens."""
    index, count = a.index, a.count
    if index is not None:
        steps = torch.arange(page, dtype=torch.int32, device=index.device)
        index = (index.unsqueeze(-1) * page + steps).flatten(-2)
    return replace(a, index=index, count=None if count is None else count * page)


def _by_torch(
    q: Tensor, segments: Sequence[Segment], scale: float, softcap: float, lse: Tensor | None
) -> Tensor:
    """``_attend`` with what no CUDA kernel takes by torch's operators; pages are made dense for them."""
    parts = []
    for s in segments:
        if _has_kernel(q, s):
            parts.append(sparse_attention(q, [s], scale=scale, softcap=softcap))
            continue
        dense = s
        if isinstance(s, PageSegment):
            keys, values = kv_unpack(s.records, s.layout)
            dense = DenseSegment(keys, values, _of_tokens(s.lists, s.layout.tokens))
        if not isinstance(dense, DenseSegment):
            raise AssertionError("keys of low rank are dense by now")
        say_once(dense.keys.dtype, dense.keys.shape[3])
        parts.append(plain_attention(q, dense.keys, dense.values, dense.lists, scale, softcap))
    out, total = merge_lse(parts) if len(parts) > 1 else parts[0]
    if lse is not None:
        lse.copy_(total)
    return out


def _kv_heads(segments: Sequence[Segment]) -> int:
    if not segments:
        raise TamisValueError("sparse_attention: segments: got none, wanted at least one.")
    first = segments[0]
    if isinstance(first, PageSegment):
        return first.records.shape[1]
    return (first.keys if isinstance(first, DenseSegment) else first.values).shape[1]


def _segment(
    s: Segment, shape: tuple[int, int, int], held: list[Tensor], device: torch.device
) -> _C.KvSegment:
    b, g, d = shape
    lists = _lists(s.lists, b * g, s.tokens, held, device)
    for x in _memory(s):
        if x.device != device:
            raise TamisValueError(
                f"sparse_attention: segments: got memory on {x.device}, wanted q's {device}."
            )
    if isinstance(s, PageSegment):
        if s.records.shape != (b, g, s.records.shape[2], s.layout.nbytes):
            raise _bad_shape("records", s.records, [b, g, "pages", s.layout.nbytes])
        step = s.records.stride()
        return _C.kv_page_segment(
            s.layout, s.records.shape[2], s.records.data_ptr(), (step[0], step[1]), lists
        )
    if isinstance(s, LowRankSegment):
        return _low_rank(s, shape, lists, held)
    if s.keys.shape != (b, g, s.tokens, d) or s.values.shape != s.keys.shape:
        raise _bad_shape("keys", s.keys, [b, g, "tokens", d])
    keys, values = rows_of(s.keys), rows_of(s.values)
    if keys.is_cuda:
        keys, values = by_16_bytes(keys), by_16_bytes(values)
    held += [keys, values]
    k, v = keys.stride(), values.stride()
    return _C.kv_dense_segment(
        float_code("sparse_attention", keys, cuda=True),
        s.tokens,
        keys.data_ptr(),
        (k[0], k[1], k[2]),
        values.data_ptr(),
        (v[0], v[1], v[2]),
        lists,
    )


def _memory(s: Segment) -> list[Tensor]:
    if isinstance(s, PageSegment):
        return [s.records]
    if isinstance(s, LowRankSegment):
        return [s.coordinates, s.basis, s.values, s.turns]
    return [s.keys, s.values]


def _low_rank(
    s: LowRankSegment, shape: tuple[int, int, int], lists: _C.KvLists, held: list[Tensor]
) -> _C.KvSegment:
    b, g, d = shape
    rank, pairs = s.basis.shape[-2], s.turns.shape[-1]
    rows = _FINE + -(-s.tokens // _FINE)
    for name, x, wanted in (
        ("values", s.values, (b, g, s.tokens, d)),
        ("coordinates", s.coordinates, (b, s.tokens, rank)),
        ("basis", s.basis, (b, g, rank, d)),
        ("turns", s.turns, (max(rows, s.turns.shape[0]), 2, pairs)),
    ):
        if x.shape != wanted:
            raise _bad_shape(name, x, list(wanted))
    if s.turns.dtype != torch.float32 or not s.values.dtype == s.basis.dtype == s.coordinates.dtype:
        raise TamisValueError(
            f"sparse_attention: coordinates, basis, values, turns: got {s.coordinates.dtype}, "
            f"{s.basis.dtype}, {s.values.dtype} and {s.turns.dtype}, wanted one dtype and float32."
        )
    values, coordinates = rows_of(s.values), rows_of(s.coordinates)
    if values.is_cuda:
        values, coordinates = by_16_bytes(values), by_16_bytes(coordinates)
    basis, turns = s.basis.contiguous(), s.turns.contiguous()
    held += [values, coordinates, basis, turns]
    u, v = coordinates.stride(), values.stride()
    return _C.kv_lowrank_segment(
        float_code("sparse_attention", values, cuda=True),
        s.tokens,
        coordinates.data_ptr(),
        (u[0], u[1]),
        rank,
        basis.data_ptr(),
        pairs,
        turns.data_ptr(),
        values.data_ptr(),
        (v[0], v[1], v[2]),
        lists,
    )


def _listed(s: Segment, q: Tensor) -> Segment:
    """The segment itself, or with a list where tokens are to be chosen."""
    choice = s.lists.choice
    if choice is None:
        return s
    index, count = choice.lists(q)
    return replace(s, lists=replace(s.lists, index=index, count=count, choice=None))


def _dense(s: Segment, shape: tuple[int, int, int], held: list[Tensor], q: Tensor) -> Segment:
    """The segment itself, or the listed tokens of one of low rank as dense ones, on a CUDA device."""
    if not isinstance(s, LowRankSegment):
        return s
    b, g, d = shape
    lists, device = s.lists, q.device
    if lists.end is not None or lists.bias is not None:
        raise NotImplementedError(
            "sparse_attention: segments: on CUDA keys of low rank take no end and no bias; use the CPU."
        )
    if rest := -s.basis.shape[2] % 8:  # whose kernel takes eight columns at a time
        coordinates = functional.pad(s.coordinates, (0, rest))
        basis = functional.pad(s.basis, (0, 0, 0, rest))
        s = LowRankSegment(coordinates, basis, s.values, s.turns, lists)
    index = lists.index
    if index is None:
        every = torch.arange(s.tokens, dtype=torch.int32, device=device)
        index = every.expand(b, g, -1).contiguous()
    keys, values = s.values.new_empty(2, b, g, index.shape[2], d)
    listed = _lists(Lists(index=index), b * g, s.tokens, held, device)
    cuda_kv.kv_rebuild(shape, _low_rank(s, shape, listed, held), keys, values)
    begin = None
    if lists.begin is not None:
        begin = (index < lists.begin.unsqueeze(-1)).sum(-1, dtype=torch.int32)
    return DenseSegment(keys, values, Lists(begin=begin, end=lists.count))


def _lists(
    a: Lists, heads: int, tokens: int, held: list[Tensor], device: torch.device
) -> _C.KvLists:
    if a is ALL:
        return _NO_LISTS
    width = 0 if a.index is None else a.index.shape[-1]
    return _C.KvLists(
        _address("index", a.index, torch.int32, heads * width, held, device),
        width,
        _address("count", a.count, torch.int32, heads, held, device),
        _address("begin", a.begin, torch.int32, heads, held, device),
        _address("end", a.end, torch.int32, heads, held, device),
        _address("bias", a.bias, torch.float32, heads * tokens, held, device),
    )


_NO_LISTS = _C.KvLists()


def _address(
    name: str,
    x: Tensor | None,
    dtype: torch.dtype,
    size: int,
    held: list[Tensor],
    device: torch.device,
) -> int:
    if x is None:
        return 0
    if x.dtype != dtype or x.device != device or x.numel() != size:
        raise TamisValueError(
            f"sparse_attention: {name}: got {x.dtype} of shape {list(x.shape)} on {x.device}, "
            f"wanted {dtype} with {size} elements on {device}."
        )
    held.append(x.contiguous())
    return held[-1].data_ptr()


def _bad_shape(name: str, x: Tensor, wanted: list[object]) -> TamisValueError:
    return TamisValueError(
        f"sparse_attention: {name}: got shape {list(x.shape)}, wanted {wanted} of q's b and d."
    )

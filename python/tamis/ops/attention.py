"""sparse_attention: attention of a few query rows over segments of a KV cache, read as stored.

A segment is memory, dense or ``kv_page`` records, and which of its tokens count. Several segments
are merged exactly, by the logarithm of their sums: a quantized past and its dense tail, or two spans
of one memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from tamis import _C
from tamis.errors import TamisValueError
from tamis.ops import cuda_kv
from tamis.ops.kv_quantize import float_code, rows_of

__all__ = [
    "ALL",
    "DenseSegment",
    "Lists",
    "PageSegment",
    "attention",
    "merge_lse",
    "sparse_attention",
]


@dataclass(frozen=True)
class Lists:
    """Which tokens of a segment count; all of them where nothing is said.

    A unit is a token of a dense segment, a page of a packed one.

    Attributes:
        index: Units to read, [b, g, k] int32.
        count: How many of them, [b, g] int32; without ``index``, how many units from the first.
        begin: First token that counts, [b, g] int32.
        end: One past the last token that counts, [b, g] int32.
        bias: Added to the scaled scores, [b, g, tokens] float32.
    """

    index: Tensor | None = None
    count: Tensor | None = None
    begin: Tensor | None = None
    end: Tensor | None = None
    bias: Tensor | None = None


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


Segment = DenseSegment | PageSegment


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
            ``tamis.kernels()`` for what it takes there), h a multiple of the KV heads.
        segments: What to read; at least one.
        scale: Of the scores; 1 / sqrt(d) by default.
        softcap: c of c * tanh(score / c); 0 for none.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: Shapes disagree, or an index lies outside its segment (on a CUDA device,
            where indices are not read here, the nearest unit is taken).
        NotImplementedError: No CUDA kernel takes these segments.
    """
    code = float_code("sparse_attention", q, cuda=True)
    b, h, n, d = q.shape
    g = _kv_heads(segments)
    if h % g != 0:
        raise TamisValueError(
            f"sparse_attention: q: got {h} heads, wanted a multiple of the {g} KV heads."
        )
    held: list[Tensor] = []  # alive until the call is over
    parts = [_segment(s, (b, g, d), held, q.device) for s in segments]
    rows = q.reshape(b, g, h // g * n, d).contiguous()
    if q.is_cuda:
        rows = _by_16_bytes(rows)
    out = torch.empty_like(rows)
    lse = torch.empty(b, h, n, device=q.device)
    scale = d**-0.5 if scale is None else scale
    if q.is_cuda:
        cuda_kv.sparse_attention(
            (code, (b, g, rows.shape[2], d)), rows, out, lse, scale, softcap, parts
        )
        return out.view(b, h, n, d), lse
    _C.sparse_attention(
        code,
        (b, g, rows.shape[2], d),
        rows.data_ptr(),
        out.data_ptr(),
        lse.data_ptr(),
        scale,
        softcap,
        parts,
    )
    return out.view(b, h, n, d), lse


def attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """The output of ``sparse_attention`` alone, by torch's SDPA where ``left_to_torch``."""
    s = segments[0] if left_to_torch(q, segments, softcap) else None
    if isinstance(s, DenseSegment):
        return functional.scaled_dot_product_attention(
            q, s.keys, s.values, scale=scale, enable_gqa=True
        )
    return sparse_attention(q, segments, scale=scale, softcap=softcap)[0]


def left_to_torch(q: Tensor, segments: Sequence[Segment], softcap: float) -> bool:
    """Whether torch's SDPA is the faster kernel.

    It is on a CUDA device, for all tokens of dense keys and values (12 to 23 % on H100 and H200;
    bench/RESULTS.md).
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


def _kv_heads(segments: Sequence[Segment]) -> int:
    if not segments:
        raise TamisValueError("sparse_attention: segments: got none, wanted at least one.")
    first = segments[0]
    return first.keys.shape[1] if isinstance(first, DenseSegment) else first.records.shape[1]


def _segment(
    s: Segment, shape: tuple[int, int, int], held: list[Tensor], device: torch.device
) -> _C.KvSegment:
    b, g, d = shape
    lists = _lists(s.lists, b * g, s.tokens, held, device)
    memory = [s.records] if isinstance(s, PageSegment) else [s.keys, s.values]
    if any(x.device != device for x in memory):
        raise TamisValueError(
            f"sparse_attention: segments: got memory on {memory[0].device}, wanted q's {device}."
        )
    if isinstance(s, PageSegment):
        if s.records.shape != (b, g, s.records.shape[2], s.layout.nbytes):
            raise _bad_shape("records", s.records, [b, g, "pages", s.layout.nbytes])
        step = s.records.stride()
        return _C.kv_page_segment(
            s.layout, s.records.shape[2], s.records.data_ptr(), (step[0], step[1]), lists
        )
    if s.keys.shape != (b, g, s.tokens, d) or s.values.shape != s.keys.shape:
        raise _bad_shape("keys", s.keys, [b, g, "tokens", d])
    keys, values = rows_of(s.keys), rows_of(s.values)
    if keys.is_cuda:
        keys, values = _by_16_bytes(keys), _by_16_bytes(values)
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


def _by_16_bytes(x: Tensor) -> Tensor:
    """X itself, or a copy, whose rows start at multiples of 16 bytes."""
    size = x.element_size()
    fits = x.data_ptr() % 16 == 0 and all(step * size % 16 == 0 for step in x.stride()[:-1])
    return x if fits else x.clone(memory_format=torch.contiguous_format)


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

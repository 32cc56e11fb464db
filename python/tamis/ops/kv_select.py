"""kv_select: which tokens of a KV cache a step reads, from summaries smaller than the keys.

``kv_estimate`` scores units (tokens or pages) for the queries of a step, ``kv_select`` takes the best
exactly, ``kv_mass`` sums the attention that tokens got from several queries; ``sparse_attention``
then reads what was chosen.
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

__all__ = [
    "KeyRows",
    "Labels",
    "PageBounds",
    "append_labels",
    "kv_choose",
    "kv_estimate",
    "kv_mass",
    "kv_select",
    "label_bytes",
    "label_channels",
]

LABEL_TOKENS = 16
"""Tokens of one ``kv_label`` record."""


@dataclass(frozen=True)
class KeyRows:
    """Keys, or means of pages, [b, g, units, d]: the score is their product with q."""

    keys: Tensor


@dataclass(frozen=True)
class PageBounds:
    """Smallest and largest key of each channel and page, [b, g, pages, 2, d].

    The score is the bound sum_c max(q_c low_c, q_c high_c) (Quest, arXiv:2406.10774, sec. 3.3).
    """

    bounds: Tensor
    page: int = 1
    """Tokens of a page, each of which ``kv_choose`` lists."""


@dataclass(frozen=True)
class Labels:
    """r channels of the keys in 4 bits, ``kv_label`` records [b, g, records, nbytes] uint8.

    The score is the product over those channels (Double Sparsity, arXiv:2408.07092, sec. 3).

    Attributes:
        records: What ``append_labels`` wrote, records of a head contiguous.
        channels: Which of the d channels, [g, r] int32.
        tokens: Labels that count, at most 16 a record.
    """

    records: Tensor
    channels: Tensor
    tokens: int


Units = KeyRows | PageBounds | Labels


def kv_estimate(
    q: Tensor,
    units: Units,
    *,
    scale: float | None = None,
    log_weight: bool = True,
    begin: Tensor | None = None,
) -> Tensor:
    """Score of each unit, [b, g, units] f32: the largest over the query rows of its KV head.

    Args:
        q: [b, h, n, d] float32, float16 or bfloat16 on the CPU or, up to 8 rows a KV head, a CUDA
            device; h a multiple of the KV heads.
        units: What is stored of them.
        scale: Of the scores; 1 / sqrt(d) by default.
        log_weight: Subtract the logarithm of the sum of exponentials of each row, so that rows
            compare as softmax weights do.
        begin: First unit that counts, [b, g] int32; those before get -inf.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: Shapes disagree.
    """
    code = float_code("kv_estimate", q, cuda=True)
    memory, (b, g, count) = units_of("kv_estimate", units, q)
    h, n, d = q.shape[1:]
    rows = q.reshape(b, g, h // g * n, d).contiguous()
    out = torch.empty(b, g, count, device=q.device)
    scale = d**-0.5 if scale is None else scale
    first = address_of("kv_estimate", "begin", begin, b * g, q.device)
    if q.is_cuda:
        what = (code, (b, g, rows.shape[2], d))
        cuda_kv.kv_estimate(what, rows, scale, memory[0], log_weight, first, out)
        return out
    with core_errors():
        _C.kv_estimate(
            code,
            (b, g, rows.shape[2], d),
            rows.data_ptr(),
            scale,
            memory[0],
            log_weight,
            first,
            out.data_ptr(),
        )
    return out


def kv_mass(
    q: Tensor,
    keys: Tensor,
    *,
    scale: float | None = None,
    positions: Tensor | None = None,
    begin: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention that each token got, [b, g, s] f32: summed over queries, averaged over a group's heads.

    Never holds more than 16 rows of scores. On CUDA two passes over tiles, the sums in a fixed order.

    Args:
        q: [b, h, n, d] float32, float16 or bfloat16 on the CPU or a CUDA device; each query sees the
            tokens up to its own. On CUDA d is at most 128 unless q and keys are both 16-bit, of one type.
        keys: [b, g, s, d].
        scale: Of the scores; 1 / sqrt(d) by default.
        positions: The queries' tokens, [n] int32, none below the one before; the last n by default.
        begin: First token that counts, [b, g] int32.
        out: Added to, contiguous f32; a new tensor by default.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: Shapes disagree.
    """
    code = float_code("kv_mass", q, cuda=True)
    memory, (b, g, s) = units_of("kv_mass", KeyRows(keys), q)
    h, n, d = q.shape[1:]
    if out is None:
        out = torch.zeros(b, g, s, device=q.device)
    elif (out.shape, out.dtype, out.device) != ((b, g, s), torch.float32, q.device) or (
        not out.is_contiguous()
    ):
        raise TamisValueError(
            f"kv_mass: out: got {out.dtype} of shape {list(out.shape)} on {out.device}, wanted "
            f"contiguous float32 of shape {[b, g, s]} on {q.device}."
        )
    rows = q.contiguous()
    shape = (b, g, h // g, n, d)
    scale = d**-0.5 if scale is None else scale
    lists = (
        address_of("kv_mass", "positions", positions, n, q.device),
        address_of("kv_mass", "begin", begin, b * g, q.device),
    )
    if q.is_cuda:
        cuda_kv.kv_mass((code, shape), rows, scale, memory[0], *lists, out.data_ptr())
    else:
        with core_errors():
            _C.kv_mass(code, shape, rows.data_ptr(), scale, memory[0], *lists, out.data_ptr())
    return out


def kv_select(
    scores: Tensor,
    k: int | Tensor | None = None,
    *,
    top_p: float = 0.0,
    sink: int = 0,
    recent: int = 0,
    page: int = 1,
    begin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ascending tokens [b, g, width] int32 of the best units, and how many of them count, [b, g] int32.

    Exact; ties go to the lower unit, NaN comes last.

    Args:
        scores: [b, g, units] f32 on the CPU or a CUDA device, larger is taken.
        k: Units per head, forced ones included; a tensor [b, g] int32 gives each head its own.
        top_p: Instead of k: the fewest units whose scores (not below 0) reach this share of all.
        sink: First units that are always taken.
        recent: Last units that are always taken.
        page: Tokens of a unit; each unit becomes as many tokens.
        begin: First unit that counts, [b, g] int32.

    Raises:
        TamisValueError: Neither k nor top_p is given, or one is out of range.
    """
    b, g, units = scores.shape
    if scores.dtype != torch.float32 or not (
        scores.is_cpu or cuda_kv.on_device("kv_select", scores)
    ):
        raise TamisValueError(
            f"kv_select: scores: got {scores.dtype} on {scores.device}, wanted float32 on cpu or "
            "cuda."
        )
    if (k is None) == (top_p <= 0.0):
        raise TamisValueError(
            f"kv_select: k, top_p: got {k} and {top_p}, wanted exactly one of them; pass k=None or "
            "top_p=0."
        )
    scores = scores.contiguous()
    index, count, budget = _lists("kv_select", (b, g, units), k, (sink, recent, page), scores)
    rest = (
        budget[0],
        budget[1],
        top_p,
        sink,
        recent,
        page,
        address_of("kv_select", "begin", begin, b * g, scores.device),
        index.data_ptr(),
        index.shape[2],
        count.data_ptr(),
    )
    if scores.is_cuda:
        cuda_kv.kv_select(scores, *rest)
    else:
        with core_errors():
            _C.kv_select(b * g, units, scores.data_ptr(), *rest)
    return index, count


def kv_choose(  # noqa: PLR0913
    q: Tensor,
    units: Units,
    k: int | Tensor,
    *,
    scale: float | None = None,
    by_row: bool = False,
    sink: int = 0,
    recent: int = 0,
    begin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens of the best units by their summaries: ``kv_select`` of ``kv_estimate`` in one call.

    By softmax weight, pages by their bounds. On the CPU scores stay in its caches. On a GPU of compute
    capability 9.0 one launch chooses tokens by labels of up to 32 channels, up to 131072 of them and 4
    query rows a KV head, or 81920 and 8. Two launches or more elsewhere. A GPU adds up rows in another
    order, so that units whose scores differ in the last bits alone may change places.

    Args:
        q: As of ``kv_estimate``.
        units: What is stored of them.
        k: Units per head, forced ones included; a tensor [b, g] int32 gives each head its own.
        scale: Of the scores; 1 / sqrt(d) by default.
        by_row: Every query row takes its own k units, and a KV head the union of its rows' (Quest,
            arXiv:2406.10774, chooses for each query head).
        sink: First units that are always taken.
        recent: Last units that are always taken.
        begin: First unit that counts, [b, g] int32.

    Returns:
        Ascending tokens [b, g, width] int32, and how many of them count, [b, g] int32.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: Shapes disagree, or a count is below 0.
    """
    if not q.is_cpu:
        return _choose_cuda(q, units, k, (sink, recent), begin, scale=scale, by_row=by_row)
    code = float_code("kv_choose", q)
    memory, (b, g, count) = units_of("kv_choose", units, q)
    h, n, d = q.shape[1:]
    rows = q.contiguous()  # [b, g, h / g * n, d] of the same bytes
    page = units.page if isinstance(units, PageBounds) else 1
    forced = sink, recent, page
    each = h // g * n if by_row else 1
    index, counts, budget = _lists("kv_choose", (b, g, count), k, forced, q, each)
    with core_errors():
        _C.kv_choose(
            code,
            (b, g, h // g * n, d),
            rows.data_ptr(),
            d**-0.5 if scale is None else scale,
            memory[0],
            not isinstance(units, PageBounds),
            by_row,
            *budget,
            *forced,
            address_of("kv_choose", "begin", begin, b * g, q.device),
            index.data_ptr(),
            index.shape[2],
            counts.data_ptr(),
        )
    return index, counts


def _choose_cuda(
    q: Tensor,
    units: Units,
    k: int | Tensor,
    forced: tuple[int, int],
    begin: Tensor | None,
    *,
    scale: float | None,
    by_row: bool,
) -> tuple[Tensor, Tensor]:
    sink, recent = forced
    page = units.page if isinstance(units, PageBounds) else 1
    if by_row or isinstance(units, Labels):
        code = float_code("kv_choose", q, cuda=True)
        memory, (b, g, tokens) = units_of("kv_choose", units, q)
        h, n, d = q.shape[1:]
        rows = q.reshape(b, g, h // g * n, d).contiguous()
        each = rows.shape[2] if by_row else 1
        index, count, budget = _lists("kv_choose", (b, g, tokens), k, (*forced, page), q, each)
        what = code, (b, g, rows.shape[2], d)
        begins = address_of("kv_choose", "begin", begin, b * g, q.device)
        lists = begins, index.data_ptr(), index.shape[2], count.data_ptr()
        factor = d**-0.5 if scale is None else scale
        if cuda_kv.kv_choose(what, rows, factor, memory[0], by_row, *budget, *forced, page, *lists):
            return index, count
    scores = kv_estimate(
        q, units, scale=scale, log_weight=not isinstance(units, PageBounds), begin=begin
    )
    return kv_select(scores, k, sink=sink, recent=recent, page=page, begin=begin)


def _lists(
    function: str,
    shape: tuple[int, int, int],
    k: int | Tensor | None,
    forced: tuple[int, int, int],
    like: Tensor,
    lists: int = 1,
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Room for lists and their lengths; the largest budget, and the address of each head's or 0.

    forced: sink, recent and page. lists: how many a head's may be the union of.
    """
    b, g, units = shape
    sink, recent, page = forced
    budget, most = None, 0
    if isinstance(k, Tensor):
        # The largest of them stands on the device, which nobody waits for.
        budget, most = k, units if k.is_cuda else int(k.max()) if k.numel() else 0
    elif k is not None:
        most = k
    width = units if k is None else min(units, lists * max(most, sink + recent))
    index = torch.empty(b, g, max(width, 0) * page, dtype=torch.int32, device=like.device)
    count = torch.empty(b, g, dtype=torch.int32, device=like.device)
    return index, count, (most, address_of(function, "k", budget, b * g, like.device))


def label_channels(wanted: int) -> int:
    """The number of channels that ``kv_label`` has which is next to ``wanted``, not below it."""
    return max(8, (wanted + 7) // 8 * 8)


def label_bytes(channels: int) -> int:
    """Bytes of a ``kv_label`` record: 16 tokens of r channels in 4 bits, f16 scales and minima."""
    size: int = _C.kv_label_bytes(channels)
    return size


def append_labels(records: Tensor, keys: Tensor, channels: Tensor, first: int) -> None:
    """Writes the labels of keys [b, g, n, d], tokens ``first`` and on, into records.

    Args:
        records: [b, g, records, nbytes] uint8, records of a head contiguous, enough of them.
        keys: float32, float16 or bfloat16 on the CPU or a CUDA device.
        channels: [g, r] int32, r a multiple of 8, at most 128.
        first: Tokens labelled before.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: Shapes disagree.
    """
    code = float_code("append_labels", keys, cuda=True)
    b, g, n, d = keys.shape
    r = channels.shape[1]
    need = -(-(first + n) // LABEL_TOKENS)
    wanted = (b, g, max(need, records.shape[2]), label_bytes(r))
    if records.shape != wanted or records.dtype != torch.uint8 or records.device != keys.device:
        raise TamisValueError(
            f"append_labels: records: got {records.dtype} of shape {list(records.shape)}, wanted "
            f"uint8 of shape {[b, g, f'at least {need}', wanted[3]]}."
        )
    keys = rows_of(keys)
    steps = keys.stride()
    rest = (
        (b, g, d),
        keys.data_ptr(),
        (steps[0], steps[1], steps[2]),
        address_of("append_labels", "channels", channels, g * r, keys.device),
        first,
        n,
        records.data_ptr(),
        (records.stride(0), records.stride(1)),
    )
    if keys.is_cuda:
        cuda_kv.append_labels(keys, r, code, *rest)
    else:
        with core_errors():
            _C.kv_append_labels(r, code, *rest)


def units_of(
    function: str, u: Units, q: Tensor
) -> tuple[tuple[_C.KvUnits, Tensor], tuple[int, int, int]]:
    """The core's view of units with the tensor that it borrows, and [b, g, units].

    Raises:
        TamisValueError: Shapes or devices disagree.
    """
    b, h, _, d = q.shape
    wanted: tuple[int, ...]
    if isinstance(u, Labels):
        g, r = u.channels.shape
        x, wanted = u.records, (b, g, u.records.shape[2], label_bytes(r))
        units = u.tokens
    elif isinstance(u, PageBounds):
        x = rows_of(u.bounds)
        g, units = x.shape[1], x.shape[2]
        wanted = (b, g, units, 2, d)
        if x.stride(3) != d:
            x = x.contiguous()
    else:
        x = rows_of(u.keys)
        g, units = x.shape[1], x.shape[2]
        wanted = (b, g, units, d)
    if x.shape != wanted or h % g != 0:
        raise TamisValueError(
            f"{function}: q, units: got shapes {list(q.shape)} and {list(x.shape)}, wanted "
            f"[b, h, n, d] and {list(wanted)} with h a multiple of {g}."
        )
    if x.device != q.device:
        raise TamisValueError(f"{function}: units: got {x.device}, wanted q's {q.device}.")
    steps = x.stride()
    if isinstance(u, Labels):
        if not 0 <= units <= LABEL_TOKENS * x.shape[2]:
            raise TamisValueError(
                f"{function}: tokens: got {units}, wanted 0 to {LABEL_TOKENS * x.shape[2]} for "
                f"{x.shape[2]} records."
            )
        ids = address_of(function, "channels", u.channels, g * r, q.device)
        return (_C.kv_label_units(r, units, x.data_ptr(), (steps[0], steps[1]), ids), x), (
            b,
            g,
            units,
        )
    made = _C.kv_row_units(
        isinstance(u, PageBounds),
        float_code(function, x, cuda=True),
        units,
        x.data_ptr(),
        (steps[0], steps[1], steps[2]),
    )
    return (made, x), (b, g, units)


def address_of(function: str, name: str, x: Tensor | None, size: int, device: torch.device) -> int:
    """Address of a list that its owner keeps alive, or 0.

    Raises:
        TamisValueError: It is no contiguous int32 of that size on that device.
    """
    if x is None:
        return 0
    if x.dtype != torch.int32 or x.device != device or x.numel() != size or not x.is_contiguous():
        raise TamisValueError(
            f"{function}: {name}: got {x.dtype} of shape {list(x.shape)} on {x.device}, wanted "
            f"contiguous torch.int32 with {size} elements on {device}."
        )
    return x.data_ptr()

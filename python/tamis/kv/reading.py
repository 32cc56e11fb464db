"""How one step reads a store: chosen tokens or all of them, by our kernels or by torch's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tamis.kv import packed
from tamis.kv.limits import Limits
from tamis.kv.rows import indices
from tamis.kv.selection import Selection
from tamis.ops import cuda_cost
from tamis.ops.attention import (
    ALL,
    DenseSegment,
    Lists,
    Segment,
    attention,
    left_to_torch,
    sparse_attention,
)

if TYPE_CHECKING:
    from tamis.kv.kv_store import KvStore


class Way(Enum):
    """What was read, and why."""

    ALL = "all tokens held"
    CHOSEN = "chosen tokens"
    TOO_FEW = "all tokens held: choosing is measured faster from {choose_bytes} bytes left out"
    SDPA = "all tokens held, by torch's SDPA: measured faster below {below} tokens"
    CUDA = "all tokens held, by torch's SDPA: measured faster on CUDA"


@dataclass(frozen=True)
class Asked:
    """A step's queries and what goes with them.

    Attributes:
        q: [b, h, n, d].
        scale: Of the scores.
        softcap: Of the scores; 0 for none.
        pad: Padded tokens at the start of each sequence, [b].
    """

    q: Tensor
    scale: float
    softcap: float
    pad: Tensor | None


def attend(store: KvStore, asked: Asked) -> Tensor:
    """Attention [b, h, n, d] over what the step reads."""
    plain = asked.pad is None and not asked.softcap and asked.q.shape[2] == 1
    if not plain or not _short(store, asked.q):
        if store.tier is not None:
            return attend_lse(store, asked)[0]
        segments, _ = _segments(store, asked)
        if left_to_torch(asked.q, segments, asked.softcap):
            store.way = Way.CUDA
        return attention(asked.q, segments, scale=asked.scale, softcap=asked.softcap)
    store.way = Way.SDPA
    if store.selection is not None:
        store.selection.pass_over()
    b, h, n, d = asked.q.shape
    keys, values = store.rows["keys"].view, store.rows["values"].view
    rows = asked.q.reshape(b, keys.shape[1], -1, d)  # a group's heads, as rows of their KV head
    out: Tensor = scaled_dot_product_attention(rows, keys, values, scale=asked.scale)
    return out.view(b, h, n, d)


def attend_lse(store: KvStore, asked: Asked) -> tuple[Tensor, Tensor]:
    """The same by our kernels, and the logarithm of its weights' sum [b, h, n] f32."""
    segments, first = _segments(store, asked)
    if store.tier is None:
        return sparse_attention(asked.q, segments, scale=asked.scale, softcap=asked.softcap)
    store.tier.first = first
    return store.tier.attend(asked.q, segments, asked.scale, asked.softcap)


def explain(store: KvStore) -> str:
    """What the store's latest step read, and why; "" before one."""
    if store.way is None:
        return ""
    if store.limits is None:
        return store.way.value
    below = store.limits.sdpa_below(store.rows["keys"].buffer.element_size())
    return store.way.value.format(below=below, choose_bytes=store.choose_bytes)


def fetch_ahead(store: KvStore, q: Tensor) -> None:
    """Starts to bring what a step with queries like q [b, h, 1, d] would read; returns at once."""
    tier, selection = store.tier, store.selection
    if tier is None or tier.pool is None or selection is None or selection.window is not None:
        return

    def fetch() -> None:
        keys, values = store.rows["keys"].view, store.rows["values"].view
        tier.bring_ahead(selection.segments(q, keys, values, tier.first) or [], q.device)

    tier.start(fetch, [q, *(rows.buffer for rows in selection.rows.values())])


def _limits(store: KvStore) -> Limits | None:
    """What is measured of stores like this one: in memory."""
    return store.limits if store.tier is None else None


def _choose_bytes(store: KvStore, selection: Selection, limits: Limits, q: Tensor) -> int:
    """Bytes that choosing must leave out, on the processor or the CUDA device that holds the store."""
    keys = store.rows["keys"].view
    if not keys.is_cuda:
        return limits.choose_bytes
    return cuda_cost.choose_bytes(keys.get_device(), at_once=selection.at_once(q, keys))


def _short(store: KvStore, q: Tensor) -> bool:
    """Whether SDPA reads all that is held faster on the processor."""
    limits, keys = _limits(store), store.rows["keys"]
    if limits is None or keys.buffer.is_cuda:
        return False
    if keys.count >= limits.sdpa_below(keys.buffer.element_size()):
        return False
    chooses = store.selection is not None and _pays(store, store.selection, q)
    return keys.count == store.tokens and not chooses


def _pays(store: KvStore, selection: Selection, q: Tensor) -> bool:
    """Whether choosing tokens leaves out enough to be worth its own time."""
    limits, keys = _limits(store), store.rows["keys"].buffer
    if limits is None:
        return True
    b, g, _, d = keys.shape
    size = 2 * b * g * d * keys.element_size()
    store.choose_bytes = _choose_bytes(store, selection, limits, q)
    return selection.left_out(store.tokens) * size >= store.choose_bytes


def _segments(store: KvStore, asked: Asked) -> tuple[list[Segment], Tensor | None]:
    """What a step reads, and the first token of each sequence that is not padding."""
    first = store.first(asked.pad)
    segments = _chosen(store, asked, first)
    if segments is None:
        segments = _all(store, first)
    if store.past is not None:
        segments += store.past.segments(asked.q, asked.scale)
    return segments, first


def _chosen(store: KvStore, asked: Asked, first: Tensor | None) -> list[Segment] | None:
    """What the recipe chooses for a step; None where it reads everything."""
    q = asked.q
    store.way = Way.ALL
    if store.selection is None or q.shape[2] != 1:
        return None
    if not _pays(store, store.selection, q):
        store.selection.pass_over()
        store.way = Way.TOO_FEW
        return None
    keys, values = store.rows["keys"].view, store.rows["values"].view
    segments = store.selection.segments(
        q, keys, values, first, scale=asked.scale, late=store.tier is None
    )
    store.way = Way.ALL if segments is None else Way.CHOSEN
    return segments


def _all(store: KvStore, first: Tensor | None) -> list[Segment]:
    paged, how = store.paged_tokens, store.recipe.quantize
    keys, values = store.rows["keys"].view, store.rows["values"].view
    tail = ALL if first is None else Lists(begin=indices((first - paged).clamp(min=0)))
    segments: list[Segment] = [DenseSegment(keys, values, tail)]
    if paged and how is not None:
        segments.insert(0, packed.segment(store.rows, how, first))
    return segments

"""What a KV-cache method is made of: how tokens are stored, which stay, which are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from tamis.policy.kv_layout import Layout

EVERY_QUERY = -1
"""Value of ``Evict.queries``: the attention of all queries so far counts."""


@dataclass(frozen=True)
class KvContext:
    """The tokens of one layer's store as scores see them.

    Attributes:
        keys: [b, g, s, d], after rotary embedding.
        positions: Place of each token in its sequence, [b, g, s] int32, ascending.
        mass: Attention that each token got from the observed queries, averaged over the query heads
            of its group and summed over queries, [b, g, s] f32; None where ``queries`` is 0.
        local: The same from the ``local`` latest queries alone; None where ``local`` is 0.
    """

    keys: Tensor
    positions: Tensor
    mass: Tensor | None = None
    local: Tensor | None = None


Score = Callable[[KvContext], "Tensor"]
"""Importance of each cached token, [b, g, s] f32; larger is kept."""


@dataclass(frozen=True)
class Quantize:
    """Pages of few bits; the newest tokens stay as they are.

    Attributes:
        key_bits: 2, 4 or 8; 16 leaves keys and values as they came.
        value_bits: The same of values.
        page: Tokens that share a channel's scale of their keys, a multiple of 16, at most 64.
        residual: At least so many of the newest tokens stay.
        group: Channels that share a token's scale of its values, a multiple of 16 that divides the
            head; None: 32 (16 in heads that have no multiple of that), 0: all of them.
    """

    key_bits: int
    value_bits: int
    page: int = 32
    residual: int = 32
    group: int | None = None


@dataclass(frozen=True)
class Probes:
    """Queries of a prompt whose attention stands for that of all; numbers, or shares below 1.

    Attributes:
        recent: The latest ones.
        random: Others, drawn with ``seed``.
        seed: Of the draw.
    """

    recent: float = 64
    random: float = 64
    seed: int = 0


@dataclass(frozen=True)
class Classes:
    """Two classes of tokens, the same in all heads of a layer: important ones get more bits.

    Attributes:
        probes: Whose attention decides.
        top_p: Important are the fewest tokens that get this share of the probes' attention.
        share: Where ``top_p`` is 0: important is this share of the tokens.
        bits: Of important tokens' keys and values; 16 leaves them as they came.
        other_bits: Of the others'; 0 drops them.
        page: Tokens of one class that share their keys' scales.
        every: Generated tokens that are classed together.
        sparse_prefill: Only important tokens of a prompt take part in its attention, in this layer.
    """

    probes: Probes = Probes()
    top_p: float = 0.975
    share: float = 0.0
    bits: int = 4
    other_bits: int = 2
    page: int = 64
    every: int = 128
    sparse_prefill: bool = False


@dataclass(frozen=True)
class Merge:
    """Adds tokens that leave to the tokens that stay and resemble them most.

    Attributes:
        above: Smallest similarity, cos(k, k') * cos(v, v') with both positive; others just leave.
        candidates: Tokens of the next best scores that may be added, as a share of those that stay.
    """

    above: float = 0.3
    candidates: float = 1.0


@dataclass(frozen=True)
class Evict:
    """Which tokens leave for good once there are more than the budget.

    Attributes:
        score: Ranks the tokens.
        queries: How many of the latest queries the score observes: 0, a number, or EVERY_QUERY.
        sink: First tokens that always stay.
        recent: Latest tokens that always stay.
        always: Also evict while decoding, not only after a prompt.
        local: How many of the latest queries the score also sees alone.
        floor: Where heads share a layer's budget, what each has for itself, as a share of an equal
            part; None gives every head an equal part.
        merge: What becomes of tokens that leave; None drops them.
    """

    score: Score
    queries: int = 0
    sink: int = 0
    recent: int = 1
    always: bool = True
    local: int = 0
    floor: float | None = None
    merge: Merge | None = None

    @property
    def uneven(self) -> bool:
        """Whether heads hold numbers of tokens of their own, or tokens that count for several."""
        return self.floor is not None or self.merge is not None


@dataclass(frozen=True)
class Pages:
    """Reads the pages that may hold the largest scores, by each channel's minimum and maximum."""

    page: int = 16


@dataclass(frozen=True)
class Labels:
    """Reads the tokens whose scores over few channels are largest; d / ``divisor`` channels."""

    divisor: int = 4


@dataclass(frozen=True)
class WindowSum:
    """Reads the tokens that drew most attention of all heads in the latest steps; half are recent.

    Attributes:
        slots: Parts of the window, which is as many steps as half of the tokens read; a part leaves
            at once.
    """

    slots: int = 8


@dataclass(frozen=True)
class Select:
    """Which stored tokens a step reads; all of them stay.

    Attributes:
        by: How scores are estimated.
        skip_layers: First layers that read everything.
        sink: First tokens that are always read.
        recent: Latest tokens that are always read.
        fraction: Of the tokens, where no budget is given.
        each_head: Of pages: every query head chooses its own as large as the budget, and a KV head
            reads what any head of its group chose; else the group chooses together.
    """

    by: Pages | Labels | WindowSum
    skip_layers: int = 2
    sink: int = 0
    recent: int = 1
    fraction: float = 1 / 16
    each_head: bool = False


@dataclass(frozen=True)
class LowRank:
    """A prompt's keys before rotation as a product of few columns; steps rebuild the chunks they read.

    Attributes:
        rank: Columns, as a share of KV heads x channels, where no plan says otherwise.
        chunk: Tokens of a chunk; its mean key is its landmark.
        odd: Tokens kept as they came, as a share of those read: chunks unlike their landmark.
        local: Latest tokens of the prompt, kept as they came.
        fraction: Of the tokens, read where no budget is given.
    """

    rank: float = 1 / 6
    chunk: int = 8
    odd: float = 3 / 8
    local: int = 32
    fraction: float = 1 / 16


@dataclass(frozen=True)
class Pattern:
    """Attention along a fixed pattern of blocks; what later queries cannot see leaves the cache.

    Attributes:
        layout: The pattern; None takes each layer's spans from a plan.
        dense_every: Every so many layers the last of them is dense; 0 for none.
    """

    layout: Layout | None
    dense_every: int = 0


@dataclass(frozen=True)
class KvRecipe:
    """A published way to hold and read a KV cache, as data; what is None is not done."""

    quantize: Quantize | None = None
    evict: Evict | None = None
    select: Select | None = None
    classes: Classes | None = None
    pattern: Pattern | None = None
    lowrank: LowRank | None = None

    @property
    def query_aware(self) -> bool:
        """Whether what it keeps depends on the queries it saw: a later question may miss a token."""
        return self.classes is not None or (self.evict is not None and self.evict.queries != 0)

    @property
    def croppable(self) -> bool:
        """Whether any number of the latest tokens can be taken back."""
        kept = self.evict is None and self.classes is None and self.pattern is None
        return kept and self.lowrank is None

    @property
    def budgeted(self) -> bool:
        """Whether a budget of tokens says how many stay or are read."""
        return bool(self.evict or self.select or self.lowrank)

    @property
    def plans(self) -> str | None:
        """Kind of calibrated plan that it takes."""
        if self.pattern is not None and self.pattern.layout is None:
            return "spans"
        if self.lowrank is not None:
            return "ranks"
        return (
            "channels" if self.select is not None and isinstance(self.select.by, Labels) else None
        )

    @property
    def needs_plan(self) -> bool:
        """Whether it can do nothing without one."""
        return self.plans == "spans"

"""What a KV-cache method is made of: how tokens are stored, which stay, which are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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
    """

    keys: Tensor
    positions: Tensor
    mass: Tensor | None = None


Score = Callable[[KvContext], "Tensor"]
"""Importance of each cached token, [b, g, s] f32; larger is kept."""


@dataclass(frozen=True)
class Quantize:
    """Pages of ``page`` tokens in few bits; at least ``residual`` newest tokens stay as they are."""

    key_bits: int
    value_bits: int
    page: int = 32
    residual: int = 32


@dataclass(frozen=True)
class Evict:
    """Which tokens leave for good once there are more than the budget.

    Attributes:
        score: Ranks the tokens.
        queries: How many of the latest queries the score observes: 0, a number, or EVERY_QUERY.
        sink: First tokens that always stay.
        recent: Latest tokens that always stay.
        always: Also evict while decoding, not only after a prompt.
    """

    score: Score
    queries: int = 0
    sink: int = 0
    recent: int = 1
    always: bool = True


@dataclass(frozen=True)
class Pages:
    """Reads the pages that may hold the largest scores, by each channel's minimum and maximum."""

    page: int = 16


@dataclass(frozen=True)
class Labels:
    """Reads the tokens whose scores over few channels are largest; d / ``divisor`` channels."""

    divisor: int = 4


@dataclass(frozen=True)
class Select:
    """Which stored tokens a step reads; all of them stay.

    Attributes:
        by: How scores are estimated.
        skip_layers: First layers that read everything.
        sink: First tokens that are always read.
        recent: Latest tokens that are always read.
        fraction: Of the tokens, where no budget is given.
    """

    by: Pages | Labels
    skip_layers: int = 2
    sink: int = 0
    recent: int = 1
    fraction: float = 1 / 16


@dataclass(frozen=True)
class KvRecipe:
    """A published way to hold and read a KV cache, as data; what is None is not done."""

    quantize: Quantize | None = None
    evict: Evict | None = None
    select: Select | None = None

    @property
    def query_aware(self) -> bool:
        """Whether what it keeps depends on the queries it saw: a later question may miss a token."""
        return self.evict is not None and self.evict.queries != 0

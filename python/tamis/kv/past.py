"""Past: tokens of a store that are held otherwise than as they came, before its dense tail."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from tamis.kv.rows import Rows
from tamis.ops.attention import Segment


@dataclass(frozen=True)
class Tail:
    """The newest tokens of a store, as they came, and what was asked of them.

    Attributes:
        keys: [b, g, n, d].
        values: [b, g, n, d].
        begin: Position of the first of them.
        q: Queries [b, h, m, d] of the latest m tokens; None where nothing was asked.
        scale: Of the scores.
        pad: Padded tokens at the start of each sequence, [b]; None for none.
    """

    keys: Tensor
    values: Tensor
    begin: int
    q: Tensor | None
    scale: float
    pad: Tensor | None

    @property
    def positions(self) -> Tensor:
        """Place of each token in its sequence, [b, g, n] int32."""
        b, g, n, _ = self.keys.shape
        places = torch.arange(
            self.begin, self.begin + n, dtype=torch.int32, device=self.keys.device
        )
        return places.expand(b, g, n)

    @property
    def fresh(self) -> bool:
        """Whether a prompt came, not one generated token."""
        return self.q is None or self.q.shape[2] > 1


class Past:
    """What a recipe makes of older tokens: ``rows`` is its memory, ``segments`` what a step reads."""

    def __init__(self) -> None:
        self.rows: dict[str, Rows] = {}

    @property
    def tokens(self) -> int:
        """Tokens held per KV head, the mean over heads rounded up."""
        raise NotImplementedError

    def prefill(self, tail: Tail) -> Tensor | None:
        """Attention [b, h, n, d] of a first prompt, whose tokens are the tail; None: as usual."""
        return None

    def absorb(self, tail: Tail) -> int:
        """Takes tokens from the start of the tail; how many the tail is to drop."""
        raise NotImplementedError

    def segments(self, q: Tensor, scale: float) -> list[Segment]:
        """What q [b, h, n, d] reads of it."""
        raise NotImplementedError

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes held, by what they are."""
        return {name: rows.nbytes for name, rows in self.rows.items()}

    def clone(self) -> Past:
        """An independent copy."""
        twin = copy.copy(self)
        twin.rows = {name: rows.clone() for name, rows in self.rows.items()}
        return twin

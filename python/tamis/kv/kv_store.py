"""KvStore: the keys and values of one layer, held and read the way a recipe says."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.kv.classes import TwoClasses
from tamis.kv.layout import LayoutPast
from tamis.kv.lowrank import LowRankPast
from tamis.kv.methods import check_budget, check_plan, recipe_of
from tamis.kv.past import Past, Tail
from tamis.kv.plan import LayerPlan
from tamis.kv.ragged import Ragged, SharedBudget
from tamis.kv.rows import Rows, indices
from tamis.kv.selection import Selection
from tamis.kv.tiers import FileRows, Tier, reader
from tamis.ops.attention import (
    ALL,
    DenseSegment,
    Lists,
    PageSegment,
    Segment,
    attention,
    sparse_attention,
)
from tamis.ops.kv_quantize import kv_quantize, kv_unpack, page_layout
from tamis.policy.kv_budget import top_tokens
from tamis.policy.kv_layout import SinkWindow
from tamis.policy.kv_recipe import EVERY_QUERY, Evict, KvContext, KvRecipe, Quantize
from tamis.policy.kv_score import attention_mass


def store(method: str | KvRecipe, k: Tensor, v: Tensor, *, budget: int | None = None) -> KvStore:
    """A store that holds keys and values k, v [b, g, s, d] of one layer.

    Raises:
        TamisValueError: Unknown method, or a budget that does not fit it or exceeds s.
    """
    if budget is not None and budget > k.shape[2]:
        raise TamisValueError(
            f"kv.store: budget: got {budget}, wanted at most the {k.shape[2]} tokens given; a store "
            "that is to grow is made by kv.KvStore and append."
        )
    made = KvStore(recipe_of(method), budget=budget)
    made.append(k, v)
    made.settle()
    return made


class KvStore:
    """One layer's cache: append tokens, attend to them, evict, count bytes.

    Memory is a handful of ``Rows``: ``keys`` and ``values`` as they came, ``records`` of quantized
    pages that precede them, and what a recipe keeps beside them.

    Args:
        recipe: How tokens are stored, which stay, which are read.
        budget: Tokens per KV head that stay (evicting recipes) or are read (selecting ones).
        layer: Place of the layer in the model; some layers may be exempt.
        plan: What calibration found for this layer, where the recipe takes a plan.
        frequencies: Radians a token of the rotated pairs of channels, for recipes that take keys back
            before rotation; None for keys that were not rotated.
        tier: Where keys and values lie instead of memory, for layers that select.

    Raises:
        TamisValueError: The budget or the plan does not fit the recipe.
        TamisUnsupported: The recipe quantizes and also evicts or selects.
    """

    def __init__(
        self,
        recipe: KvRecipe,
        *,
        budget: int | None = None,
        layer: int = 0,
        plan: LayerPlan | None = None,
        frequencies: Tensor | None = None,
        tier: Tier | None = None,
    ) -> None:
        check_budget(recipe, budget)
        check_plan(recipe, plan)
        self.recipe, self.budget, self.layer, self.plan = recipe, budget, layer, plan
        self.frequencies = frequencies
        self.length = 0
        self.layer_of: Any = None  # weak reference to the module that filled it, and its mark
        self.mark = ""
        self.rows: dict[str, Rows] = {}
        self.selection = None
        if recipe.select is not None and layer >= recipe.select.skip_layers:
            self.selection = Selection(recipe.select, budget, plan)
        self.tier = None if self.selection is None else tier
        self.past = self._past()

    # What it holds.

    @property
    def tokens(self) -> int:
        """Tokens held per KV head; ``length`` counts the evicted ones too."""
        past = self.paged_tokens + (0 if self.past is None else self.past.tokens)
        return past + self.tail_tokens

    @property
    def tail_tokens(self) -> int:
        """Newest tokens, held as they came."""
        return self.rows["keys"].count if self.rows else 0

    @property
    def held(self) -> list[int]:
        """Tokens held of each KV head, in the sequence that holds most."""
        if not self.rows:
            return []
        if isinstance(self.past, Ragged) and self.past.lengths is not None:
            return [n + self.tail_tokens for n in self.past.lengths.amax(0).tolist()]
        return [self.tokens] * self.rows["keys"].buffer.shape[1]

    @property
    def paged_tokens(self) -> int:
        """Tokens held as quantized pages."""
        records = self.rows.get("records")
        return 0 if records is None else records.count * self._quantize.page

    @property
    def _quantize(self) -> Quantize:
        if self.recipe.quantize is None:
            raise TamisUnsupported("KvStore: recipe: got no quantization, wanted one.")
        return self.recipe.quantize

    def _past(self) -> Past | None:
        """What is to hold older tokens; None where they stay with the others."""
        evict, pattern, plan = self.recipe.evict, self.recipe.pattern, self.plan
        if evict is not None and self.budget is not None and (evict.uneven or evict.local):
            return SharedBudget(evict, self.budget)
        if self.recipe.lowrank is not None:
            rank = None if plan is None else int(plan.data)
            return LowRankPast(self.recipe.lowrank, self.budget, self.frequencies, rank)
        if self.recipe.classes is not None:
            return TwoClasses(self.recipe.classes)
        if pattern is None or (pattern.dense_every and (self.layer + 1) % pattern.dense_every == 0):
            return None
        if pattern.layout is not None:
            return LayoutPast(pattern.layout)
        if plan is None:
            raise AssertionError("check_plan wants one")
        alpha, beta = zip(*plan.data, strict=True)
        sizes = {name: int(plan.options[name]) for name in ("block", "sink")}
        return LayoutPast(SinkWindow(tuple(alpha), tuple(beta), **sizes))

    def fresh(self) -> KvStore:
        """An empty one of the same kind."""
        return KvStore(
            self.recipe,
            budget=self.budget,
            layer=self.layer,
            plan=self.plan,
            frequencies=self.frequencies,
            tier=copy.deepcopy(self.tier),
        )

    def nbytes(self) -> int:
        """Bytes of everything held in memory for the tokens."""
        return sum(self.bytes_by_part().values())

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of keys, values, records, and of what selection or eviction keep beside them."""
        parts = {n: rows.nbytes for n, rows in self.rows.items() if not isinstance(rows, FileRows)}
        if self.tier is not None:
            parts["pool"] = self.tier.nbytes
        for beside in (self.selection, self.past):
            parts |= {} if beside is None else beside.bytes_by_part()
        return parts

    @property
    def file_bytes(self) -> int:
        """Bytes of keys and values that lie in a file."""
        return sum(rows.nbytes for rows in self.rows.values() if isinstance(rows, FileRows))

    # Tokens in.

    def prefill(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, pad: Tensor | None
    ) -> Tensor | None:
        """Attention [b, h, n, d] of a first prompt where the recipe makes it sparse; else None."""
        if self.past is None:
            return None
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return self.past.prefill(Tail(k, v, self.length, q, scale, pad))

    def append(self, k: Tensor, v: Tensor) -> None:
        """Adds tokens k, v [b, g, n, d] as they are; ``settle`` compresses."""
        self._wait()
        if not self.rows and self.tier is not None:
            folder = self.tier.folder
            self.rows = {"keys": FileRows(k, folder), "values": FileRows(v, folder)}
        elif not self.rows:
            self.rows = {"keys": Rows.copy_of(k), "values": Rows.copy_of(v)}
        else:
            self.rows["keys"].append(k)
            self.rows["values"].append(v)
        if "positions" in self.rows:
            self.rows["positions"].append(_places(self.length, k))
        elif self.recipe.evict is not None and self.past is None:
            self.rows["positions"] = Rows(_places(self.length, k))
        self.length += k.shape[2]

    def settle(
        self, q: Tensor | None = None, *, scale: float | None = None, pad: Tensor | None = None
    ) -> None:
        """Compresses what was appended, now that its queries q [b, h, n, d] have been answered.

        Without q, recipes that observe queries leave everything as it is.

        Args:
            q: The queries of the last n tokens.
            scale: Of the scores; 1 / sqrt(d) by default.
            pad: Padded tokens at the start of each sequence, [b].
        """
        if self.recipe.quantize is not None and self.recipe.quantize.key_bits < 16:
            self._seal(self.recipe.quantize)
        if self.selection is not None and q is not None:
            self.selection.observe(q, self.rows["keys"].view, self.first(pad))
        if self.past is not None:
            self._absorb(self.past, q, scale, pad)
        elif self.recipe.evict is not None:
            self._evict(self.recipe.evict, q, scale, pad)
        self._drop()

    def _absorb(
        self, past: Past, q: Tensor | None, scale: float | None, pad: Tensor | None
    ) -> None:
        """Lets the past take its part of the tail."""
        keys, values = self.rows["keys"], self.rows["values"]
        scale = keys.buffer.shape[-1] ** -0.5 if scale is None else scale
        begin = self.length - keys.count
        taken = past.absorb(Tail(keys.view, values.view, begin, q, scale, pad))
        if taken:
            keys.drop_first(taken)
            values.drop_first(taken)

    def _seal(self, how: Quantize) -> None:
        """Quantizes whole pages, oldest first, while ``residual`` tokens remain."""
        keys, values = self.rows["keys"], self.rows["values"]
        pages = (keys.count - how.residual) // how.page
        if pages <= 0:
            return
        layout = page_layout(keys.buffer.shape[3], how.key_bits, how.value_bits, how.page)
        if "records" not in self.rows:
            b, g = keys.buffer.shape[:2]
            none = keys.buffer.new_empty(b, g, 0, layout.nbytes, dtype=torch.uint8)
            self.rows["records"] = Rows(none)
        n = pages * how.page
        out = self.rows["records"].extend(pages)
        kv_quantize(keys.view[:, :, :n], values.view[:, :, :n], layout, out)
        keys.drop_first(n)
        values.drop_first(n)

    def _evict(self, how: Evict, q: Tensor | None, scale: float | None, pad: Tensor | None) -> None:
        mass = None
        if how.queries != 0:
            if q is None:
                return
            mass = self._observe(how, q, scale, pad)
        fresh = q is None or q.shape[2] > 1
        if self.budget is None or self.tokens <= self.budget or not (how.always or fresh):
            return
        context = KvContext(self.rows["keys"].view, self.rows["positions"].view, mass)
        first = self.first(pad)
        kept = top_tokens(
            how.score(context), self.budget, sink=how.sink, recent=how.recent, first=first
        )
        self._keep(kept)

    def keep(self, index: Tensor) -> None:
        """Keeps tokens ``index`` [b, g, k] of each KV head, ascending; the others leave for good.

        Raises:
            TamisValueError: An index lies outside the tokens held.
            TamisUnsupported: Tokens are quantized or held otherwise than as they came.
        """
        if self.tokens > self.tail_tokens:
            raise TamisUnsupported(
                f"KvStore.keep: got a store with {self.tokens - self.tail_tokens} tokens in another "
                "form, wanted every token as it came; keep first and quantize then."
            )
        wanted = self.rows["keys"].buffer.shape[:2] if self.rows else (0, 0)
        if index.dim() != 3 or index.shape[:2] != wanted or _outside(index, self.tokens):
            raise TamisValueError(
                f"KvStore.keep: index: got shape {list(index.shape)}, wanted {[*wanted, 'k']} "
                f"ascending within the {self.tokens} tokens held."
            )
        if "positions" not in self.rows:
            self.rows["positions"] = Rows(_places(0, self.rows["keys"].view))
        self._keep(index)

    def _keep(self, index: Tensor) -> None:
        for rows in self.rows.values():
            rows.keep(index)
        if self.selection is not None:
            self.selection.forget()
        self._forget()

    def _observe(self, how: Evict, q: Tensor, scale: float | None, pad: Tensor | None) -> Tensor:
        """Attention mass [b, g, s] from the queries that the recipe looks at."""
        keys, positions = self.rows["keys"].view, self.rows["positions"].view
        seen = positions >= (0 if pad is None else pad.view(-1, 1, 1))
        last = q if how.queries == EVERY_QUERY else q[:, :, -how.queries :]
        mass = attention_mass(last, keys, q.shape[-1] ** -0.5 if scale is None else scale, seen)
        if how.queries != EVERY_QUERY:
            return mass
        if "mass" in self.rows:
            total = self.rows["mass"]
            total.extend(mass.shape[2] - total.count).zero_()
            total.view.add_(mass)
            return total.view
        self.rows["mass"] = Rows(mass)
        return mass

    def first(self, pad: Tensor | None) -> Tensor | None:
        """First held token of each sequence that is not padding, [b, g]; None for the first."""
        if pad is None:
            return None
        if self.past is not None:
            pad = (pad - (self.length - self.tail_tokens)).clamp(min=0)
        if "positions" in self.rows:
            return (self.rows["positions"].view < pad.view(-1, 1, 1)).sum(-1)
        return pad.view(-1, 1).expand(-1, self.rows["keys"].buffer.shape[1])

    # Tokens out.

    def attend(
        self,
        q: Tensor,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        pad: Tensor | None = None,
    ) -> Tensor:
        """Attention of q [b, h, n, d] over all tokens held, [b, h, n, d]."""
        if self.tier is not None:
            return self.attend_lse(q, scale=scale, softcap=softcap, pad=pad)[0]
        segments = self._seen(q, self._first(pad), scale)
        return attention(q, segments, scale=scale, softcap=softcap)

    def attend_lse(
        self,
        q: Tensor,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        pad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``attend`` and the logarithm of its weights' sum [b, h, n] f32, for ``ops.attention.merge``.

        Raises:
            TamisValueError: Nothing was appended yet, or q has the wrong shape.
        """
        first = self._first(pad)
        segments = self._seen(q, first, scale)
        if self.tier is None:
            return sparse_attention(q, segments, scale=scale, softcap=softcap)
        found = self.tier.attend(q, segments, scale, softcap)
        self.tier.first = first
        self._drop()
        return found

    def _first(self, pad: Tensor | None) -> Tensor | None:
        if not self.rows:
            raise TamisValueError(
                "KvStore.attend: got an empty store, wanted tokens; append first."
            )
        return self.first(pad)

    def _seen(self, q: Tensor, first: Tensor | None, scale: float | None) -> list[Segment]:
        """What a step with queries q reads."""
        segments: list[Segment] | None = None
        if self.selection is not None and q.shape[2] == 1:
            keys, values = self.rows["keys"].view, self.rows["values"].view
            segments = self.selection.segments(q, keys, values, first)
        if segments is None:
            segments = self._segments(first)
        if self.past is not None:
            segments += self.past.segments(q, q.shape[-1] ** -0.5 if scale is None else scale)
        return segments

    def fetch_ahead(self, q: Tensor) -> None:
        """Starts to bring what a step with queries like q [b, h, 1, d] would read; returns at once."""
        if self.tier is None or self.selection is None or self.selection.window is not None:
            return
        if self.tier.pool is not None:
            self.tier.wait()
            self.tier.ahead = reader().submit(self._fetch, q)

    def _fetch(self, q: Tensor) -> None:
        if self.tier is None or self.selection is None:
            return
        keys, values = self.rows["keys"].view, self.rows["values"].view
        segments = self.selection.segments(q, keys, values, self.tier.first)
        self.tier.bring_ahead(segments or [])

    def _wait(self) -> None:
        if self.tier is not None:
            self.tier.wait()

    def _drop(self) -> None:
        """The file's pages leave this process's memory."""
        for rows in self.rows.values():
            if isinstance(rows, FileRows):
                rows.drop()

    def _forget(self) -> None:
        if self.tier is not None:
            self.tier.forget()

    def _segments(self, first: Tensor | None) -> list[Segment]:
        segments: list[Segment] = []
        paged = self.paged_tokens
        keys, values = self.rows["keys"].view, self.rows["values"].view
        if paged:
            how = self._quantize
            layout = page_layout(keys.shape[3], how.key_bits, how.value_bits, how.page)
            lists = ALL if first is None else Lists(begin=indices(first))
            segments.append(PageSegment(self.rows["records"].view, layout, lists))
        tail = ALL if first is None else Lists(begin=indices((first - paged).clamp(min=0)))
        return [*segments, DenseSegment(keys, values, tail)]

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys and values [b, g, tokens, d] as attention sees them, pages unpacked.

        Raises:
            TamisUnsupported: The method holds older tokens otherwise.
        """
        if self.past is not None and self.past.tokens:
            raise TamisUnsupported(
                "KvStore.dense: got tokens that this method holds in another form, wanted keys and "
                "values; read them by attend."
            )
        keys, values = self.rows["keys"].view, self.rows["values"].view
        if not self.paged_tokens:
            return keys, values
        how = self._quantize
        layout = page_layout(keys.shape[3], how.key_bits, how.value_bits, how.page)
        k, v = kv_unpack(self.rows["records"].view, layout)
        return torch.cat([k.to(keys), keys], 2), torch.cat([v.to(values), values], 2)

    # Life of a sequence.

    def crop(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens; part of a page comes back unpacked.

        Raises:
            TamisValueError: There are fewer tokens.
            TamisUnsupported: The recipe evicts, so earlier tokens may be gone.
        """
        if not 0 <= length <= self.length:
            raise TamisValueError(
                f"KvStore.crop: length: got {length}, wanted 0 to the {self.length} tokens held."
            )
        older = self.length - self.tail_tokens
        dropped = self.past is None and self.tokens < self.length
        if self.recipe.evict is not None or dropped or (length < older and not self.paged_tokens):
            raise TamisUnsupported(
                "KvStore.crop: this method evicts tokens or changes older ones, or some were dropped, "
                "so what was there before cannot be restored; use snapshot and restore."
            )
        self._forget()
        if length < older:
            pages = length // self._quantize.page
            k, v = (x[:, :, pages * self._quantize.page : length] for x in self.dense())
            self.rows["records"].crop(pages)
            self.rows["keys"], self.rows["values"] = Rows(k.clone()), Rows(v.clone())
        else:
            self.rows["keys"].crop(length - older)
            self.rows["values"].crop(length - older)
        if self.selection is not None:
            self.selection.crop(length)
        self.length = length

    def take_batches(self, index: Tensor) -> None:
        """Sequence i becomes a copy of what sequence ``index[i]`` was: beam search."""
        self._forget()
        for rows in self._all_rows():
            rows.take_batches(index)
        self._drop()

    def _all_rows(self) -> list[Rows]:
        beside = [part.rows.values() for part in (self.selection, self.past) if part is not None]
        return [*self.rows.values(), *(rows for part in beside for rows in part)]

    def snapshot(self) -> dict[str, Any]:
        """All that it holds, to ``restore`` later any number of times."""
        self._wait()
        return {
            "length": self.length,
            "rows": {name: rows.clone() for name, rows in self.rows.items()},
            "selection": None if self.selection is None else self.selection.clone(),
            "past": None if self.past is None else self.past.clone(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Back to what it was when ``snapshot`` returned ``saved``."""
        self._forget()
        self.length = saved["length"]
        self.rows = {name: rows.clone() for name, rows in saved["rows"].items()}
        self.selection = None if saved["selection"] is None else saved["selection"].clone()
        self.past = None if saved["past"] is None else saved["past"].clone()


def _places(first: int, k: Tensor) -> Tensor:
    """Places in their sequence of tokens k [b, g, n, d], [b, g, n] int32."""
    b, g, n, _ = k.shape
    return torch.arange(first, first + n, dtype=torch.int32, device=k.device).expand(b, g, n)


def _outside(index: Tensor, tokens: int) -> bool:
    """Whether indices [b, g, k] are not ascending places of ``tokens`` tokens."""
    if index.shape[2] == 0:
        return False
    steps = index.diff(dim=2)
    return int(index.min()) < 0 or int(index.max()) >= tokens or bool((steps <= 0).any())

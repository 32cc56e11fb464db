"""KvStore: the keys and values of one layer, held and read the way a recipe says."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.kv import eviction, packed, reading
from tamis.kv.classes import TwoClasses
from tamis.kv.host import HostRows
from tamis.kv.layout import LayoutPast
from tamis.kv.limits import Limits
from tamis.kv.lowrank import LowRankPast
from tamis.kv.methods import check_budget, check_plan, recipe_of
from tamis.kv.past import Past, Tail
from tamis.kv.plan import LayerPlan
from tamis.kv.ragged import Ragged, SharedBudget
from tamis.kv.rows import Rows
from tamis.kv.selection import Selection
from tamis.kv.tiers import FileRows, Tier
from tamis.policy.kv_layout import SinkWindow
from tamis.policy.kv_recipe import KvRecipe


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
        limits: Contexts below which a step reads everything, or reads by torch's SDPA, as that is
            faster; None keeps to the recipe's way.

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
        limits: Limits | None = None,
    ) -> None:
        check_budget(recipe, budget)
        check_plan(recipe, plan)
        self.recipe, self.budget, self.layer, self.plan = recipe, budget, layer, plan
        self.frequencies, self.limits = frequencies, limits
        self.length = 0
        self.way: reading.Way | None = None  # of the latest step
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
        return packed.tokens(self.rows, self.recipe.quantize)

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
            limits=self.limits,
        )

    def nbytes(self) -> int:
        """Bytes of everything held in memory for the tokens."""
        return sum(self.bytes_by_part().values())

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of keys, values, records, and of what selection or eviction keep beside them."""
        parts = {n: rows.nbytes for n, rows in self.rows.items() if not isinstance(rows, FileRows)}
        for beside in (self.tier, self.selection, self.past):
            parts |= {} if beside is None else beside.bytes_by_part()
        return parts

    @property
    def file_bytes(self) -> int:
        """Bytes of keys and values that lie in a file."""
        return sum(rows.nbytes for rows in self.rows.values() if isinstance(rows, FileRows))

    @property
    def host_bytes(self) -> int:
        """Bytes of keys and values that lie in the host's memory while a device reads them."""
        return sum(rows.nbytes for rows in self.rows.values() if isinstance(rows, HostRows))

    def move(self, device: torch.device) -> None:
        """Everything held goes to another device; what lies in a file stays there."""
        for rows in self._all_rows():
            rows.move(device)
        if self.selection is not None:
            self.selection.move(device)
        if self.tier is not None and self.tier.tiers.folder is None:
            self.rows = {name: self.tier.rows(rows.view) for name, rows in self.rows.items()}

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
            self.tier.check(k)
            self.rows = {"keys": self.tier.rows(k), "values": self.tier.rows(v)}
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
        if self.recipe.quantize is not None:
            packed.seal(self.rows, self.recipe.quantize)
        if self.selection is not None and q is not None:
            self.selection.observe(q, self.rows["keys"].view, self.first(pad))
        if self.past is not None:
            self._absorb(self.past, q, scale, pad)
        elif self.recipe.evict is not None and self.budget is not None:
            first, how = self.first(pad), self.recipe.evict
            kept = eviction.kept(self.rows, how, self.budget, q, scale=scale, first=first)
            if kept is not None:
                self._keep(kept)
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
        found = reading.attend(self, self._asked(q, scale, softcap, pad))
        self._drop()
        return found

    @property
    def read(self) -> str:
        """What the latest step read, how and why; "" before one."""
        return reading.explain(self)

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
        found = reading.attend_lse(self, self._asked(q, scale, softcap, pad))
        self._drop()
        return found

    def _asked(
        self, q: Tensor, scale: float | None, softcap: float, pad: Tensor | None
    ) -> reading.Asked:
        if not self.rows:
            raise TamisValueError(
                "KvStore.attend: got an empty store, wanted tokens; append first."
            )
        return reading.Asked(q, q.shape[-1] ** -0.5 if scale is None else scale, softcap, pad)

    def fetch_ahead(self, q: Tensor) -> None:
        """Starts to bring what a step with queries like q [b, h, 1, d] would read; returns at once."""
        reading.fetch_ahead(self, q)

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
        how = self.recipe.quantize
        if how is None or not self.paged_tokens:
            return keys, values
        older = packed.unpack(self.rows, how)
        return torch.cat([older[0], keys], 2), torch.cat([older[1], values], 2)

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
        if length < older and self.recipe.quantize is not None:
            page = self.recipe.quantize.page
            k, v = (x[:, :, length // page * page : length] for x in self.dense())
            self.rows["records"].crop(length // page)
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

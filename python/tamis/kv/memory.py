"""KvMemory: what one layer's cache holds, its bytes, and what becomes of them with the sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.kv import packed
from tamis.kv.classes import TwoClasses
from tamis.kv.host import HostRows
from tamis.kv.layout import LayoutPast
from tamis.kv.lowrank import LowRankPast
from tamis.kv.methods import check_budget, check_plan
from tamis.kv.past import Past
from tamis.kv.plan import LayerPlan
from tamis.kv.ragged import Ragged, SharedBudget
from tamis.kv.rows import Rows
from tamis.kv.selection import Selection
from tamis.kv.tiers import FileRows, Tier
from tamis.policy.kv_layout import SinkWindow
from tamis.policy.kv_recipe import KvRecipe


class KvMemory:
    """The memory of one layer: a handful of ``Rows``.

    ``keys`` and ``values`` as they came, ``records`` of quantized pages that precede them, and what a
    recipe keeps beside them. Arguments and errors as of ``KvStore``.
    """

    def __init__(
        self,
        recipe: KvRecipe,
        *,
        budget: int | None,
        layer: int,
        plan: LayerPlan | None,
        frequencies: Tensor | None,
        tier: Tier | None,
    ) -> None:
        budget = check_budget(recipe, budget)
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

    def nbytes(self) -> int:
        """Bytes of everything held in memory for the tokens, without room to grow."""
        return sum(self.bytes_by_part().values())

    def reserved_nbytes(self) -> int:
        """Bytes of room for tokens to come, beside ``nbytes``.

        On the CPU no memory is taken for it before tokens are written there (but for the rest of a huge
        page where a buffer has 4 MB or more); on a GPU it is.
        """
        rows = (rows for rows in self._all_rows() if not isinstance(rows, FileRows))
        return sum(x.reserved_nbytes for x in rows)

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
            "recipe": self.recipe,
            "length": self.length,
            "rows": {name: rows.clone() for name, rows in self.rows.items()},
            "selection": None if self.selection is None else self.selection.clone(),
            "past": None if self.past is None else self.past.clone(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Back to what it was when ``snapshot`` returned ``saved``.

        Raises:
            TamisValueError: It is no snapshot, or one of another method.
        """
        if not isinstance(saved, dict) or saved.get("recipe") != self.recipe:
            raise TamisValueError(
                "KvStore.restore: saved: got no snapshot of this method, wanted what snapshot "
                "returned."
            )
        self._forget()
        self.length = saved["length"]
        self.rows = {name: rows.clone() for name, rows in saved["rows"].items()}
        self.selection = None if saved["selection"] is None else saved["selection"].clone()
        self.past = None if saved["past"] is None else saved["past"].clone()

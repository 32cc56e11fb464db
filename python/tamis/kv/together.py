"""Several caches as the rows of one batch: methods compared on the same tokens at the cost of one.

A decoding step reads every weight of the model; for many caches it reads them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers.cache_utils import DynamicCache

from tamis.errors import TamisUnsupported, TamisValueError
from tamis.kv.cache import Cache, StoreLayer, text_config
from tamis.kv.kv_store import KvStore
from tamis.policy.kv_recipe import KvRecipe


class Together(DynamicCache):
    """A cache of a batch whose row i is read and written by ``caches[i]``.

    Args:
        config: The model's config.
        caches: Of one sequence each, alike in length; they go on as usual afterwards.

    Raises:
        TamisValueError: There is none, or their lengths differ.
        TamisUnsupported: The model has layers other than full attention.
    """

    def __init__(self, config: Any, caches: Sequence[Cache]) -> None:
        text = text_config("kv.Together", config)
        super().__init__(config=config)
        if not all(isinstance(cache, Cache) for cache in caches):
            raise TamisValueError(
                f"kv.Together: caches: got {sorted({type(c).__name__ for c in caches})}, wanted "
                "kv.Cache only."
            )
        lengths = {cache.get_seq_length() for cache in caches}
        if len(lengths) != 1:
            raise TamisValueError(
                f"kv.Together: caches: got lengths {sorted(lengths)}, wanted caches of one length."
            )
        if any(not isinstance(layer, StoreLayer) for cache in caches for layer in cache.layers):
            raise TamisUnsupported(
                "kv.Together: caches: got layers other than full attention, wanted none; use the "
                "caches one after another."
            )
        for i in range(len(self.layers)):
            self.layers[i] = _Layer(text, [cache.layers[i] for cache in caches])


class _Layer(StoreLayer):
    """A layer of all caches."""

    def __init__(self, config: Any, each: list[Any]) -> None:
        super().__init__(config, _Stores([layer.store for layer in each]))
        self.each = each

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remembers dtype and device, here and in the caches."""
        for layer in self.each:
            layer.lazy_initialization(key_states, value_states)
        super().lazy_initialization(key_states, value_states)

    def _check(self, keys: Tensor) -> None:
        if keys.shape[0] != len(self.each):
            raise TamisValueError(
                f"kv.Together: keys: got {keys.shape[0]} sequences, wanted {len(self.each)}, one for "
                "each cache."
            )


class _Stores(KvStore):
    """What the attention call sees: a store for each row."""

    def __init__(self, each: list[KvStore]) -> None:
        super().__init__(KvRecipe(), layer=each[0].layer)
        self.each = each
        self.length, self.mark, self.layer_of = each[0].length, each[0].mark, each[0].layer_of

    def prefill(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, pad: Tensor | None
    ) -> Tensor | None:
        """Attention of a first prompt, sparse in the rows whose recipe makes it so; None: in none."""
        rows = [(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(len(self.each))]
        found = [
            store.prefill(*row, scale=scale, pad=_row(pad, i))
            for i, (store, row) in enumerate(zip(self.each, rows, strict=True))
        ]
        if all(out is None for out in found):
            return None
        if pad is not None:
            raise TamisUnsupported(
                "kv.Together: got padding with a method whose prompts are sparse, wanted none; pass "
                "prompts of one length."
            )
        outs = [
            sdpa(q, k, v, is_causal=True, scale=scale, enable_gqa=True) if out is None else out
            for (q, k, v), out in zip(rows, found, strict=True)
        ]
        return torch.cat(outs)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Row i goes to store i."""
        for i, store in enumerate(self.each):
            store.append(k[i : i + 1], v[i : i + 1])
            store.mark, store.layer_of = self.mark, self.layer_of
        self.length += k.shape[2]

    def settle(self, q: Tensor | None = None, *, pad: Tensor | None = None, **options: Any) -> None:
        """Every store compresses its row."""
        for i, store in enumerate(self.each):
            store.settle(None if q is None else q[i : i + 1], pad=_row(pad, i), **options)

    def attend(self, q: Tensor, *, pad: Tensor | None = None, **options: Any) -> Tensor:
        """[b, h, n, d], each row by its store."""
        rows = enumerate(self.each)
        return torch.cat([s.attend(q[i : i + 1], pad=_row(pad, i), **options) for i, s in rows])

    def attend_lse(
        self, q: Tensor, *, pad: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The same, and the logarithms of the weights' sums [b, h, n]."""
        rows = enumerate(self.each)
        found = [s.attend_lse(q[i : i + 1], pad=_row(pad, i), **options) for i, s in rows]
        out, lse = zip(*found, strict=True)
        return torch.cat(out), torch.cat(lse)


def _row(pad: Tensor | None, i: int) -> Tensor | None:
    return None if pad is None else pad[i : i + 1]

"""press: a scorer written for kvpress as an eviction policy of our caches, tokens really freed.

Any object with ``score(module, hidden_states, keys, values, attentions, kwargs) -> [b, g, s]`` will
do, larger is kept, as in kvpress 0.5's ``ScorerPress``; nothing of kvpress is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.kv.attention import Handle, attach, padding
from tamis.kv.cache import Cache, StoreLayer
from tamis.kv.kv_store import KvStore
from tamis.policy.kv_budget import top_tokens


def press(model: Any, scorer: Any, *, budget: int | None = None) -> PressHandle:
    """Attaches the model and lets the scorer evict from every tamis cache after its prompt.

    ``with kv.press(model, scorer): model.generate(..., cache=kv.Cache(config, "full"))``.

    Args:
        model: As for ``attach``.
        scorer: Scores cached tokens; its ``compression_ratio`` is the share of the first prompt's
            tokens that leave, as in kvpress. ``post_init_from_model(model)`` is called if it is there.
        budget: Instead of that share: tokens per KV head that stay, after every prompt or chunk of one.

    Raises:
        TamisTypeError: The scorer has no method ``score``.
        TamisValueError: Neither a budget nor a ratio from 0 up to but not 1.
        TamisUnsupported: The model does not take attention functions.
    """
    if not callable(getattr(scorer, "score", None)):
        raise TamisTypeError(
            f"kv.press: scorer: got {type(scorer).__name__} without score(module, hidden_states, keys, "
            "values, attentions, kwargs), wanted a kvpress ScorerPress or the like."
        )
    share = getattr(scorer, "compression_ratio", None)
    if budget is None and not (isinstance(share, int | float) and 0 <= share < 1):
        raise TamisValueError(
            f"kv.press: scorer.compression_ratio: got {share!r}, wanted 0 up to but not 1; or pass "
            "budget= in tokens."
        )
    if budget is not None and budget < 1:
        raise TamisValueError(f"kv.press: budget: got {budget}, wanted at least 1 token.")
    handle = PressHandle(attach(model), scorer, budget)
    prepare = getattr(scorer, "post_init_from_model", None)
    if callable(prepare):
        prepare(model)
    for module in model.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "k_proj"):
            handle.hooks.append(module.register_forward_hook(handle.evict, with_kwargs=True))
    return handle


class PressHandle(Handle):
    """Undoes ``press``; also a context manager."""

    def __init__(self, attached: Handle, scorer: Any, budget: int | None) -> None:
        super().__init__(attached.model, attached.attached, attached.hooks)
        self.scorer, self.budget = scorer, budget

    def evict(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """After an attention layer: scores its tokens and keeps the best."""
        cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
        layer = None if cache is None else cache.layers[module.layer_idx]
        if not isinstance(layer, StoreLayer):
            return
        store = layer.store
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        kept = self._kept(store, hidden.shape[1])
        if kept >= store.tokens:
            return
        if store.paged_tokens:
            raise TamisUnsupported(
                "kv.press: cache: got one that quantizes, wanted 'full' or one that selects, as pages "
                "cannot lose single tokens."
            )
        score = self._score(module, hidden, store, out, kwargs)
        pad = padding(kwargs.get("attention_mask"))
        first = None if pad is None else store.first(pad)
        store.keep(top_tokens(score, kept, first=first))

    def _kept(self, store: KvStore, new: int) -> int:
        """Tokens that stay."""
        if new > 1 and self.budget is not None:
            return self.budget
        if new > 1 and store.length == new and self.budget is None:
            return max(1, int(new * (1 - self.scorer.compression_ratio)))
        return store.tokens

    def _score(
        self, module: Any, hidden: Tensor, store: KvStore, out: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        keys, values = store.dense()
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        try:
            score: Tensor = self.scorer.score(module, hidden, keys, values, weights, kwargs)
        except Exception as error:
            first = str(error).strip().split("\n")[0] or type(error).__name__
            raise TamisUnsupported(
                f"kv.press: scorer: got {type(self.scorer).__name__} which fails here ({first}), wanted "
                "one that needs hidden states, keys and values; attention weights are never formed."
            ) from error
        if not isinstance(score, Tensor) or score.shape != keys.shape[:3]:
            got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise TamisValueError(
                f"kv.press: scorer: got scores of shape {got}, wanted {list(keys.shape[:3])}."
            )
        return score.float().nan_to_num(nan=float("-inf"), posinf=torch.finfo().max)

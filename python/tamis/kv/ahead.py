"""Reading ahead: the next layer's queries, guessed from this layer's input.

Consecutive layers see nearly the same hidden state, so the next layer's projection of this one's
input picks nearly the tokens that its own queries will (Double Sparsity, arXiv:2408.07092, sec. 4).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def read_ahead(model: Any) -> list[Any]:
    """Hooks on the attention layers that project queries; none where a model does it otherwise."""
    layers = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "q_proj")]
    hooks = []
    for this, following in pairwise(layers):
        hook = _Hook(following)
        hooks.append(this.register_forward_pre_hook(hook, with_kwargs=True))
    return hooks


class _Hook:
    """Before a layer computes: what the following one may read is on its way."""

    def __init__(self, following: Any) -> None:
        self.following = following

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if hidden.shape[1] != 1:
            return
        for cache in (*args, *kwargs.values()):
            layers = getattr(cache, "layers", None)
            store = getattr(layers[self.following.layer_idx], "store", None) if layers else None
            if store is not None and store.tier is not None:
                store.fetch_ahead(self._queries(hidden, kwargs.get("position_embeddings")))
                return

    def _queries(self, hidden: Tensor, place: tuple[Tensor, Tensor] | None) -> Tensor:
        """[b, h, 1, d], turned to their place."""
        flat: Tensor = self.following.q_proj(hidden)
        q = flat.view(*flat.shape[:2], -1, self.following.head_dim)
        norm = getattr(self.following, "q_norm", None)
        q = q.transpose(1, 2) if norm is None else norm(q).transpose(1, 2)
        if place is None or place[0].shape[-1] != q.shape[-1]:
            return q  # a guess may be a poor one
        cos, sin = (x.unsqueeze(1) for x in place)
        a, b = q.chunk(2, -1)
        return q * cos + torch.cat([-b, a], -1) * sin

"""The attention call that reads stores, and attach, which makes a model use it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tamis.errors import TamisUnsupported
from tamis.kv.ahead import read_ahead
from tamis.kv.dense import dense_attention, with_sinks
from tamis.kv.identity import check_attention, check_mark, layer_mark
from tamis.kv.kv_store import KvStore
from tamis.ops.attention import merge_lse
from tamis.ops.prefill import prefill_attention

NAME = "tamis"
STORE = "tamis_store"  # attribute of the keys that a Cache's layer returns
_SEEN = "tamis_padding"  # attribute of a mask: its version, and what padding found


@dataclass(eq=False)
class _Attached:
    """One call of ``attach`` that holds, and the attention that its removal brings back."""

    before: str | None


_ATTACHED: weakref.WeakKeyDictionary[Any, list[_Attached]] = weakref.WeakKeyDictionary()
"""What is attached to each model, oldest first."""


def attach(model: Any, *, ahead: bool = False) -> Handle:
    """Makes the model's attention read tamis caches; any other cache works as before, by SDPA.

    A model may be attached several times, and the handles be removed in any order: it reads tamis
    caches until the last of them is.

    Args:
        model: A causal language model of transformers.
        ahead: While a layer computes, guess the next one's queries from this one's input and fetch
            what they would read into the pool of a cache with tiers (Double Sparsity, arXiv:2408.07092,
            sec. 4). It changes no result.

    Raises:
        TamisUnsupported: The model does not take attention functions.
    """
    check_attention("kv.attach", model)
    before = model.config._attn_implementation
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(before)
        raise TamisUnsupported(
            f"kv.attach: model: got {type(model).__name__}, which does not take attention "
            "functions, wanted one of transformers' newer models."
        )
    attached = _Attached(before)
    _ATTACHED.setdefault(model, []).append(attached)
    return Handle(model, attached, read_ahead(model) if ahead else [])


class Handle:
    """Undoes ``attach``; also a context manager."""

    def __init__(self, model: Any, attached: _Attached, hooks: list[Any]) -> None:
        self.model, self.attached, self.hooks = model, attached, hooks

    def remove(self) -> None:
        """The model computes as without this handle, bit for bit; a second call changes nothing."""
        for hook in self.hooks:
            hook.remove()
        others = _ATTACHED.get(self.model, [])
        if self.attached not in others:
            return
        place = others.index(self.attached)
        del others[place]
        if place == len(others):
            self.model.set_attn_implementation(self.attached.before)
        elif others[place].before == NAME:  # else the user chose another in between
            others[place].before = self.attached.before

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def attention_forward(  # noqa: PLR0913
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: [b, h, n, d] queries to [b, n, h, d].

    A prompt goes through SDPA, so it is bit for bit what it would be without us (where a model caps
    scores or has sinks, ``s_aux``, what its own steps make of it); then its keys and values are
    compressed. Later tokens read the store.
    """
    store: KvStore | None = getattr(key, STORE, None)
    if store is not None:
        store.awaits = False
        _belongs(store, module)
        if kwargs.get("position_bias") is not None:
            raise TamisUnsupported(
                f"kv.Cache: model: got a bias of positions in {type(module).__name__}, wanted scores of "
                "queries and keys alone; use transformers' own cache."
            )
    if store is None or store.length == 0:
        pad = None if store is None else padding(attention_mask)
        sparse = None
        if store is not None and not softcap and s_aux is None:
            sparse = store.prefill(query, key, value, scale=scaling, pad=pad)
        if sparse is not None:
            out = sparse.transpose(1, 2).contiguous()
        else:
            kwargs |= {"scaling": scaling, "softcap": softcap, "sinks": s_aux}
            out = dense_attention(module, query, key, value, attention_mask, **kwargs)
        if store is not None:
            store.append(key, value)
            store.settle(query, scale=scaling, pad=pad)
        return out, None
    pad = padding(attention_mask)
    out = _later(
        store, query, key, value, {"scale": scaling, "softcap": softcap or 0.0}, pad, s_aux
    )
    store.settle(query, scale=scaling, pad=pad)
    return out.transpose(1, 2).contiguous(), None


def _later(
    store: KvStore,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: dict[str, Any],
    pad: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention [b, h, n, d] of tokens after the first, which join the store."""
    if query.shape[2] == 1:
        store.append(key, value)
        if sinks is None:
            return store.attend(query, **how, pad=pad)
        out, lse = store.attend_lse(query, **how, pad=pad)
    else:
        past = store.attend_lse(query, **how, pad=pad)
        new = prefill_attention(query, key, value, **how)
        out, lse = merge_lse([past, new])
        store.append(key, value)
    return out if sinks is None else with_sinks(out, lse, sinks)


def _belongs(store: KvStore, module: Any) -> None:
    """A store stays with the layer that filled it; a copy of the layer will do."""
    if store.length and store.layer_of is not None and store.layer_of() is module:
        return
    mark = layer_mark(module)
    if store.plan is not None:
        store.plan.check(mark)
    if store.length:
        both = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
        if both and store.mark != mark:
            raise TamisUnsupported(
                "kv.Cache: cache: got one that a decoder's cross-attention shares, wanted one for the "
                "decoder's own tokens; pass transformers' EncoderDecoderCache(kv.Cache(...), "
                "DynamicCache(config=config))."
            )
        check_mark("kv.Cache", "cache", store.mark, mark)
    store.layer_of, store.mark = weakref.ref(module), mark


def padding(mask: Tensor | None) -> Tensor | None:
    """Padded tokens at the start of each sequence, [b]; None without padding.

    Args:
        mask: [b, 1, n, tokens] bool, true where attention may look; None for everything.

    Raises:
        TamisUnsupported: The mask hides other tokens than the first and the future ones.
    """
    if mask is None:
        return None
    known: tuple[int, Tensor | None] | None = getattr(mask, _SEEN, None)
    version = -1 if mask.is_inference() else mask._version
    if known is not None and known[0] == version >= 0:
        return known[1]
    last = mask[:, 0, -1]
    pad = last.int().argmax(-1)
    left = mask.dtype == torch.bool and bool((last.sum(-1) == last.shape[-1] - pad).all())
    if not left:
        raise TamisUnsupported(
            "kv: attention_mask: got one that hides tokens in the middle or at the end, wanted "
            "left padding; set tokenizer.padding_side = 'left'."
        )
    found = pad if bool(pad.any()) else None
    setattr(mask, _SEEN, (version, found))  # a step's layers share the mask: a device is asked once
    return found

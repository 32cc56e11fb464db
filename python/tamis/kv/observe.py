"""Runs texts through a model and shows each attention layer's queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tamis.errors import TamisTypeError, TamisValueError
from tamis.kv.dense import dense_attention
from tamis.kv.identity import check_attention

NAME = "tamis_observe"
Visit = Callable[[Any, Tensor, Tensor, Tensor, Tensor], None]
"""Gets the attention module, q [b, h, n, d], k, v [b, g, n, d] and the output [b, n, h, d]."""


@contextmanager
def observing(model: Any, visit: Visit) -> Iterator[None]:
    """While open, attention is dense as before and ``visit`` sees every layer of every forward pass."""
    check_attention("kv.calibrate", model)

    def forward(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        out = dense_attention(module, query, key, value, mask, sinks=s_aux, **kwargs)
        visit(module, query, key, value, out)
        return out, None

    before = model.config._attn_implementation
    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def token_ids(texts: Iterable[Any], tokenizer: Any, max_length: int) -> list[Tensor]:
    """Token ids [1, n] of texts, or of ids that are given as such, cut to ``max_length``.

    Raises:
        TamisValueError: There are none, or strings come without a tokenizer.
        TamisTypeError: An item is neither text nor ids.
    """
    made = []
    for text in [texts] if isinstance(texts, str) else texts:
        ids = _ids_of(text, tokenizer, max_length)
        ids = ids.view(-1, ids.shape[-1])[:, :max_length]
        if ids.numel():
            made.append(ids)
    if not made:
        raise TamisValueError("kv.calibrate: texts: got nothing, wanted at least one text.")
    return made


def _ids_of(text: Any, tokenizer: Any, max_length: int) -> Tensor:
    if isinstance(text, str):
        if tokenizer is None:
            raise TamisValueError(
                "kv.calibrate: texts: got strings without a tokenizer, wanted one; pass "
                "tokenizer=, or token ids."
            )
        # cut before tokenizing: a token has one character at least
        text = tokenizer(text[: 20 * max_length], return_tensors="pt")["input_ids"]
    elif isinstance(text, list) and all(type(i) is int for i in text):
        text = torch.tensor(text, dtype=torch.int64)
    if not isinstance(text, Tensor) or text.is_floating_point():
        raise TamisTypeError(
            f"kv.calibrate: texts: got an item of type {type(text).__name__}, wanted strings or "
            "token ids as lists or tensors."
        )
    return text

"""Samples: what a model is run on while it is calibrated, from texts, token ids or its own inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tamis.errors import TamisError, TamisTypeError, TamisValueError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Sample:
    """One forward pass: the model's keyword inputs, and which tokens are real ([b, s] or None)."""

    inputs: dict[str, Any]
    real: Tensor | None = None


def read_samples(
    data: Iterable[Any], model: nn.Module, tokenizer: Any = None, max_length: int = 512
) -> list[Sample]:
    """Model inputs of every item of `data`.

    Text is cut to `max_length` tokens, or the model's positions if fewer. Token ids longer than
    that are refused, not cut. Dicts are
    passed to the model as they are, except `labels`: a decoder beside an encoder reads them shifted,
    others do not need them. Their `attention_mask` says which tokens count.

    Args:
        data: Strings, lists or tensors of token ids ([s] or [b, s]), dicts of model inputs, or,
            for a model that is not Hugging Face's, float tensors.
        model: Says the device and the longest sequence.
        tokenizer: Needed for strings.
        max_length: Tokens per sequence.

    Raises:
        TamisValueError: No data, an empty item, a sequence too long, or text without tokenizer.
        TamisTypeError: An item, or data itself, is none of the kinds above.
    """
    if not isinstance(max_length, int) or max_length < 1:
        raise TamisValueError(
            f"calibrate: max_length: got {max_length!r}, wanted at least 1; it counts the tokens "
            "of a sequence."
        )
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    length = max_length
    if isinstance(positions, int) and positions > 0:  # XLNet's is -1
        length = min(max_length, positions)
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise TamisTypeError(
            f"calibrate: data: got one {type(data).__name__}, wanted an iterable of strings, "
            "token-id lists or dicts; wrap it in a list."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    items = [
        _sample(_with_decoder_inputs(item, shift), i, tokenizer, length, device)
        for i, item in enumerate(data)
    ]
    if not items:
        raise TamisValueError(
            "calibrate: data: got no samples, wanted at least one; pass a few texts like those "
            "the model will see."
        )
    return items


def _with_decoder_inputs(item: Any, shift: Callable[..., Tensor] | None) -> Any:
    """A dict with labels and what `shift` makes of them; labels of -100 are padding, as in a loss."""
    ours = ("decoder_input_ids", "decoder_inputs_embeds")
    if shift is None or not isinstance(item, Mapping) or any(key in item for key in ours):
        return item
    labels = item.get("labels")
    if labels is None:
        return item
    labels = _tensor(labels, "calibrate: data: labels", "token ids")
    labels = labels[None] if labels.dim() == 1 else labels
    made = {"decoder_input_ids": shift(labels=labels)}
    if bool((labels == -100).any()):
        made["decoder_attention_mask"] = (labels != -100).long()
    return {**made, **item}


def _sample(item: Any, index: int, tokenizer: Any, length: int, device: Any) -> Sample:
    where = f"calibrate: data[{index}]"
    if isinstance(item, str):
        if tokenizer is None:
            raise TamisValueError(
                f"{where}: got text without tokenizer, wanted both; pass tokenizer=."
            )
        encoded = tokenizer(item, truncation=True, max_length=length, return_tensors="pt")
        return _from_inputs({"input_ids": encoded["input_ids"].long()}, where, length, device)
    if isinstance(item, Mapping):
        inputs = {
            key: _tensor(
                item[key], f"{where}[{key!r}]", "a tensor or numbers for the model's forward"
            )
            for key in item
            if key != "labels"
        }
        return _from_inputs(inputs, where, length, device)
    ids = _tensor(item, where)
    if ids.dim() == 0:
        raise TamisTypeError(
            f"{where}: got one {type(item).__name__}, wanted a sequence of token ids; data is a list of "
            "sequences, so wrap a single one: data=[ids]."
        )
    if ids.is_floating_point() and ids.numel():  # an empty list of ids becomes a float tensor
        return Sample({"": ids.to(device)})
    return _from_inputs({"input_ids": ids}, where, length, device)


def _from_inputs(inputs: dict[str, Any], where: str, length: int, device: Any) -> Sample:
    for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        if key in inputs and inputs[key].dim() == 1:
            inputs[key] = inputs[key].unsqueeze(0)
    ids, real = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is not None and ids.numel() == 0:
        raise TamisValueError(f"{where}: got no tokens, wanted at least one; drop empty items.")
    if ids is not None and ids.shape[-1] > length:
        raise TamisValueError(
            f"{where}: got {ids.shape[-1]} tokens, wanted at most {length} (the smaller of "
            "max_length and the model's positions); cut the sequence or raise max_length."
        )
    if real is not None and real.dim() == 2 and not bool(real.any()):
        raise TamisValueError(
            f"{where}: attention_mask: got all zeros, wanted real tokens; drop empty items."
        )
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    if real is None or real.dim() != 2 or bool(real.all()):
        return Sample(moved)
    return Sample(moved, real.to(device).bool())


def _tensor(
    value: Any, where: str, wanted: str = "a string, token ids or a dict of model inputs"
) -> Any:
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TamisTypeError(
            f"{where}: got {type(value).__name__}, wanted {wanted}; convert it first, texts are strings "
            "outside of a dict."
        ) from error


def call_model(model: nn.Module, sample: Sample) -> Any:
    """Runs the model on one sample, without KV cache.

    Raises:
        TamisValueError: The model fails on it.
    """
    inputs = dict(sample.inputs)
    positional = [inputs.pop("")] if "" in inputs else []
    inner: Any = getattr(model, "get_base_model", lambda: model)()  # of peft's, which take anything
    if not positional and "use_cache" in inspect.signature(inner.forward).parameters:
        inputs["use_cache"] = False
    try:
        return model(*positional, **inputs)
    except (RuntimeError, TypeError, LookupError, ValueError, AttributeError) as error:
        if isinstance(error, TamisError):
            raise
        raise TamisValueError(
            f"calibrate: data: got a sample on which {type(model).__name__} fails "
            f"({str(error).strip().partition(chr(10))[0]}), wanted inputs that its forward takes; "
            "correct data."
        ) from error

"""What a transformers model carries while save_pretrained runs, and gets back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tamis.errors import TamisUnsupported
from tamis.nn import SparseLinear


@contextlib.contextmanager
def plugin(model: Any) -> Iterator[None]:
    """The quantizer attached while save_pretrained runs.

    Raises:
        TamisUnsupported: Another quantizer holds the weights.
    """
    from tamis import hf

    _refuse_other_quantizers(model)
    with _kept(model):
        hf.attach(model)
        model.hf_quantizer.marked = True
        yield


@contextlib.contextmanager
def plain_config(model: Any) -> Iterator[None]:
    """No quantizer and no quantization_config while save_pretrained runs.

    Raises:
        TamisUnsupported: Another quantizer holds the weights.
    """
    from tamis import hf

    _refuse_other_quantizers(model)
    with _kept(model):
        hf.join_again(model)
        for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
            if name in vars(owner):
                delattr(owner, name)
        if isinstance(model.get_output_embeddings(), SparseLinear):
            model.config.tie_word_embeddings = False
        yield


@contextlib.contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Puts back what save_pretrained and the plugin set on the model and its configuration."""
    names = ("quantization_config", "tie_word_embeddings", "architectures", "dtype")
    config = {name: vars(model.config)[name] for name in names if name in vars(model.config)}
    quantizer = vars(model).get("hf_quantizer")
    steps = vars(model).get("_weight_conversions")
    marked = vars(quantizer).get("marked") if quantizer is not None else None
    try:
        yield
    finally:
        for name in names:
            vars(model.config).pop(name, None)
        vars(model.config).update(config)
        vars(model).pop("hf_quantizer", None)
        vars(model).pop("_weight_conversions", None)
        if steps is not None:
            model._weight_conversions = steps
        if quantizer is not None:
            model.hf_quantizer = quantizer
            if marked is not None:
                quantizer.marked = marked


def _refuse_other_quantizers(model: Any) -> None:
    """Another quantizer's tensors are not ours to save."""
    from tamis import hf

    quantizer = vars(model).get("hf_quantizer")
    method = hf.method_of(getattr(quantizer, "quantization_config", None))
    if method in (None, "tamis") or hf.is_stale(model):
        return
    raise TamisUnsupported(
        f"save: model: got weights quantized by {method!r}, wanted floating-point weights; load "
        "the model without quantization (GGUF: quantization_config=GgufConfig(dequantize=True))."
    )

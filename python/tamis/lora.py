"""LoRA of peft on compressed layers: adapters train, what is stored stays as it is."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from tamis.errors import TamisTypeError, TamisUnsupported
from tamis.nn import SparseConv2d, SparseLinear
from tamis.transposed import is_conv1d

__all__ = ["for_sparse"]


def for_sparse(config: Any) -> Any:
    """The LoraConfig, which from now on takes compressed layers too; peft alone takes torch's only.

        model = get_peft_model(model, tamis.lora.for_sparse(LoraConfig(target_modules=["q_proj"])))
        folder = "adapter"
        config = tamis.lora.for_sparse(LoraConfig.from_pretrained(folder))
        model = PeftModel.from_pretrained(tamis.load("sparse"), folder, config=config)

    Any format will do, 4-bit groups too. Layers are found by name: peft's "all-linear" knows no others
    than torch's. Adapters are merged into dense weights only, after ``tamis.dense_(model)``.

    Args:
        config: A peft.LoraConfig that starts from random or zero adapters.

    Raises:
        TamisTypeError: ``config`` is no LoraConfig.
        TamisUnsupported: It computes with dense weights (DoRA, PiSSA, OLoRA, ...).
    """
    if type(config).__name__ != "LoraConfig" or not hasattr(config, "_register_custom_module"):
        raise TamisTypeError(
            f"lora.for_sparse: config: got {type(config).__name__}, wanted a peft.LoraConfig."
        )
    start = config.init_lora_weights
    if config.use_dora or not (isinstance(start, bool) or start in ("gaussian", "orthogonal")):
        raise TamisUnsupported(
            f"lora.for_sparse: config: got use_dora={config.use_dora} and init_lora_weights={start!r}, "
            "wanted False and one of True, False, 'gaussian', 'orthogonal'; the others compute with the "
            "dense weight."
        )
    config._register_custom_module({SparseLinear: _layer_class()})
    return config


@cache
def _layer_class() -> type:
    """Layer of peft for nn.Linear, but it merges into dense weights only."""
    from peft.tuners.lora.layer import Linear

    base_class: Any = Linear

    class SparseLora(base_class):  # type: ignore[misc]
        def __init__(self, base_layer: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(base_layer, SparseConv2d):
                raise TamisUnsupported(
                    "lora: target_modules: got a SparseConv2d, wanted linear layers; leave it out."
                )
            super().__init__(base_layer, *args, **kwargs)

        def merge(self, *args: Any, **kwargs: Any) -> None:
            base = self.get_base_layer()
            if not (isinstance(base, nn.Linear) or is_conv1d(base)):
                raise TamisUnsupported(
                    f"lora: merge: got a {type(base).__name__}, which keeps its zeros, wanted a dense "
                    "layer; call tamis.dense_(model) first."
                )
            self.fan_in_fan_out = is_conv1d(base)
            super().merge(*args, **kwargs)

    return SparseLora

"""LoRA of peft on compressed layers: adapters train, what is stored stays as it is."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.nn import SparseConv2d, SparseLinear
from tamis.scope import check_model
from tamis.transposed import is_conv1d

__all__ = ["for_sparse"]


def for_sparse(config: Any, model: nn.Module | None = None) -> Any:
    """The LoraConfig, which from now on takes compressed layers too; peft alone takes torch's only.

        model = get_peft_model(model, tamis.lora.for_sparse(LoraConfig(target_modules=["q_proj"])))
        folder = "adapter"
        config = tamis.lora.for_sparse(LoraConfig.from_pretrained(folder))
        model = PeftModel.from_pretrained(tamis.load("sparse"), folder, config=config)

    Any format will do, 4-bit groups too. Adapters are merged into dense weights only, after
    ``tamis.dense_(model)``.

    Args:
        config: A peft.LoraConfig that starts from random or zero adapters.
        model: The model to adapt, where target_modules="all-linear": its linear layers but the output
            layer are named in the config, compressed ones too; peft by itself finds torch's only.

    Raises:
        TamisTypeError: ``config`` is no LoraConfig, or ``model`` no module.
        TamisUnsupported: It computes with dense weights (DoRA, PiSSA, OLoRA, ...).
        TamisValueError: "all-linear" without a model.
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
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        if model is None:
            raise TamisValueError(
                "lora.for_sparse: model: got None for target_modules='all-linear', by which peft means "
                "torch's layers alone, wanted the model; pass for_sparse(config, model)."
            )
        check_model("lora.for_sparse", model)
        config.target_modules = _all_linear(model, config)
    config._register_custom_module({SparseLinear: _layer_class()})
    return config


def _all_linear(model: nn.Module, config: Any) -> set[str]:
    """Names of the layers that "all-linear" means: all but the output layer and what adapters hold."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = getattr(model, "get_output_embeddings", lambda: None)()
    heads = [head] if head is not None else []
    if head is None and config.task_type == "SEQ_CLS":
        heads = [getattr(model, name, None) for name in ("score", "classifier")]
    names: set[str] = set()
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside) or module in heads:
            continue
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, f"{name}.")
            module = module.get_base_layer()
        linear = isinstance(module, nn.Linear | SparseLinear) or is_conv1d(module)
        if linear and not isinstance(module, SparseConv2d):
            names.add(name)
    return names


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

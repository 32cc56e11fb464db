"""Transformers plugin: after ``import tamis.hf``, from_pretrained reads tamis checkpoints.

Importing this module registers a quantization config and a quantizer named "tamis" with
transformers. Nothing else in tamis has an effect on import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tamis import stored
from tamis.checkpoint import MANIFEST, MARKER, Checkpoint
from tamis.errors import TamisFileError, TamisUnsupported
from tamis.layout import Layout
from tamis.nn import SparseLinear
from tamis.skeleton import CALLER as _CALLER
from tamis.skeleton import check_loaded, check_safetensors, swap


@register_quantization_config("tamis")
class TamisConfig(QuantizationConfigMixin):
    """What config.json says about a sparse model, or how to sparsify a dense one as it loads.

    Args:
        method: For a dense checkpoint: a method that needs no data ("magnitude", "random").
        sparsity: Fraction of the weights to drop.
        pattern: "unstructured", "2:4", "block:16x16".
        targets: Names or "re:" patterns of the layers to sparsify; default all linear layers.
        ignore: The same, to leave alone.
        format: "auto" or the name of a storage format.
        modules: Layout of each sparse module by name; read from config.json, not set by users.
        format_version: Version of the file format that ``modules`` is in.
        tamis_version: The tamis that wrote the file.
        quant_method: "tamis".

    Raises:
        TamisFileError: The configuration is damaged or from a newer tamis.
    """

    def __init__(  # noqa: PLR0913 (the keys of config.json are its signature)
        self,
        method: str = "magnitude",
        *,
        sparsity: float = 0.5,
        pattern: str = "unstructured",
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = ("lm_head",),
        format: str = "auto",
        modules: Mapping[str, Any] | None = None,
        format_version: int = stored.FORMAT_VERSION,
        tamis_version: str | None = None,
        quant_method: str = "tamis",
    ) -> None:
        where = "config.json: quantization_config"
        given = {"format_version": format_version, "tamis_version": tamis_version}
        stored.check_version(given, where, _CALLER)
        self.quant_method: Any = quant_method
        self.layouts: dict[str, Layout] | None = None
        if modules is not None:
            self.layouts = stored.layouts_from_json(modules, where, _CALLER)
        self.recipe: dict[str, Any] = {
            "method": method,
            "sparsity": sparsity,
            "pattern": pattern,
            "targets": None if targets is None else list(targets),
            "ignore": list(ignore),
            "format": format,
        }

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Config from config.json's dict.

        Raises:
            TamisFileError: A key is unknown.
        """
        stored.check_version(config_dict, "config.json: quantization_config", _CALLER)
        known = {"quant_method", "format_version", "tamis_version", "modules"}
        unknown = sorted(map(str, config_dict.keys() - known))
        if unknown or "modules" not in config_dict:
            raise TamisFileError(
                f"{_CALLER}: config.json: quantization_config: got the keys {sorted(config_dict)}, "
                f"wanted {sorted(known)}; the file is damaged, copy or save it again."
            )
        config = cls(**config_dict)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """The dict that config.json holds."""
        if self.layouts is None:
            return {"quant_method": "tamis", **self.recipe}
        return {"quant_method": "tamis", **stored.to_json(self.layouts)}


@register_quantizer("tamis")
class TamisQuantizer(HfQuantizer):
    """Puts SparseLinear modules in place before the weights load, and checks them after."""

    requires_calibration = False
    quantization_config: TamisConfig
    marked = False  # whether tamis.json will describe the files that are being saved

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuses what cannot work before anything is loaded.

        Raises:
            TamisFileError: config.json lists no modules.
            TamisUnsupported: The method needs data, or modules go to disk.
        """
        places = kwargs.get("device_map")
        if isinstance(places, dict) and "disk" in places.values():
            raise TamisUnsupported(
                f"{_CALLER}: device_map: got 'disk', wanted devices; sparse layers cannot be "
                "offloaded to disk."
            )
        if not self.pre_quantized:
            _check_data_free(self.quantization_config.recipe["method"])

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: Iterable[str] | None = None,
        **kwargs: Any,
    ) -> PreTrainedModel:
        if self.pre_quantized:
            files = [str(file) for file in checkpoint_files or ()]
            check_safetensors(files)
            swap(model, self.quantization_config.layouts or {}, Checkpoint(files, _CALLER))
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        if self.pre_quantized:
            check_loaded(model)
        else:
            from tamis.rewrite import sparsify_

            sparsify_(model, **self.quantization_config.recipe)
            self.quantization_config.layouts = stored.layouts_of(model)
        vars(model).pop("is_quantized", None)  # by which transformers refuses .half() and .float()
        return model

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """Called by save_pretrained first: brings the configuration up to date with the model."""
        self.quantization_config.layouts = stored.layouts_of(model)
        model.config.quantization_config = self.quantization_config
        if isinstance(model.get_output_embeddings(), SparseLinear):
            model.config.tie_word_embeddings = False
        _keep_apart(model)
        return None, {MARKER: MANIFEST} if self.marked else {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> Any:
        from tamis.rewrite import dense_

        return dense_(model).to(dtype)

    def is_serializable(self) -> bool:
        """Sparse layers save as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Kept values are parameters."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Training the kept values themselves, no adapter needed."""
        return True

    @property
    def is_compileable(self) -> bool:
        """The operators trace."""
        return True


def follow(model: PreTrainedModel) -> None:
    """Attaches the plugin to a model that has sparse layers, detaches it from one without."""
    quantizer = vars(model).get("hf_quantizer")
    ours = isinstance(quantizer, TamisQuantizer)
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        if quantizer is None or is_stale(model):
            attach(model)
    elif ours:
        detach(model)


def attach(model: PreTrainedModel) -> None:
    """Makes ``model.save_pretrained`` write a tamis checkpoint; undone by ``detach``."""
    config = TamisConfig(modules={})
    config.layouts = stored.layouts_of(model)
    vars(model)["hf_quantizer"] = TamisQuantizer(config, pre_quantized=True)
    model.config.quantization_config = config


class _Apart(list[Any]):
    """What transformers does to names as it saves, without the steps that join or split tensors."""

    before: list[Any] | None  # what the model itself said


def _keep_apart(model: PreTrainedModel) -> None:
    """Lets save_pretrained rename tensors only: arrays of compressed weights are not joined or split.

    Else the q, k and v of BERTs stored as one matrix, or a gate and its up, would be lost.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange, WeightRenaming
    except ImportError:
        return
    own = vars(model).get("_weight_conversions")
    steps = own
    if steps is None:  # as transformers then finds them
        found = get_model_conversion_mapping(model, add_legacy=False)
        steps = [step for step in found if not isinstance(step, PrefixChange)]
    apart = _Apart(step for step in steps if isinstance(step, WeightRenaming))
    if len(apart) < len(steps):
        apart.before = own
        vars(model)["_weight_conversions"] = apart


def join_again(model: PreTrainedModel) -> None:
    """Undoes what saving sparse layers did to the way in which transformers names tensors."""
    steps = vars(model).get("_weight_conversions")
    if isinstance(steps, _Apart):
        vars(model)["_weight_conversions"] = steps.before


def detach(model: PreTrainedModel) -> None:
    """Makes ``model.save_pretrained`` write a stock checkpoint again, once no layer is sparse."""
    join_again(model)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            for name in ("quantization_config", "_is_quantized"):
                vars(module.config).pop(name, None)


def is_stale(model: PreTrainedModel) -> bool:
    """Whether the quantizer is what a GGUF file left on a model that it dequantized completely."""
    config = getattr(vars(model).get("hf_quantizer"), "quantization_config", None)
    return method_of(config) == "gguf" and all(
        value.is_floating_point() and "Gguf" not in type(value).__name__
        for value in model.parameters()
    )


def method_of(config: Any) -> str | None:
    """Name of the quantization method of a configuration object."""
    method = getattr(config, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def _check_data_free(method: str) -> None:
    from tamis import method as methods

    needs = methods.load(method).needs
    if needs:
        raise TamisUnsupported(
            f"{_CALLER}: quantization_config.method: got {method!r}, which needs calibration data, "
            "wanted 'magnitude' or 'random'; load the dense model and call "
            f"tamis.sparsify_(model, {method!r}, data=..., tokenizer=...)."
        )


__all__ = ["TamisConfig", "TamisQuantizer", "attach", "detach", "follow"]

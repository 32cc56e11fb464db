"""The empty model that from_pretrained fills: sparse layers put in place, and checked when full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tamis import stored
from tamis.checkpoint import Checkpoint
from tamis.convolution import as_matrix
from tamis.errors import TamisFileError
from tamis.experts import unstack
from tamis.layout import Layout
from tamis.nn import SparseConv2d, SparseLinear
from tamis.nn.conv import window_of
from tamis.ops.conv2d import Window
from tamis.transposed import as_linear, in_place_of, is_conv1d

CALLER = "from_pretrained"


def check_safetensors(files: list[str]) -> None:
    """Refuses every other kind of weights file.

    Raises:
        TamisFileError: A file is not .safetensors.
    """
    other = [file for file in files if not file.endswith(".safetensors")]
    if other or not files:
        raise TamisFileError(
            f"{CALLER}: weights: got {other or 'no files'}, wanted .safetensors files; tamis "
            "never reads pickles, save the model again with tamis.save."
        )


def swap(
    model: PreTrainedModel,
    layouts: Mapping[str, Layout],
    checkpoint: Checkpoint,
) -> None:
    """Replaces linear layers by empty SparseLinear modules of the stored sizes.

    Raises:
        TamisFileError: A layout, a name or a stored size does not fit the model.
    """
    unstack(model, layouts)
    names = _resolve(model, layouts)
    stored_as = stored_names(model, checkpoint, list(names))
    for name, layout in names.items():
        nnz = stored.check_stored(checkpoint, stored_as.get(name, name), layout)
        linear, window = _linear(model, name, layout)
        sparse = SparseLinear(layout, nnz, linear.bias is not None, "meta", linear.weight.dtype)
        if window is not None:
            sparse = SparseConv2d.from_layer(sparse, window)
        sparse.place = name
        model.set_submodule(name, in_place_of(model.get_submodule(name), sparse))
    _check_shapes(model, checkpoint)


def _resolve(model: PreTrainedModel, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
    """Layouts by module name of this class: a base model's names gain or lose its prefix."""
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    found = {}
    for name, layout in layouts.items():
        options = (name, prefix + name, name.removeprefix(prefix))
        match = next((option for option in options if option in modules), None)
        if match is not None:
            found[match] = layout
        elif type(model).__name__ in (model.config.architectures or []):
            raise TamisFileError(
                f"{CALLER}: config.json: modules: got {name!r}, wanted a module of "
                f"{type(model).__name__}; the file is damaged or from another model."
            )
    return found


def renames(model: PreTrainedModel, checkpoint: Checkpoint) -> bool:
    """Whether transformers calls, or stacks, some of the stored tensors otherwise in the model."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return False
    transforms = get_model_conversion_mapping(model)
    return any(t.rename_source_key(key)[0] != key for t in transforms for key in checkpoint.entries)


def stored_names(
    model: PreTrainedModel, checkpoint: Checkpoint, names: list[str]
) -> dict[str, str]:
    """Prefix in the files of each module; transformers renames tensors of some architectures."""
    wanted = {f"{name}.weight_values": name for name in names}
    if all(key in checkpoint for key in wanted):
        return {}
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:
        return {}
    renamings = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
    out = {}
    for key in checkpoint.entries:
        if key.endswith(".weight_values"):
            target, _ = rename_source_key(key, renamings, [], model.base_model_prefix, wanted)
            if target in wanted:
                out[wanted[target]] = key.removesuffix(".weight_values")
    return out


def _linear(model: PreTrainedModel, name: str, layout: Layout) -> tuple[nn.Linear, Window | None]:
    """The layer of that name; a convolution as the matrix of its weight, with its window."""
    module, window = model.get_submodule(name), None
    if isinstance(module, nn.Conv2d):
        window = window_of(module, CALLER)
        module = as_matrix(module)
    elif is_conv1d(module):
        module = as_linear(module)
    if not isinstance(module, nn.Linear):
        raise TamisFileError(
            f"{CALLER}: config.json: {name}: got a {type(module).__name__} in the model, wanted "
            "nn.Linear; the file is damaged or from another model."
        )
    if (module.out_features, module.in_features) != (layout.rows, layout.cols):
        raise TamisFileError(
            f"{CALLER}: config.json: {name}: got a layout of [{layout.rows}, {layout.cols}], "
            f"wanted [{module.out_features}, {module.in_features}] as in the model; the file is "
            "damaged or from another model."
        )
    return module, window


def _check_shapes(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    for name, tensor in model.state_dict().items():
        entry = checkpoint.entries.get(name)
        if entry is not None and entry.shape != tuple(tensor.shape):
            raise checkpoint.error(
                f"{entry.file.name}: {name}",
                f"shape {list(entry.shape)}",
                f"{list(tensor.shape)} as in {type(model).__name__}",
                "config.json and the weights are not of one model, copy the whole folder again.",
            )


def check_loaded(model: PreTrainedModel) -> None:
    """Refuses random weights, then checks every compressed weight before its first use.

    Raises:
        TamisFileError: A tensor did not come from the files, or contradicts another.
    """
    if type(model).__name__ in (model.config.architectures or []):
        _check_complete(model)
    for name, module in model.named_modules():
        if not isinstance(module, SparseLinear):
            continue
        missing = [
            key for key, value in module.state_dict(keep_vars=True).items() if not _is_loaded(value)
        ]
        if missing:
            raise _missing(f"{name}.{missing[0]}")
        if not module.layout.quantized:
            module.to(module.weight_values.dtype)  # transformers keeps some layers in float32
        arrays = {name: array.cpu() for name, array in _arrays(module).items()}
        stored.checked_matrix(module.layout, arrays, name, CALLER)


def _arrays(module: SparseLinear) -> dict[str, torch.Tensor]:
    names = ("values", *stored.COMPANIONS)
    named = {name: getattr(module, f"weight_{name}") for name in names}
    return {name: array.detach() for name, array in named.items() if array is not None}


def _check_complete(model: PreTrainedModel) -> None:
    ignored = model._keys_to_ignore_on_load_missing or ()
    for name, value in model.state_dict(keep_vars=True).items():
        if not _is_loaded(value) and not any(pattern in name for pattern in ignored):
            raise _missing(name)


def _is_loaded(value: Any) -> bool:
    """Transformers sets this flag on tensors that came from the files (or are tied to one)."""
    return getattr(value, "_is_hf_initialized", False) is True


def _missing(name: str) -> TamisFileError:
    return TamisFileError(
        f"{CALLER}: weights: got no tensor {name}, wanted every weight of the model; the files "
        "are incomplete, copy or save them again."
    )

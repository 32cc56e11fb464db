"""save, load, export: a sparse model as a folder of safetensors, and back, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tamis import checkpoint as files
from tamis import stored, writing
from tamis.atomic import check_path, replaced_folder
from tamis.attached import plain_config, plugin
from tamis.checkpoint import MANIFEST, MARKER, Checkpoint, read_json
from tamis.conversion import convert, model_class
from tamis.errors import (
    TamisError,
    TamisFileError,
    TamisTypeError,
    TamisUnsupported,
    TamisValueError,
)
from tamis.nn import SparseConv2d, SparseExperts, SparseLinear
from tamis.ops.spmm import TORCH_DTYPE
from tamis.restore import adopt, load_module
from tamis.scope import check_in_memory

if TYPE_CHECKING:
    from tamis.report import Report

__all__ = ["convert", "export", "load", "save"]

Folder = str | os.PathLike[str]


def save(
    model: nn.Module,
    dir: Folder,
    *,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    tokenizer: Any = None,
    report: Report | None = None,
) -> None:
    """Writes ``model`` to the folder ``dir``; ``load`` reads it back bit for bit.

    A transformers model becomes an ordinary Hugging Face folder (config.json, safetensors) that
    from_pretrained reads after ``import tamis.hf``; any other module becomes model.safetensors and
    tamis.json. The folder is written aside and renamed, so a failure leaves the disk as it was.

    Args:
        model: The model, with or without SparseLinear layers; left unchanged.
        dir: The folder to make.
        max_shard_size: Largest size of one weights file, in bytes or as "500MB".
        overwrite: Replace a model that is already there, the whole folder at once.
        tokenizer: Saved beside the model; by default the tokenizer files of the folder that the
            model was loaded from are copied.
        report: Saved as report.json.

    Raises:
        TamisTypeError: An argument has the wrong type.
        TamisValueError: ``max_shard_size`` is not a size.
        TamisFileError: The folder exists or cannot be written, or the disk is full.
        TamisUnsupported: The model holds what this format cannot.
    """
    _check_model(model, "save")
    _check_no_adapters(model, "save")
    check_path(dir, "save")
    size = writing.parse_size(max_shard_size)
    check_in_memory("save", model)
    sources = _sources(model, dir)
    with replaced_folder(dir, overwrite=overwrite, caller="save") as folder:
        writing.write_extras(folder, tokenizer, report, sources)
        if stored.is_transformers(model):
            _save_pretrained(model, folder, size)
        else:
            _save_module(model, folder, size)


def load(
    dir: Folder,
    *,
    model: nn.Module | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    verify: bool = True,
) -> Any:
    """The model in the folder ``dir``, in evaluation mode.

    Args:
        dir: A folder that ``save``, ``convert`` or save_pretrained wrote.
        model: Module to fill, for folders that hold no transformers model; its linear layers
            become SparseLinear where the file says so. Unchanged if anything is wrong.
        dtype: Element type of floating-point weights; by default as stored.
        device: Where the weights go; by default the CPU.
        verify: Compare the checksums that ``save`` stored; structure is always checked.

    Raises:
        TamisFileError: A file is missing, damaged, or from a newer tamis.
        TamisTypeError: An argument has the wrong type.
        TamisValueError: ``model`` is needed, or does not fit the files.
    """
    kind = _torch_dtype(dtype)
    check_path(dir, "load")
    _check_device(device)
    if model is not None:
        _check_model(model, "load")
    folder = Path(dir)
    checkpoint = Checkpoint.open(folder)
    manifest = _manifest(folder, checkpoint)
    config = _config(folder)
    if verify and manifest is not None:
        files.verify(checkpoint, folder, manifest)
    if model is None:
        if config is None:
            raise TamisValueError(
                f"load: model: got None, but {folder} holds no transformers model, wanted the "
                "module to fill; pass model=."
            )
        model = _from_pretrained(model_class(config, folder, "load"), folder, kind)
    elif config is not None and _is_renamed(model, checkpoint):
        adopt(model, _from_pretrained(type(model), folder, kind), "load")
    else:
        source = config.get("quantization_config", {}) if config is not None else manifest or {}
        load_module(model, checkpoint, source, kind)
    return model.to(device).eval() if device is not None else model.eval()


def export(
    model: nn.Module,
    dir: Folder,
    format: str = "dense",
    *,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    tokenizer: Any = None,
) -> None:
    """Writes a stock dense checkpoint, with the zeros in place, that loads without tamis.

    Args:
        model: The model; left unchanged.
        dir: The folder to make.
        format: "dense".
        max_shard_size: Largest size of one weights file, in bytes or as "500MB".
        overwrite: Replace a model that is already there, the whole folder at once.
        tokenizer: Saved beside the model, as in ``save``.

    Raises:
        TamisTypeError: An argument has the wrong type.
        TamisValueError: ``max_shard_size`` is not a size.
        TamisFileError: The folder exists or cannot be written, or the disk is full.
        TamisUnsupported: ``format`` is another one.
    """
    if format != "dense":
        raise TamisUnsupported(f"export: format: got {format!r}, wanted 'dense', all there is.")
    _check_model(model, "export")
    _check_no_adapters(model, "export")
    check_path(dir, "export")
    size = writing.parse_size(max_shard_size)
    check_in_memory("export", model)
    sources = _sources(model, dir)
    with replaced_folder(dir, overwrite=overwrite, caller="export") as folder:
        writing.write_extras(folder, tokenizer, None, sources)
        state = _dense_state(model)
        title = type(model).__name__
        if stored.is_transformers(model):
            with plain_config(model):
                model.save_pretrained(folder, state_dict=state, max_shard_size=size)  # type: ignore[operator]
            writing.write_readme(folder, title, "dense", title)
        else:
            tensors, _ = writing.separate(state)
            writing.write_shards(folder, tensors, size, marked=False)


# Checks of arguments and files


def _check_model(model: Any, caller: str) -> None:
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"{caller}: model: got {type(model).__name__}, wanted a torch.nn.Module."
        )


def _check_no_adapters(model: nn.Module, caller: str) -> None:
    kinds = {cls for module in model.modules() for cls in type(module).__mro__}
    if any(cls.__module__.startswith("peft.") for cls in kinds):
        raise TamisUnsupported(
            f"{caller}: model: got {type(model).__name__} with adapters of peft, wanted one without; save "
            "them by its own save_pretrained, and the model that its unload() or merge_and_unload() "
            "returns."
        )


def _torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None:
        return None
    found = TORCH_DTYPE.get(dtype, getattr(torch, dtype, None)) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.float16, torch.bfloat16):
        raise TamisTypeError(
            f"load: dtype: got {dtype!r}, wanted torch.float32, torch.float16 or torch.bfloat16."
        )
    return found


def _check_device(device: torch.device | str | None) -> None:
    """Refuses, before anything is read or filled, a device that this torch cannot use."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as err:
        raise TamisValueError(
            f"load: device: got {device!r} ({_first_line(err)}), wanted one that this torch can use."
        ) from err


def _manifest(folder: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """tamis.json, unless save_pretrained has rewritten the weights since it was made."""
    if not (folder / MANIFEST).is_file():
        return None
    if any(MARKER not in metadata for metadata in checkpoint.metadata.values()):
        return None
    manifest = read_json(folder / MANIFEST, "load")
    stored.check_version(manifest, str(folder / MANIFEST), "load")
    return manifest


def _config(folder: Path) -> dict[str, Any] | None:
    """config.json, its format version checked before transformers sees it."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json", "load")
    ours = config.get("quantization_config")
    if ours is not None and not isinstance(ours, dict):
        raise files.file_error(
            "load", f"{folder / 'config.json'}: quantization_config", type(ours).__name__,
            "a JSON object", "the file is damaged, copy or save it again.",
        )  # fmt: skip
    return config


# Transformers models


def _sources(model: nn.Module, dir: Folder) -> list[Path]:
    """Folders that may hold the model's tokenizer: where it came from, and where it goes."""
    origin = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    return [Path(path) for path in (origin, dir) if os.path.isdir(path)]


def _save_pretrained(model: Any, folder: Path, size: int) -> None:
    sparse = any(isinstance(module, SparseLinear) for module in model.modules())
    title = type(model).__name__
    with plugin(model) if sparse else plain_config(model):
        model.save_pretrained(folder, max_shard_size=size)
    writing.write_readme(folder, title, "sparse" if sparse else "dense", title)
    if sparse:
        writing.write_manifest(folder, "save", **stored.to_json({}))


def _is_renamed(model: Any, checkpoint: Checkpoint) -> bool:
    """Whether transformers gives some of these tensors other names or places in the model."""
    if not stored.is_transformers(model):
        return False
    from tamis.skeleton import renames

    return renames(model, checkpoint)


def _from_pretrained(cls: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    import tamis.hf as _plugin_registered  # noqa: F401

    try:
        return cls.from_pretrained(folder, dtype=dtype or "auto", local_files_only=True)
    except TamisFileError as err:
        raise TamisFileError(str(err).replace("from_pretrained:", "load:", 1)) from err
    except TamisError:
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError) as err:
        raise files.file_error(
            "load", str(folder), f"what transformers refuses ({_first_line(err)})",
            f"a checkpoint of {cls.__name__}", "copy or save the folder again.",
        ) from err  # fmt: skip


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0].rstrip(".")


# Any model


def _save_module(model: nn.Module, folder: Path, size: int) -> None:
    tensors, aliases = writing.separate(model.state_dict())
    writing.write_shards(folder, tensors, size, marked=True)
    data = stored.to_json(stored.layouts_of(model))
    writing.write_manifest(folder, "save", aliases=aliases, **data)
    writing.write_readme(folder, type(model).__name__, "module")


def _dense_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """state_dict with one dense weight in place of each module's companion tensors."""
    state = model.state_dict()
    experts = {f"{n}.": m for n, m in model.named_modules() if isinstance(m, SparseExperts)}
    for prefix, module in experts.items():
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]
        stack = module.to_stack().state_dict()
        state |= {f"{prefix}{key}": value for key, value in stack.items()}
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear) and not name.startswith(tuple(experts)):
            for array in module.layout.array_names:
                del state[f"{name}.weight_{array}"]
            dense = module.to_conv() if isinstance(module, SparseConv2d) else module.to_linear()
            weight = dense.weight.detach()
            state[f"{name}.weight"] = weight.t().contiguous() if module.transposed else weight
    return state

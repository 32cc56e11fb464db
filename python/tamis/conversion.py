"""convert: one checkpoint folder into another, shard by shard, never the whole dense model."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tamis import legacy, stored, writing
from tamis.atomic import check_path, replaced_folder
from tamis.checkpoint import Checkpoint, file_error, read_json
from tamis.errors import TamisUnsupported, TamisValueError
from tamis.experts import is_expert
from tamis.layout import FORMATS, Layout
from tamis.ops.tensors import DTYPE_NAME
from tamis.report import LayerReport, Report, host_facts
from tamis.tensor.compress import compress
from tamis.tensor.matrix import SparseMatrix
from tamis.transposed import is_conv1d, is_linear

_CALLER = "convert"
_CHOICES = ("auto", "dense", *FORMATS)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Keys of config.json that say how weights are stored.
_STORAGE_KEYS = ("quantization_config", "sparsity_config", "compression_config")
_CONFIGS = ("generation_config.json",)

Weight = torch.Tensor | SparseMatrix


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    format: str = "auto",
    overwrite: bool = False,
) -> Report:
    """Rewrites the transformers checkpoint ``src`` as ``dst``, one shard in memory at a time.

    Reads tamis checkpoints, stock dense ones (zeros in their linear layers become sparsity; the
    output layer stays dense) and the orphaned "sparse-bitmask" and "sparse-24-bitmask" files of
    compressed-tensors.

    Args:
        src: Folder with config.json and safetensors.
        dst: Folder to make; the tokenizer is copied along.
        format: "auto" keeps compressed weights as they are and stores each dense linear layer in
            the smallest format, dense included. "dense" makes a stock checkpoint that loads
            without tamis. "bitmap", "csr", "csr8", "nm" (2:4), "block" (16x16) or "groupq" (4-bit
            codes in groups of 16 inputs) force that one.
        overwrite: Replace a model that is already there.

    Returns:
        A row for each linear layer. ``metrics["left_dense"]`` names the other matrices but embeddings
        and the output layer, such as experts, which ``sparsify_`` takes and this does not.

    Raises:
        TamisValueError: ``format`` is not one of these, or a weight does not fit it.
        TamisFileError: A file is missing or damaged, or ``dst`` cannot be written.
        TamisUnsupported: ``src`` is quantized in a way that tamis does not read.
    """
    if format not in _CHOICES:
        raise TamisValueError(
            f"convert: format: got {format!r}, wanted one of {', '.join(_CHOICES)}."
        )
    check_path(src, _CALLER)
    source = _Source.open(Path(src))
    if format == "dense" and source.experts:
        raise TamisUnsupported(
            f"{_CALLER}: {src}: got experts stored one by one, wanted a model without, as transformers "
            "stacks them; use tamis.export(tamis.load(src), dst)."
        )
    with replaced_folder(dst, overwrite=overwrite, caller=_CALLER) as folder:
        layouts: dict[str, Layout] = {}
        weight_map: dict[str, str] = {}
        size, report = 0, Report(f"converted to {format}", host=host_facts())
        left: dict[str, int] = {}
        for file in source.checkpoint.files:
            tensors: dict[str, torch.Tensor] = {}
            for name, weight in source.weights(file):
                made = _encode(name, weight, format, source, layouts)
                _describe(name, weight, made, source, layouts, report, left)
                tensors |= made
            size += sum(t.numel() * t.element_size() for t in tensors.values())
            weight_map |= dict.fromkeys(tensors, file.name)
            writing.write_shard(folder / file.name, tensors, marked=format != "dense")
        if len(source.checkpoint.files) > 1:
            writing.write_index(folder, weight_map, size)
        _write_rest(source, folder, layouts, format)
    if left:
        report.metrics |= {"left_dense": ", ".join(left), "left_dense_bytes": sum(left.values())}
    return report


@dataclass(frozen=True)
class _Source:
    """A checkpoint to read: its weights in whatever form it stores them."""

    folder: Path
    config: dict[str, Any]
    checkpoint: Checkpoint
    layouts: dict[str, Layout]  # compressed modules of a tamis checkpoint, as the files name them
    names: dict[str, str]  # what the model calls those that transformers renames in files
    linears: frozenset[str]  # modules that may be stored compressed
    transposed: frozenset[str]  # those whose dense weight is [in, out]
    experts: frozenset[str]  # those that are one expert of a stack
    convs: dict[str, torch.Size]  # shapes of convolutions' weights, as the model names them
    apart: frozenset[str]  # embeddings and the output layer

    @classmethod
    def open(cls, folder: Path) -> _Source:
        checkpoint = Checkpoint.open(folder, _CALLER)
        config = read_json(folder / "config.json", _CALLER)
        stored_as = config.get("quantization_config") or {}
        layouts: dict[str, Layout] = {}
        if stored_as.get("quant_method") == "tamis":
            where = f"{folder / 'config.json'}: quantization_config"
            stored.check_version(stored_as, where, _CALLER)
            layouts = stored.layouts_from_json(stored_as.get("modules"), where, _CALLER)
        else:
            legacy.check_config(config, checkpoint)
        model = empty_model(folder, _CALLER)
        linears, transposed = _linears(model)
        convs = {n: m.weight.shape for n, m in model.named_modules() if type(m) is torch.nn.Conv2d}
        experts = frozenset(filter(is_expert, layouts.keys() - linears))
        apart = _apart(model)
        names = _renamed(model, checkpoint, layouts)
        filed = {name: file for file, name in names.items()}
        layouts = {filed.get(name, name): layout for name, layout in layouts.items()}
        linears |= layouts.keys()
        return cls(
            folder, config, checkpoint, layouts, names, linears, transposed, experts, convs, apart
        )  # fmt: skip

    def weights(self, file: Path) -> Iterator[tuple[str, Weight]]:
        """State-dict name and value of every weight whose values lie in ``file``."""
        ours = {
            f"{module}.weight_{array}"
            for module, layout in self.layouts.items()
            for array in layout.array_names
        }
        for name, entry in self.checkpoint.entries.items():
            if entry.file != file:
                continue
            if name in ours:
                module = name.removesuffix(".weight_values")
                if module != name:
                    layout = self.layouts[module]
                    yield f"{module}.weight", stored.read_matrix(self.checkpoint, module, layout)
            elif legacy.is_values(name, self.checkpoint):
                yield legacy.read(name, self.checkpoint)
            elif not legacy.is_companion(name, self.checkpoint):
                yield name, stored.tensor(self.checkpoint, name)


def _renamed(model: Any, checkpoint: Checkpoint, layouts: Mapping[str, Layout]) -> dict[str, str]:
    """Compressed modules that have another name in the files, by that."""
    if not layouts:
        return {}
    from tamis.skeleton import stored_names

    return {file: name for name, file in stored_names(model, checkpoint, list(layouts)).items()}


def _linears(model: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the linear layers, the output layer left out; of those that are Conv1D among them."""
    output = model.get_output_embeddings()
    modules = [(name, module) for name, module in model.named_modules() if module is not output]
    transposed = frozenset(name for name, module in modules if is_conv1d(module))
    linears = frozenset(name for name, module in modules if is_linear(module))
    return linears | transposed, transposed


def _apart(model: Any) -> frozenset[str]:
    """Names of the embeddings and of the output layer."""
    output = model.get_output_embeddings()
    return frozenset(
        name
        for name, module in model.named_modules()
        if module is output or isinstance(module, torch.nn.Embedding)
    )


def model_class(config: Mapping[str, Any], folder: Path, caller: str) -> Any:
    """Class of transformers that config.json names.

    Raises:
        TamisFileError: It names none that is installed.
    """
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
        return cls
    raise file_error(
        caller, f"{folder / 'config.json'}: architectures", repr(names),
        f"a model class of transformers {transformers.__version__}",
        "for a class of your own, import tamis.hf and call its from_pretrained.",
    )  # fmt: skip


def empty_model(folder: Path, caller: str) -> Any:
    """The model of config.json on the meta device.

    Raises:
        TamisFileError: config.json is damaged or names no class of transformers.
    """
    import transformers

    cls = model_class(read_json(folder / "config.json", caller), folder, caller)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise file_error(
            caller, str(folder / "config.json"), f"what transformers refuses ({err})",
            "a model configuration", "copy or save it again.",
        ) from err  # fmt: skip
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        return cls(config)


def _encode(
    name: str,
    weight: Weight,
    format: str,
    source: _Source,
    layouts: dict[str, Layout],
) -> dict[str, torch.Tensor]:
    """Tensors that store one weight in the wanted format; adds its layout to ``layouts``."""
    module = name.removesuffix(".weight")
    compressible = module != name and module in source.linears
    turned = compressible and module in source.transposed
    if turned and isinstance(weight, torch.Tensor):
        weight = weight.t().contiguous()
    window = source.convs.get(source.names.get(module, module))
    if window is not None and isinstance(weight, SparseMatrix):  # one format suits convolutions
        if format == "dense":
            return {name: weight.to_dense().reshape(window)}
        format = weight.layout.format
    made = _compressed(name, weight, format) if compressible and format != "dense" else None
    if made is None:
        dense = weight.to_dense() if isinstance(weight, SparseMatrix) else weight
        return {name: dense.t().contiguous() if turned else dense}
    layouts[source.names.get(module, module)] = made.layout
    return {f"{module}.weight_{key}": array for key, array in made.arrays.items()}


def _describe(
    name: str,
    weight: Weight,
    made: Mapping[str, torch.Tensor],
    source: _Source,
    layouts: Mapping[str, Layout],
    report: Report,
    left: dict[str, int],
) -> None:
    """Adds a linear layer's row to the report, or the bytes of another matrix to ``left``."""
    module = name.removesuffix(".weight")
    if len(weight.shape) < 2 or module in source.apart:
        return
    nbytes = sum(x.numel() * x.element_size() for x in made.values())
    if module == name or module not in source.linears:
        alike = re.sub(r"\.\d+(?=\.|$)", ".*", module)
        left[alike] = left.get(alike, 0) + nbytes
        return
    rows, cols = weight.shape[0], math.prod(weight.shape[1:])
    layout = layouts.get(source.names.get(module, module))
    if isinstance(weight, SparseMatrix):
        nnz = weight.nnz
    else:
        nnz = int(weight.count_nonzero())
    dense = next(iter(made.values()))
    label = layout.label if layout else f"dense {DTYPE_NAME.get(dense.dtype, dense.dtype)}"
    dense_nbytes = layout.dense_nbytes if layout else nbytes
    sparsity = 1 - nnz / (rows * cols)
    report.layers.append(LayerReport(module, (rows, cols), sparsity, label, nbytes, dense_nbytes))


def _compressed(name: str, weight: Weight, format: str) -> SparseMatrix | None:
    """The weight in ``format``; None where dense is as small."""
    if isinstance(weight, SparseMatrix):
        if format in ("auto", weight.layout.format):
            return weight
        return compress(weight.to_dense(), format)
    if weight.dtype not in _FLOATS:
        return None
    try:
        made = compress(weight, format)
    except TamisValueError as err:
        raise TamisValueError(f"convert: {name}: {err}") from err
    return None if format == "auto" and made.nbytes >= made.dense_nbytes else made


def _write_rest(source: _Source, folder: Path, layouts: dict[str, Layout], format: str) -> None:
    config = {key: value for key, value in source.config.items() if key not in _STORAGE_KEYS}
    if layouts:
        config["quantization_config"] = {"quant_method": "tamis", **stored.to_json(layouts)}
    writing.write_json(folder / "config.json", config)
    for name in _CONFIGS:
        if (source.folder / name).is_file():
            writing.write_json(folder / name, read_json(source.folder / name, _CALLER))
    writing.copy_tokenizer(folder, [source.folder])
    title = str((config.get("architectures") or ["Model"])[0])
    writing.write_readme(folder, title, "sparse" if layouts else "dense", title)
    if format != "dense":
        writing.write_manifest(folder, _CALLER, **stored.to_json({}))

"""What a saved folder holds: weight shards, tamis.json with checksums, README, tokenizer files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from tamis import __version__
from tamis.checkpoint import INDEX, MANIFEST, MARKER, WEIGHTS, Checkpoint, file_crc32
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError

if TYPE_CHECKING:
    from tamis.report import Report

# Files next to a model's weights that belong to its tokenizer or processor.
_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
# Files whose bytes decide what load returns; tamis.json holds their checksums.
_DECISIVE = ("config.json", "generation_config.json", INDEX)

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_README = """# {title}

Weights stored by tamis {version}: {what}.

Load it with

```python
{code}
```

{note}
"""
_HF_CODE = """import tamis

model = tamis.load("path/to/this/folder")

# or, with transformers alone once the plugin is imported:
import tamis.hf
from transformers import {cls}

model = {cls}.from_pretrained("path/to/this/folder")"""
_HF_NOTE = """Without `import tamis.hf`, transformers does not know the format and would go on with random
weights. For a stock dense checkpoint that needs no tamis:
`tamis.export(model, "path/to/dense", format="dense")`."""
_MODULE_CODE = """import tamis

model = tamis.load("path/to/this/folder", model=skeleton)  # skeleton: the module, any weights"""
_DENSE_CODE = """from transformers import {cls}

model = {cls}.from_pretrained("path/to/this/folder")"""


def parse_size(size: int | str) -> int:
    """Bytes of "500MB", "5GB" or a plain number.

    Raises:
        TamisValueError: Not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?B?)\s*", str(size).upper())
    unit = match.group(2) if match else ""
    nbytes = int(match.group(1)) * _UNITS.get(unit, 0) if match else 0
    if nbytes <= 0:
        raise TamisValueError(
            f"save: max_shard_size: got {size!r}, wanted a number of bytes or a size like '5GB'."
        )
    return nbytes


def separate(tensors: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that safetensors can store, and for tied names the name that is stored instead.

    Raises:
        TamisUnsupported: A state_dict entry is not a dense tensor.
    """
    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise TamisUnsupported(
                f"save: model: got {type(value).__name__} as {name} in its state_dict, wanted "
                "dense tensors only."
            )
        value = value.detach()
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
        if value.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        storage = value.untyped_storage().data_ptr()
        stored[name] = value.clone() if storage in storages else value.contiguous()
        storages.add(storage)
        seen[key] = name
    return stored, aliases


def write_shards(
    folder: Path, tensors: dict[str, torch.Tensor], max_shard_size: int, *, marked: bool
) -> None:
    """Writes model.safetensors, or shards of at most ``max_shard_size`` bytes and their index."""
    shards = list(_split(tensors, max_shard_size)) or [{}]
    total = len(shards)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = WEIGHTS if total == 1 else f"model-{i:05d}-of-{total:05d}.safetensors"
        write_shard(folder / file, shard, marked=marked)
        weight_map |= dict.fromkeys(shard, file)
    if total > 1:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        write_index(folder, weight_map, size)


def write_shard(path: Path, tensors: dict[str, torch.Tensor], *, marked: bool) -> None:
    """One safetensors file; ``marked`` says that tamis.json describes it."""
    metadata = {"format": "pt"} | ({MARKER: MANIFEST} if marked else {})
    save_file(tensors, path, metadata=metadata)


def write_index(folder: Path, weight_map: dict[str, str], size: int) -> None:
    """The index that maps each tensor to its shard."""
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Indented JSON with sorted keys."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_manifest(folder: Path, caller: str, **extra: Any) -> None:
    """tamis.json: checksums of what lies in the folder, and ``extra``."""
    decisive = [name for name in _DECISIVE if (folder / name).is_file()]
    data = {
        **extra,
        "files": {name: file_crc32(folder / name) for name in decisive},
        "tensors": Checkpoint.open(folder, caller).checksums(),
    }
    write_json(folder / MANIFEST, data)


def write_readme(folder: Path, title: str, kind: str, cls: str = "AutoModelForCausalLM") -> None:
    """README.md that tells how to load the folder.

    Args:
        folder: Where it goes.
        title: Name of the model class.
        kind: "sparse", "dense" (a stock checkpoint) or "module" (no transformers model).
        cls: Class of transformers that loads it.
    """
    what, code, note = {
        "sparse": ("compressed sparse weights in plain safetensors files", _HF_CODE, _HF_NOTE),
        "dense": ("a stock dense checkpoint with zeros in its weights", _DENSE_CODE, ""),
        "module": ("plain safetensors files and tamis.json", _MODULE_CODE, ""),
    }[kind]
    text = _README.format(
        title=title, version=__version__, what=what, code=code.format(cls=cls), note=note
    )
    (folder / "README.md").write_text(text.rstrip() + "\n", encoding="utf-8")


def write_extras(
    folder: Path, tokenizer: Any, report: Report | None, sources: Iterable[Path]
) -> None:
    """The tokenizer, given or found in one of ``sources``, and report.json.

    Raises:
        TamisTypeError: ``tokenizer`` or ``report`` cannot be saved.
    """
    for name, value, method in (
        ("tokenizer", tokenizer, "save_pretrained"),
        ("report", report, "to_json"),
    ):
        if value is not None and not hasattr(value, method):
            raise TamisTypeError(
                f"save: {name}: got {type(value).__name__}, wanted an object with {method}()."
            )
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    else:
        copy_tokenizer(folder, sources)
    if report is not None:
        report.to_json(folder / "report.json")


def copy_tokenizer(folder: Path, sources: Iterable[Path]) -> None:
    """Copies tokenizer and processor files from the first of ``sources`` that has some."""
    for source in sources:
        found = [source / name for name in _COMPANIONS if (source / name).is_file()]
        if found:
            for path in found:
                shutil.copyfile(path, folder / path.name)
            return


def _split(
    tensors: dict[str, torch.Tensor], max_shard_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, value in tensors.items():
        nbytes = value.numel() * value.element_size()
        if shard and size + nbytes > max_shard_size:
            yield shard
            shard, size = {}, 0
        shard[name] = value
        size += nbytes
    if shard:
        yield shard

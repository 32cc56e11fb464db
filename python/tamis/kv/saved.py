"""A Cache as one safetensors file: a long prompt, compressed once and continued another day.

Tensors are named ``<layer>.<rows>`` and hold exactly the rows of a store (``keys``, ``values``,
``records``, ``positions``, ...), ``<layer>.select.<rows>`` what it estimates scores from,
``<layer>.past.<rows>`` older tokens that are held otherwise. The metadata
entry ``tamis_kv`` holds lengths, marks of the model's layers and a checksum of each tensor.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tamis.checkpoint import Checkpoint, file_error
from tamis.errors import TamisFileError, TamisUnsupported
from tamis.kv.kv_store import KvStore
from tamis.kv.rows import Rows
from tamis.kv.saved_checks import check_store
from tamis.kv.selection import Selection

if TYPE_CHECKING:
    from tamis.kv.cache import Cache

ENTRY, VERSION = "tamis_kv", 1
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_DAMAGED = "the file is damaged, copy or save it again."


def save(cache: Cache, path: Path) -> None:
    """Writes all of it, or leaves what was there.

    Raises:
        TamisUnsupported: A layer is neither a store nor sliding-window attention.
        TamisFileError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    layers = []
    for i, layer in enumerate(cache.layers):
        facts, held = _state(layer)
        layers.append(facts)
        tensors |= {f"{i}.{name}": x.cpu().contiguous() for name, x in held.items()}
    facts = {
        "version": VERSION,
        "method": describe(cache.recipe),
        "budget": cache.budget,
        "layers": layers,
        "crc32": {name: _crc32(name, x) for name, x in tensors.items()},
    }
    text = json.dumps(facts, sort_keys=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tamis")
    try:
        save_file(tensors, part, metadata={ENTRY: text, f"{ENTRY}_crc32": _text_crc(text)})
        part.replace(path)
    except Exception as error:  # safetensors has its own class for a full disk
        part.unlink(missing_ok=True)
        first = str(error).strip().split("\n")[0]
        raise TamisFileError(
            f"kv.Cache.save: path: got {path} ({first}), wanted a file that can be written; what was "
            "there is unchanged."
        ) from error


def load(cache: Cache, path: Path) -> None:
    """Fills the cache with what ``save`` wrote; it changes only if everything is right.

    Raises:
        TamisFileError: The file is missing, damaged, truncated, or of another method or model.
    """
    if not path.is_file():
        raise file_error(
            "kv.Cache.load", str(path), "no such file", "a saved cache", "check the path."
        )
    file = Checkpoint([path], "kv.Cache.load")
    facts = _facts(file, path)
    for what, got, wanted in (
        ("budget", facts["budget"], cache.budget),
        ("method", facts["method"], describe(cache.recipe)),
        ("layers", len(facts["layers"]), len(cache.layers)),
    ):
        if got != wanted:
            raise file_error(
                "kv.Cache.load", f"{path}: {what}", str(got), str(wanted),
                "make the cache as the saved one was, from the same model's config.",
            )  # fmt: skip
    _check_bytes(file, facts["crc32"], path)
    made = [_made(layer, i, file, facts["layers"][i]) for i, layer in enumerate(cache.layers)]
    for layer, new in zip(cache.layers, made, strict=True):
        vars(layer).update(new)


def describe(recipe: Any) -> str:
    """A recipe as text that two processes agree on: functions by their names."""
    if is_dataclass(recipe):
        inner = (f"{f.name}={describe(getattr(recipe, f.name))}" for f in fields(recipe))
        return f"{type(recipe).__name__}({', '.join(inner)})"
    if callable(recipe):
        return f"{recipe.__module__}.{recipe.__qualname__}"
    return repr(recipe)


def _state(layer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers and tensors of one layer."""
    store: KvStore | None = getattr(layer, "store", None)
    if store is None:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise TamisUnsupported(
                f"kv.Cache.save: got a layer of kind {type(layer).__name__}, wanted attention; "
                "use copy.deepcopy(cache)."
            )
        facts = {"length": layer.get_seq_length(), "mark": ""}
        held = {"keys": layer.keys, "values": layer.values} if layer.is_initialized else {}
        return facts, held
    facts = {"length": store.length, "mark": store.mark}
    held = {name: rows.view for name, rows in store.rows.items()}
    if store.selection is not None:
        facts["labelled"] = store.selection.labelled
        window = store.selection.window
        facts |= {} if window is None else {"slot": window.slot, "steps": window.steps}
        held |= {f"select.{name}": rows.view for name, rows in store.selection.rows.items()}
        if store.selection.channels is not None:
            held["select.channels"] = store.selection.channels
    if store.past is not None:
        held |= {f"past.{name}": rows.view for name, rows in store.past.rows.items()}
    return facts, held


def _made(layer: Any, i: int, file: Checkpoint, facts: dict[str, Any]) -> dict[str, Any]:
    """Attributes of layer i as saved."""
    where = f"{file.files[0]}: layer {i}"
    prefix = f"{i}."
    held = {n[len(prefix) :]: _tensor(file, n) for n in file.entries if n.startswith(prefix)}
    length = _number(facts, "length", where)
    old: KvStore | None = getattr(layer, "store", None)
    if old is None:
        return _sliding(layer, held, length, where)
    new = old.fresh()
    new.length, new.mark = length, str(facts.get("mark", ""))
    new.rows = {n: Rows(x) for n, x in held.items() if "." not in n}
    chosen, past = _below("select.", held), _below("past.", held)
    if new.past is not None:
        new.past.rows, past = {name: Rows(x) for name, x in past.items()}, {}
    if new.selection is not None:
        _select(new.selection, chosen, facts, where)
        chosen = {}
    check_store(new, layer.config, where, surplus=[*chosen, *past])
    if new.tier is not None:
        for name in ("keys", "values"):
            if name in new.rows:
                new.rows[name] = new.tier.rows(new.rows[name].view)
    made = {"store": new, "is_initialized": length > 0}
    if length:
        made |= {"dtype": held["keys"].dtype, "device": held["keys"].device}
    return made


def _select(
    selection: Selection, held: dict[str, Tensor], facts: dict[str, Any], where: str
) -> None:
    selection.labelled = _number(facts, "labelled", where)
    window = selection.window
    if window is not None:
        window.slot = _number(facts, "slot", where) % window.how.slots
        window.steps = _number(facts, "steps", where)
    selection.channels = held.pop("channels", None)
    selection.rows = {name: Rows(x) for name, x in held.items()}


def _below(prefix: str, held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): x for n, x in held.items() if n.startswith(prefix)}


def _sliding(layer: Any, held: dict[str, Tensor], length: int, where: str) -> dict[str, Any]:
    """Attributes of one of transformers' own attention layers."""
    window = getattr(layer, "sliding_window", None)
    seen = {} if window is None else {"cumulative_length": length}
    if not held and length == 0:
        return {"keys": None, "values": None, "is_initialized": False} | seen
    tokens = length if window is None else min(length, window - 1)
    keys, values = held.get("keys"), held.get("values")
    if keys is None or values is None or len(held) != 2 or keys.dim() != 4:
        raise file_error("kv.Cache.load", where, f"{sorted(held)}", "keys and values", _DAMAGED)
    if keys.shape != values.shape or keys.dtype != values.dtype or keys.shape[2] != tokens:
        raise file_error(
            "kv.Cache.load", where, f"shapes {list(keys.shape)} and {list(values.shape)}",
            f"{tokens} tokens in both", _DAMAGED,
        )  # fmt: skip
    made = {"keys": keys, "values": values, "is_initialized": True}
    return made | {"dtype": keys.dtype, "device": keys.device} | seen


def _facts(file: Checkpoint, path: Path) -> dict[str, Any]:
    metadata = file.metadata[path]
    text = metadata.get(ENTRY, "")
    if not text:
        raise file_error(
            "kv.Cache.load",
            str(path),
            "no cache in it",
            "a file of kv.Cache.save",
            "check the path.",
        )
    try:
        if _text_crc(text) != metadata.get(f"{ENTRY}_crc32"):
            raise ValueError("its checksum differs")
        facts = json.loads(text)
        if facts["version"] != VERSION:
            raise ValueError(f"version {facts['version']}, this tamis reads {VERSION}")
        if not all(isinstance(each, dict) for each in (facts["crc32"], *facts["layers"])):
            raise TypeError("not objects")
        facts["method"], facts["budget"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise file_error(
            "kv.Cache.load", f"{path}: {ENTRY}", f"broken facts ({error})", "as saved", _DAMAGED
        ) from None
    found: dict[str, Any] = facts
    return found


def _check_bytes(file: Checkpoint, wanted: dict[str, Any], path: Path) -> None:
    found = file.checksums() if file.entries else {}
    if found != wanted:
        odd = min(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        raise file_error(
            "kv.Cache.load", f"{path}: {odd}", f"checksum {found.get(odd, 'of no such tensor')}",
            f"{wanted.get(odd, 'no such tensor')} as saved", _DAMAGED,
        )  # fmt: skip


def _number(facts: dict[str, Any], name: str, where: str) -> int:
    value = facts.get(name)
    if type(value) is not int or not 0 <= value < 2**31:
        raise file_error("kv.Cache.load", where, f"{name} {value!r}", "a number", _DAMAGED)
    return value


def _tensor(file: Checkpoint, name: str) -> Tensor:
    """A copy in memory, which the file cannot change any more."""
    entry = file.entries[name]
    if entry.dtype not in _DTYPES:
        raise file_error(
            "kv.Cache.load", f"{file.files[0]}: {name}", entry.dtype, f"one of {list(_DTYPES)}",
            _DAMAGED,
        )  # fmt: skip
    out = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    if out.numel():
        out.view(-1).view(torch.uint8).copy_(torch.from_numpy(file.raw(name)))
    return out


def _crc32(name: str, x: Tensor) -> str:
    """As ``Checkpoint.crc32`` finds it in the file."""
    if x.dtype not in _NAMES:
        raise TamisUnsupported(
            f"kv.Cache.save: {name}: got {x.dtype}, wanted one of {list(_NAMES)}; use "
            "copy.deepcopy(cache)."
        )
    crc = zlib.crc32(f"{name}|{_NAMES[x.dtype]}|{list(x.shape)}".encode())
    if x.numel():
        crc = zlib.crc32(x.view(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _text_crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"

"""What must hold between the tensors of a past before a kernel sees them; files are untrusted."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.checkpoint import file_error
from tamis.kv.classes import TwoClasses
from tamis.kv.kv_store import KvStore
from tamis.kv.lowrank import LowRankPast
from tamis.kv.past import Past
from tamis.kv.ragged import Ragged
from tamis.ops.kv_quantize import page_layout

_Wanted = dict[str, tuple[tuple[int, ...], torch.dtype]]


def check_past(past: Past, store: KvStore, where: str) -> None:
    """Refuses a past whose parts disagree with each other or with the tail of its store.

    Raises:
        TamisFileError: They do.
    """
    held = {name: rows.view for name, rows in past.rows.items()}
    keys = store.rows["keys"].buffer
    if store.tail_tokens > store.length:
        raise _wrong(where, "keys", keys, f"at most {store.length} tokens")
    if held:
        wanted = _shapes(past, held, keys)
        missing = wanted.keys() - held.keys() - {"bias", "important_begin", "others_begin"}
        for name in (*held, *missing):
            shape, dtype = wanted.get(name, ((), torch.uint8))
            x = held.get(name)
            if x is None or x.shape != shape or x.dtype != dtype:
                raise _wrong(where, f"past.{name}", x, f"{dtype} {list(shape)}")
        if isinstance(past, Ragged) and not _ranges(held, store.length):
            raise _wrong(where, "past.begin", held["begin"], "ranges within the pool")
        if isinstance(past, LowRankPast) and not _chunks(held, past.how.chunk):
            raise _wrong(where, "past.chunks", held["chunks"], "chunks within the values")


def _shapes(past: Past, held: dict[str, Tensor], keys: Tensor) -> _Wanted:
    if isinstance(past, Ragged):
        return _ragged(held, keys)
    if isinstance(past, TwoClasses):
        return _classes(past, held, keys)
    return _low_rank(held, keys) if isinstance(past, LowRankPast) else {}


def _ragged(held: dict[str, Tensor], keys: Tensor) -> _Wanted:
    b, g, _, d = keys.shape
    pool = held.get("pool_keys")
    total = pool.shape[2] if pool is not None and pool.dim() == 4 else 0
    return {
        "pool_keys": ((b, 1, total, d), keys.dtype),
        "pool_values": ((b, 1, total, d), keys.dtype),
        "pool_positions": ((b, 1, total), torch.int32),
        "bias": ((b, 1, total), torch.float32),
        "begin": ((b, g, 1), torch.int32),
        "end": ((b, g, 1), torch.int32),
    }


def _ranges(held: dict[str, Tensor], length: int) -> bool:
    """Whether each head's range lies within the pool, and positions within the sequence."""
    begin, end, places = held["begin"], held["end"], held["pool_positions"]
    total = places.shape[2]
    good = bool(((begin >= 0) & (begin <= end) & (end <= total)).all())
    return good and (total == 0 or (int(places.min()) >= 0 and int(places.max()) < length))


def _classes(past: TwoClasses, held: dict[str, Tensor], keys: Tensor) -> _Wanted:
    b, g, _, d = keys.shape
    wanted: _Wanted = {}
    for name, bits in (("important", past.how.bits), ("others", past.how.other_bits)):
        wanted[f"{name}_begin"] = ((b, g, 1), torch.int32)
        records, rows = held.get(name), held.get(f"{name}_keys")
        if records is not None and 0 < bits < 16 and records.dim() == 4:
            size = page_layout(d, bits, bits, past.how.page, d).nbytes
            wanted[name] = ((b, g, records.shape[2], size), torch.uint8)
        if rows is not None and bits >= 16 and rows.dim() == 4:
            for part in ("keys", "values"):
                wanted[f"{name}_{part}"] = ((b, g, rows.shape[2], d), keys.dtype)
    return wanted


def _low_rank(held: dict[str, Tensor], keys: Tensor) -> _Wanted:
    b, g, _, d = keys.shape
    sizes = {n: held[n].shape[2] if n in held and held[n].dim() > 2 else 0 for n in _SIZED}
    tokens, rank, chunks, odd = (sizes[n] for n in _SIZED)
    wanted: _Wanted = {
        "coordinates": ((b, 1, tokens, rank), keys.dtype),
        "basis": ((b, g, rank, d), keys.dtype),
        "landmarks": ((b, g, chunks, d), keys.dtype),
        "chunks": ((b, g, chunks), torch.int32),
        "odd_keys": ((b, g, odd, d), keys.dtype),
        "odd_values": ((b, g, odd, d), keys.dtype),
        "far_values": ((b, g, tokens, d), keys.dtype),
    }
    if "pad" in held:
        wanted |= {"pad": ((b, 1, 1), torch.int32), "odd_places": ((b, g, odd), torch.int32)}
    return wanted


_SIZED = ("far_values", "basis", "chunks", "odd_keys")


def _chunks(held: dict[str, Tensor], chunk: int) -> bool:
    """Whether every chunk lies within the values."""
    x, tokens = held["chunks"], held["far_values"].shape[2]
    return x.numel() == 0 or (int(x.min()) >= 0 and (int(x.max()) + 1) * chunk <= tokens)


def _wrong(where: str, name: str, x: Tensor | None, wanted: str) -> Exception:
    got = "no such tensor" if x is None else f"{x.dtype} {list(x.shape)}"
    return file_error("kv.Cache.load", f"{where}: {name}", got, wanted, "save it again.")

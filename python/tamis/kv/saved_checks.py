"""What must hold between the tensors of a store before a kernel sees them; files are untrusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tamis.checkpoint import file_error
from tamis.kv import packed
from tamis.kv.kv_store import KvStore
from tamis.kv.saved_past import check_past
from tamis.ops.kv_select import LABEL_TOKENS, label_bytes
from tamis.policy.kv_recipe import Labels, Pages, WindowSum

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_store(store: KvStore, config: Any, where: str, surplus: Sequence[str] = ()) -> None:
    """Refuses a store whose parts disagree with each other, its recipe or the model's config.

    Raises:
        TamisFileError: They do.
    """
    if not store.rows and store.length == 0 and not surplus:
        return
    held = {name: rows.view for name, rows in store.rows.items()}
    if "keys" not in held or held["keys"].dim() != 4 or held["keys"].dtype not in _FLOATS:
        raise _wrong(where, "keys", held.get("keys"), "[b, g, n, d] of a float dtype")
    _, g, _, d = held["keys"].shape
    _check_model(config, g, d, where)
    wanted, tokens = _shapes(store, held)
    for name, x in held.items():
        shape, dtypes = wanted.get(name, ((), ()))
        if x.shape != shape or x.dtype not in dtypes:
            raise _wrong(where, name, x, f"{list(shape)}" if shape else "no such tensor")
    if "values" not in held or surplus:
        raise _wrong(where, f"{surplus or ['values']}", None, "keys, values and what they need")
    if store.past is None:
        _check_tokens(store, held, tokens, where)
    else:
        check_past(store.past, store, where)
    _check_selection(store, tokens, where)


_Wanted = dict[str, tuple[tuple[int, ...], Sequence[torch.dtype]]]


def _shapes(store: KvStore, held: dict[str, Tensor]) -> tuple[_Wanted, int]:
    """Shape and dtypes of each part, and the tokens held."""
    b, g, n, d = held["keys"].shape
    wanted: _Wanted = {
        "keys": ((b, g, n, d), _FLOATS),
        "values": ((b, g, n, d), (held["keys"].dtype,)),
        "positions": ((b, g, n), (torch.int32,)),
        "mass": ((b, g, n), (torch.float32,)),
    }
    how = store.recipe.quantize
    if how is None or how.key_bits == 16 or "records" not in held:
        return wanted, n
    pages = held["records"].shape[2] if held["records"].dim() == 4 else 0
    size = packed.layout_of(d, how).nbytes
    wanted["records"] = ((b, g, pages, size), (torch.uint8,))
    return wanted, n + pages * how.page


def _check_tokens(store: KvStore, held: dict[str, Tensor], tokens: int, where: str) -> None:
    if "positions" in held:
        x = held["positions"]
        good = x.numel() == 0 or (int(x.min()) >= 0 and int(x.max()) < store.length)
        good = good and bool((x.diff(dim=2) > 0).all())
    else:
        good = store.length == tokens and store.recipe.evict is None
    if not good or tokens > store.length:
        raise file_error(
            "kv.Cache.load", where, f"{tokens} tokens of {store.length}",
            "as many as were seen, or their ascending positions", "save it again.",
        )  # fmt: skip


def _check_selection(store: KvStore, tokens: int, where: str) -> None:
    """Summaries that kernels follow: channels within the head, labels and pages within the tokens."""
    found = store.selection
    if found is None:
        return
    keys = store.rows["keys"].buffer
    b, g, _, d = keys.shape
    held = {name: rows.view for name, rows in found.rows.items()}
    by = found.how.by
    wanted: dict[str, tuple[int, ...]] = {}
    if found.channels is not None:
        r = _channels(found.channels, g, d, where)
        wanted = {"labels": (b, g, -(-found.labelled // LABEL_TOKENS), label_bytes(r))}
    if isinstance(by, Pages):
        wanted = {"bounds": (b, g, min(_rows(held, "bounds"), tokens // by.page), 2, d)}
    if isinstance(by, WindowSum):
        wanted = {"sums": (b, 1, min(_rows(held, "sums"), tokens), by.slots)}
    kinds = {"labels": torch.uint8, "bounds": keys.dtype, "sums": torch.float32}
    for name, x in held.items():
        if name not in wanted or x.shape != wanted[name] or x.dtype != kinds[name]:
            raise _wrong(where, name, x, f"{list(wanted.get(name, ()))}")
    labelled = found.labelled if isinstance(by, Labels) else 0
    if labelled > tokens or (labelled and "labels" not in held):
        raise file_error(
            "kv.Cache.load", where, f"{labelled} labels", f"{tokens}", "save it again."
        )


def _channels(channels: Tensor, g: int, d: int, where: str) -> int:
    """How many channels labels have, each within the head."""
    r = channels.shape[1] if channels.dim() == 2 and channels.shape[0] == g else 0
    good = channels.dtype == torch.int32 and 0 < r <= d and r % 8 == 0
    if not good or int(channels.min()) < 0 or int(channels.max()) >= d:
        raise _wrong(where, "channels", channels, f"[{g}, r] within the {d} channels")
    return r


def _rows(held: dict[str, Tensor], name: str) -> int:
    return held[name].shape[2] if name in held and held[name].dim() > 2 else 0


def _check_model(config: Any, g: int, d: int, where: str) -> None:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if (heads, size) != (g, d):
        raise file_error(
            "kv.Cache.load", where, f"{g} KV heads of {d} channels", f"{heads} of {size}",
            "this cache was made with another model.",
        )  # fmt: skip


def _wrong(where: str, name: str, x: Tensor | None, wanted: str) -> Exception:
    got = "no such tensor" if x is None else f"{x.dtype} {list(x.shape)}"
    return file_error("kv.Cache.load", f"{where}: {name}", got, wanted, "save it again.")

"""From which context on our way of reading a cache is faster than reading all of it, or than torch's.

A figure of the machine, like the ones products are predicted by: built in, or measured by
``tamis info --measure`` and kept beside those.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from tamis.ops import machine

if TYPE_CHECKING:
    import torch

_SHAPES = ((9, 3, 64), (32, 8, 128))  # query heads, KV heads, channels: a small and a large model
_TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_ROUNDS = 15


@dataclass(frozen=True)
class Limits:
    """What a step compares.

    Attributes:
        sdpa_f32: Tokens below which torch's SDPA reads a dense cache in float32 faster.
        sdpa_16: The same in 16 bits.
        choose_bytes: Keys and values that choosing tokens must leave out to be worth its own time.
    """

    sdpa_f32: int
    sdpa_16: int
    choose_bytes: int

    def sdpa_below(self, element_size: int) -> int:
        """Tokens below which SDPA reads values of so many bytes faster."""
        return self.sdpa_f32 if element_size == 4 else self.sdpa_16


# Emerald Rapids, one thread, by `measure`: the largest seen (Zen 4, one and two threads, has 0, 0 and 1.5 to 3.0 MB;
# bench/results/kv.md). Elsewhere about the same until it is measured.
BUILT_IN = Limits(sdpa_f32=193, sdpa_16=0, choose_bytes=3_014_656)


@cache
def limits() -> Limits:
    """This machine's, measured by this version; else the built-in ones."""
    try:
        stored = json.loads(machine.file().read_text(encoding="utf-8"))
        found = {name: stored["kv"][name] for name in asdict(BUILT_IN)}
        if stored["key"] == machine.key() and all(
            type(value) is int and 0 <= value < 1 << 40 for value in found.values()
        ):
            return Limits(**found)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured, or damaged
    return BUILT_IN


def measure(say: Callable[[str], None] = lambda _: None) -> Limits:
    """Measures this machine, a few seconds, and keeps the limits in the file of its figures.

    Raises:
        OSError: The file cannot be written; ``machine.measure`` makes it.
    """
    import torch

    say("KV caches")
    with torch.no_grad():
        found = Limits(
            sdpa_f32=_sdpa_below(torch.float32),
            sdpa_16=_sdpa_below(torch.bfloat16),
            choose_bytes=_choose_bytes(),
        )
    path = machine.file()
    stored = json.loads(path.read_text(encoding="utf-8"))
    machine.write(path, json.dumps({**stored, "kv": asdict(found)}, indent=1))
    limits.cache_clear()
    return found


def _sdpa_below(dtype: torch.dtype) -> int:
    """The first length from which our dense attention takes at most as long, in the slower shape."""
    import torch

    from tamis.kv.kv_store import KvStore
    from tamis.kv.methods import recipe_of

    found = 0
    always = Limits(1 << 30, 1 << 30, 0)
    for h, g, d in _SHAPES:
        for tokens in _TOKENS:
            q = torch.randn(1, h, 1, d).to(dtype)
            k, v = torch.randn(2, 1, g, tokens, d).to(dtype)
            stores = [KvStore(recipe_of("full"), limits=how) for how in (None, always)]
            for store in stores:
                store.append(k, v)
            ours, torch_s = _fastest([partial(s.attend, q) for s in stores])
            if ours <= torch_s:
                break
            found = max(found, 2 * tokens if tokens == _TOKENS[-1] else tokens + 1)
    return found


def _choose_bytes() -> int:
    """Bytes left out where choosing 1/16 of the tokens takes as long as reading all, the larger of two."""
    import torch

    from tamis.kv.kv_store import KvStore
    from tamis.kv.methods import recipe_of

    found = 0
    for method in ("quest", "double_sparsity"):
        for h, g, d in _SHAPES:
            for tokens in _TOKENS:
                q = torch.randn(1, h, 1, d)
                k, v = torch.randn(2, 1, g, tokens, d)
                budget = max(16, tokens // 256 * 16)
                chosen = KvStore(recipe_of(method), budget=budget, layer=2)
                whole = KvStore(recipe_of("full"))
                for store in (chosen, whole):
                    store.append(k, v)
                    store.settle(q)
                mine, all_s = _fastest([partial(s.attend, q) for s in (chosen, whole)])
                if mine <= all_s:
                    break
                found = max(found, (tokens - budget) * 2 * g * d * 4)
    return found


def _fastest(calls: list[Callable[[], Any]]) -> list[float]:
    """Seconds of each call, a low quantile of rounds in which they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(_ROUNDS):
        for call, into in zip(calls, times, strict=True):
            call()  # finds another's data in the caches
            begin = time.perf_counter()
            for _ in range(4):
                call()
            into.append(time.perf_counter() - begin)
    return [sorted(x)[_ROUNDS // 4] for x in times]

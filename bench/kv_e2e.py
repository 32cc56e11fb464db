"""Generation at a long context, end to end: transformers' caches and ours, taking turns.

`python bench/kv_e2e.py --tokens 8064` computes the prompt once (kept in --keep for later runs), hands
its keys and values to every cache, then lets them decode in turns. transformers' QuantizedCache
needs optimum-quanto.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, QuantizedCache

from tamis import commands, corpus, kv, source
from tamis.kv.methods import recipe_of

QUERIES = 512  # of the prompt's last tokens, for methods that look at some
OURS = ("full", "kivi8", "kivi4", "kivi2", "quest", "double_sparsity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--new", type=int, default=24, help="counted tokens of each cache")
    parser.add_argument("--burst", type=int, default=4, help="tokens a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--keep", help="file for the prompt's keys, values and queries")
    parser.add_argument("--only", nargs="*")
    a = parser.parse_args()
    commands.quiet()
    torch.set_num_threads(a.threads)
    opened = source.open_model(a.model, dtype=a.dtype)
    model = opened.model.eval()
    ids = opened.tokenizer(corpus.default_text("evaluate")[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        layers = context(model, ids[:, : a.tokens], a.keep)
        runs = {}
        for name, make in makers(model.config).items():
            if a.only and name not in a.only:
                continue
            cache = make(layers)
            if cache is not None:
                runs[name] = Run(model, cache, ids[:, a.tokens : a.tokens + 1])
        if a.new:
            take_turns(list(runs.values()), a.new, a.burst)
            show(a, runs)


def take_turns(runs: list["Run"], new: int, burst: int) -> None:
    """Each generates ``new`` counted tokens, some at a time, so that all see the same machine."""
    for turn in range(-(-new // burst)):
        for run in runs[:: 1 if turn % 2 == 0 else -1]:
            run.step(timed=False)  # finds another cache's data in the processor's caches
            for _ in range(burst):
                run.step(timed=True)


def show(a: argparse.Namespace, runs: dict[str, "Run"]) -> None:
    """The table, and how ours read."""
    print(f"{a.model} {a.dtype}, {a.tokens} tokens, {a.threads} thread(s), {a.new} tokens each")
    print("cache              tokens/s  ms/token      MB")
    for name, run in runs.items():
        ms = median(run.times) * 1e3
        print(f"{name:18} {1e3 / ms:8.1f} {ms:9.1f} {nbytes(run.cache) / 1e6:7.1f}")
    for name, run in runs.items():
        if isinstance(run.cache, kv.Cache):
            ways = run.cache.explain().items()
            print(f"{name}: " + "; ".join(f"{len(at)} layers {way}" for way, at in ways))


class Run:
    """A cache with its model attached while it steps."""

    def __init__(self, model: Any, cache: Any, first: Tensor) -> None:
        self.model, self.cache, self.next = model, cache, first
        self.times: list[float] = []

    def step(self, *, timed: bool) -> None:
        """One token, greedy."""
        if isinstance(self.cache, kv.Cache):
            with kv.attach(self.model):
                self._step(timed)
        else:
            self._step(timed)

    def _step(self, timed: bool) -> None:
        start = time.perf_counter()
        logits = self.model(self.next, cache=self.cache).logits
        self.next = logits[:, -1:].argmax(-1)
        if timed:
            self.times.append(time.perf_counter() - start)


class Recorder(kv.KvStore):
    """A store that keeps the last queries it is shown."""

    def settle(self, q: Tensor | None = None, **_: Any) -> None:
        self.q = q[:, :, -QUERIES:].clone()


def context(model: Any, ids: Tensor, keep: str | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Keys, values and last queries of every layer for a prompt."""
    if keep and Path(keep).is_file():
        return torch.load(keep)
    cache = kv.Cache(model.config, "full")
    for i, layer in enumerate(cache.layers):
        layer.store = Recorder(cache.recipe, layer=i)
    start = time.perf_counter()
    with kv.attach(model):
        model(ids, cache=cache, logits_to_keep=1)
    print(f"prompt of {ids.shape[1]} tokens: {time.perf_counter() - start:.1f} s")
    layers = [(s.rows["keys"].view, s.rows["values"].view, s.q) for s in cache.stores]
    if keep:
        torch.save(layers, keep)
    return layers


def makers(config: Any) -> dict[str, Callable]:
    """By name: from a prompt to a cache that holds it; None where a package is missing."""

    made = {"DynamicCache": partial(theirs, partial(DynamicCache, config=config))}
    for bits in (4, 2):
        quantized = partial(QuantizedCache, "quanto", config, nbits=bits)
        made[f"QuantizedCache {bits}"] = partial(theirs, quantized)
    return made | {method: partial(ours, config, method) for method in OURS}


def theirs(make: Callable[[], Any], layers: list) -> Any:
    """One of transformers' caches that holds the prompt."""
    try:
        cache = make()
    except ImportError as error:
        print(f"left out: {error}")
        return None
    for i, (k, v, _) in enumerate(layers):
        cache.update(k, v, i)
    return cache


def ours(config: Any, method: str, layers: list) -> kv.Cache:
    """One of ours; methods that choose read 1/16 of the tokens."""
    chooses = recipe_of(method).select is not None
    budget = max(256, layers[0][0].shape[2] // 256 * 16) if chooses else None
    cache = kv.Cache(config, method, budget=budget)
    for layer, (k, v, q) in zip(cache.layers, layers, strict=True):
        layer.lazy_initialization(k, v)
        layer.store.append(k, v)
        layer.store.settle(q)
    return cache


def nbytes(cache: Any) -> int:
    """Bytes held, those of quantized tensors in their packed form."""
    if isinstance(cache, kv.Cache):
        return cache.nbytes()
    total = 0
    for layer in cache.layers:
        for x in vars(layer).values():
            total += packed(x) if isinstance(x, Tensor) else 0
    return total


def packed(x: Tensor) -> int:
    """Bytes of a tensor; of a quanto one its parts."""
    parts = [getattr(x, name, None) for name in ("_data", "_scale", "_shift")]
    if any(isinstance(p, Tensor) for p in parts):
        return sum(packed(p) for p in parts if isinstance(p, Tensor))
    return x.numel() * x.element_size()


if __name__ == "__main__":
    main()

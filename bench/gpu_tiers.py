"""A decode step over layers whose keys and values lie in host memory, a pool of them on the device.

Each layer multiplies by as many weights as one of Llama-3-8B and attends by Double Sparsity. Queries
drift from step to step, as those of a text do; what is fetched ahead is chosen by a guess of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

HEADS, KV_HEADS, DIM, HIDDEN, WIDTH = 32, 8, 128, 4096, 53248
LAYERS, TOKENS, BUDGETS = 8, 32768, (1024, 2048)
DRIFT, GUESS = 0.3, 0.15  # share of noise in the next step's queries, and in a guess of them
STEPS, WARM = 24, 8


def stores(k: Any, v: Any, budget: int, memory: int | None) -> list[Any]:
    """One a layer; memory: bytes of the pools of all layers, None: everything on the device."""
    from tamis import kv
    from tamis.kv.kv_store import KvStore
    from tamis.kv.methods import recipe_of

    recipe = recipe_of("double_sparsity")
    made = []
    for _ in range(LAYERS):
        tier = None
        if memory is not None:
            tiers = kv.Tiers(memory=memory, device="cuda")
            tier = tiers.of_layer(recipe, list(range(2, 2 + LAYERS)))
        store = KvStore(recipe, budget=budget, layer=99, tier=tier)
        store.append(k, v)
        store.settle()
        made.append(store)
    return made


class Step:
    """Queries of all layers, guesses of them, and weights."""

    def __init__(self) -> None:
        import torch

        shape = (LAYERS, 1, HEADS, 1, DIM)
        self.q = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        self.guess = self.q.clone()
        self.x = torch.randn(1, HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.weights = [
            torch.randn(WIDTH, HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(2)
        ]

    def next(self) -> None:
        import torch

        keep = (1 - DRIFT**2) ** 0.5
        self.q.mul_(keep).add_(torch.randn_like(self.q), alpha=DRIFT)
        self.guess.copy_(self.q).add_(torch.randn_like(self.q), alpha=GUESS)

    def run(self, layers: list[Any], ahead: bool) -> None:
        import torch

        for i, store in enumerate(layers):
            if ahead and i + 1 < len(layers):
                layers[i + 1].fetch_ahead(self.guess[i + 1])
            torch.mm(self.x, self.weights[i % 2].t())
            if store is not None:
                store.attend(self.q[i])


def graph_of(call: Callable[[], None]) -> Any:
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph


def tiers() -> list[dict[str, Any]]:
    import torch

    step, found = Step(), []
    k, v = (
        torch.randn(1, KV_HEADS, TOKENS, DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2)
    )
    whole = LAYERS * 2 * k.numel() * 2
    cases: dict[str, tuple[list[Any], bool]] = {"products alone": ([None] * LAYERS, False)}
    for budget in BUDGETS:
        cases[f"{budget}: all on the device"] = (stores(k, v, budget, None), False)
        for ahead in (False, True):
            name = f"{budget}: 1/16 there{', ahead' if ahead else ''}"
            cases[name] = (stores(k, v, budget, whole // 16), ahead)
        cases[f"{budget}: none there"] = (stores(k, v, budget, LAYERS), False)
    for name, (layers, ahead) in cases.items():
        graph = graph_of(partial(step.run, layers, ahead))
        counts = [(0, 0)] * 2
        times = []
        for i in range(WARM + STEPS):
            if i == WARM:
                counts[0] = found_in(layers)
            step.next()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        counts[1] = found_in(layers)
        eager = time.perf_counter()
        for _ in range(4):
            step.run(layers, ahead)
        eager = (time.perf_counter() - eager) / 4
        torch.cuda.synchronize()
        reads, hits = (b - a for a, b in zip(*counts, strict=True))
        found.append({
            "what": name, "ms": statistics.median(times[WARM:]),
            "host_ms": 1e3 * eager, "hits": hits / reads if reads else None,
            "missed_mb": (reads - hits) * 4 * DIM / STEPS / 1e6,
        })  # fmt: skip
        print_tiers(found[-1:])
        del graph
    return found


def found_in(layers: list[Any]) -> tuple[int, int]:
    each = [s.tier.found for s in layers if s is not None and s.tier is not None]
    return sum(a for a, _ in each), sum(b for _, b in each)


def print_tiers(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        hits = (
            "" if r["hits"] is None else f", {r['hits']:.0%} found, {r['missed_mb']:.1f} MB missed"
        )
        print(
            f"tiers {r['what']:28} {r['ms']:7.3f} ms a step, host {r['host_ms']:6.2f}{hits}",
            flush=True,
        )

"""Times layers side by side, on weights that are not in cache."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tamis.formats import as_linear, mask_of, nbytes_of
from tamis.nn import SparseLinear
from tamis.ops import cuda_forms

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of max |y|
# Quantized x of n(0, 1) errs by 1/127 of its largest |x|, about 3.5, over sqrt(12): 0.8 % of |y| on
# average. Of the largest |y|, some 3 times the average, five such errors are 1.3 %.
TOLERANCE_I8 = 2e-2
ROUNDS = 9  # interleaved timings per candidate; the least counts, as noise only ever adds
ROUND_S = 2e-3  # aim per timing
DEVICE_CALLS = 64  # at most, of a timing on a CUDA device
DEFAULT_CACHE_BYTES = 32 << 20


@dataclass
class Bench:
    """Times candidates on weights that are as cold as a whole model's decoding leaves them."""

    tokens: int
    seed: int
    model_bytes: int

    def __post_init__(self) -> None:
        self._known: dict[tuple[object, ...], dict[str, float]] = {}

    def times(self, candidates: Mapping[str, nn.Module]) -> dict[str, float]:
        """Least ms per call of each candidate that agrees with dense, dense first."""
        linear = as_linear(candidates["dense"])
        n, k = linear.weight.shape
        density = round(float(mask_of(linear).float().mean()), 2)
        key = (n, k, linear.weight.dtype, linear.bias is None, density, *candidates)
        if key not in self._known:
            generator = torch.Generator().manual_seed(self.seed)
            x = torch.randn(self.tokens, k, generator=generator).to(linear.weight)
            agreeing = {n: m for n, m in candidates.items() if _agrees(m, linear, x)}
            self._known[key] = self._measure(agreeing, x)
        return self._known[key]

    @torch.no_grad()
    def _measure(self, candidates: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
        copies = {name: self._copies(module) for name, module in candidates.items()}
        for module in (module for modules in copies.values() for module in modules):
            module(
                x[:1]
            )  # the first call of a layer checks its arrays, which is no part of its time
        at = dict.fromkeys(copies, 0)
        calls = max(1, int(ROUND_S / max(_seconds(copies["dense"], x, 0, 3), 1e-7)))
        calls = min(calls, DEVICE_CALLS) if x.is_cuda else calls
        seen: dict[str, list[float]] = {name: [] for name in copies}
        names = list(copies)
        for turn in range(ROUNDS):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seen[name].append(_seconds(copies[name], x, at[name], calls))
                at[name] += calls
        return {name: min(times) * 1e3 for name, times in seen.items()}

    def _copies(self, module: nn.Module) -> list[nn.Module]:
        """Enough copies that the first is out of cache when its turn comes again."""
        nbytes = max(1, nbytes_of(module))
        wanted = min(2 * _cache_bytes(), max(self.model_bytes, nbytes))
        return [module, *(copy.deepcopy(module) for _ in range(wanted // nbytes))]


def _seconds(modules: list[nn.Module], x: Tensor, at: int, calls: int) -> float:
    """Seconds per call, over consecutive copies."""
    turn = [modules[(at + i) % len(modules)] for i in range(calls)]
    if x.is_cuda:
        return _device_seconds(turn, x)
    begin = time.perf_counter()
    for module in turn:
        module(x)
    return (time.perf_counter() - begin) / calls


def _device_seconds(modules: list[nn.Module], x: Tensor) -> float:
    """The same on a CUDA device, where a graph of the calls shows its time and not the host's.

    What no kernel takes is expanded by torch, in ways that graphs do not hold: timed as it is called.
    """
    device = x.device
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    events: Any = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for module in modules:  # packs and plans
            module(x)
        stream.synchronize()
        begin, end = events
        if all(
            not isinstance(m, SparseLinear) or cuda_forms.packed_form(m.layout) for m in modules
        ):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for module in modules:
                    module(x)
            graph.replay()
            begin.record()
            graph.replay()
        else:
            begin.record()
            for module in modules:
                module(x)
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / len(modules)


@torch.no_grad()
def _agrees(module: nn.Module, dense: nn.Linear, x: Tensor) -> bool:
    """Whether the candidate computes what the dense layer does, within its dtype's rounding."""
    if module is dense:
        return True
    wanted, got = dense(x).float(), module(x).float()
    scale = float(wanted.abs().max())
    allowed = TOLERANCE.get(x.dtype, 1e-4)
    if isinstance(module, SparseLinear) and module.layout.quantized:
        allowed = max(allowed, TOLERANCE_I8)
    return float((got - wanted).abs().max()) <= allowed * max(scale, 1e-30)


@cache
def _cache_bytes() -> int:
    """Bytes of this host's last-level cache."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8")
        return int(text.strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return DEFAULT_CACHE_BYTES

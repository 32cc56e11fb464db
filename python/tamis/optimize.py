"""Measures every format a layer can take, dense included, and keeps the best one per layer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tamis import stored
from tamis.activation import InputSparseLinear, SparseMLP
from tamis.errors import TamisTypeError, TamisValueError
from tamis.layout import FORMATS, Layout
from tamis.nn import SparseConv2d, SparseLinear
from tamis.ops import cost, cuda_cost
from tamis.ops.conv2d import NO_BOUNDS
from tamis.policy import select
from tamis.policy.allocate import matches
from tamis.recipe import KEEP, Pattern
from tamis.report import LayerReport, Report, host_facts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMATS", "describe", "explain", "holding_layouts", "optimize_", "swap", "tied"]

DTYPE_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
GROUPS = ((2, 4), (1, 4), (4, 8), (2, 8), (1, 8))  # N:M looked for in a mask
BLOCKS = ((16, 16), (8, 8), (4, 4), (1, 16))  # r x c looked for in a mask
BLOCK_FILL = 0.9  # below this share of kept weights in kept blocks, blocks waste their bytes
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of max |y|
# Quantized x of n(0, 1) errs by 1/127 of its largest |x|, about 3.5, over sqrt(12): 0.8 % of |y| on
# average. Of the largest |y|, some 3 times the average, five such errors are 1.3 %.
TOLERANCE_I8 = 2e-2
ROUNDS = 9  # interleaved timings per candidate; the least counts, as noise only ever adds
ROUND_S = 2e-3  # aim per timing
DEVICE_CALLS = 64  # at most, of a timing on a CUDA device
DEFAULT_CACHE_BYTES = 32 << 20


def optimize_(  # noqa: PLR0913
    model: nn.Module,
    objective: str = "latency",
    *,
    tokens: int = 1,
    min_gain: float = 0.0,
    ignore: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Gives each pruned layer its best format, in place; returns a Report.

    Candidates are the formats that hold the layer's mask exactly, and dense. "latency" runs them
    interleaved on weights that are not in cache; "bytes" compares sizes. Dense wins ties, so no
    layer gets slower (or larger) than dense. Layers alike (shape, dtype, density within 1 %) share
    a measurement. The layers change only after the last measurement.

    Args:
        model: With SparseLinear or masked nn.Linear layers; layers without zeros stay.
        objective: "latency" or "bytes".
        tokens: Rows of the input when timing, 1 for decoding.
        min_gain: Fraction of the dense time (bytes) to gain before a layer leaves dense.
        ignore: Layers to leave as they are: exact names, or "re:" and a pattern.
        seed: Of the inputs.
        progress: Called with each layer's name.

    Raises:
        TamisValueError: objective, tokens or min_gain is out of range, or ignore matches nothing.
        TamisTypeError: model is not a module.
    """
    _check(model, objective, tokens, min_gain)
    layers = _not_ignored(linear_layers(model), ignore)
    shared = tied(model)
    bench = _Bench(tokens, seed, sum(_dense_bytes(layer) for layer in layers.values()))
    rows: list[LayerReport] = []
    winners: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, layer in layers.items():
        if progress:
            progress(name)
        candidates = {"dense": layer} if layer in shared else _candidates(layer)
        if len(candidates) == 1:
            reason = "its weight is shared with another module" if layer in shared else ""
            rows.append(describe(name, layer, reason=reason or _no_choice(layer), tokens=tokens))
            continue
        costs = bench.times(layer, candidates) if objective == "latency" else _sizes(candidates)
        best = _best(costs, min_gain)
        rows.append(_row(name, candidates[best], costs, best, objective, tokens))
        if _format_of(layer) != best:
            winners[name] = (layer, candidates[best])
    swap(model, winners)
    before, after = sum(row.dense_nbytes for row in rows), sum(row.nbytes for row in rows)
    facts: dict[str, float | int | str] = {
        "objective": objective,
        "tokens": tokens,
        "layers_changed": len(winners),
        "linear_bytes": after,
        "dense_linear_bytes": before,
    }
    if objective == "latency":
        timed = [row for row in rows if row.measured_ms is not None]
        facts["linear_ms"] = sum(row.measured_ms or 0.0 for row in timed)
        facts["dense_linear_ms"] = sum(row.dense_ms or 0.0 for row in timed)
    return Report(f"optimized for {objective}", rows, facts, host_facts(seed=seed))


def explain(model: nn.Module, *, measure: bool = False, tokens: int = 1, seed: int = 0) -> Report:
    """What every linear and sparse convolution of the model is, costs and reaches.

    Layers that leave activations out name their kernel; what they gain is the handle's to say.

    Args:
        model: Any torch model.
        measure: Times each layer and its dense twin too; the cost model's times are always there.
        tokens: Rows of the input when timing.
        seed: Of the inputs.

    Raises:
        TamisTypeError: model is not a module.
        TamisValueError: tokens is not positive.
    """
    _check(model, "latency", tokens, 0.0)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, SparseConv2d)}
    layers = linear_layers(model)
    bench = _Bench(tokens, seed, sum(_dense_bytes(layer) for layer in layers.values()))
    leaving = _leaving_out(model)
    layers = {n: m for n, m in model.named_modules() if {n} & {*layers, *convs, *leaving}}
    rows = []
    for name, layer in layers.items():
        if name in leaving:
            rows.append(leaving[name])
            continue
        row = describe(name, layer, reason=_no_choice(layer), tokens=tokens)
        if measure and name not in convs:  # a convolution's time is a matter of its images
            own = _format_of(layer)
            twins = (
                {"dense": as_linear(layer)}
                if own == "dense"
                else {"dense": as_linear(layer), own: layer}
            )
            costs = bench.times(layer, twins)
            row = _timed(row, costs.get(own, costs["dense"]), costs["dense"])
        rows.append(row)
    total = sum(row.nbytes for row in rows)
    facts: dict[str, float | int | str] = {
        "linear_bytes": total,
        "dense_linear_bytes": sum(row.dense_nbytes for row in rows),
    }
    from tamis.decode import fusion  # which imports what imports this module

    if fused := fusion(model):
        facts["fused for decoding"] = fused
    return Report("linear layers", rows, facts, host_facts(seed=seed))


# Layers and formats


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every nn.Linear and SparseLinear by name, in model order."""
    return {n: m for n, m in model.named_modules() if type(m) in (nn.Linear, SparseLinear)}


def tied(model: nn.Module) -> set[nn.Module]:
    """Modules with a parameter that another module has too."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    return {module for several in owners.values() if len(several) > 1 for module in several}


def _not_ignored(layers: Mapping[str, nn.Module], ignore: Sequence[str]) -> dict[str, nn.Module]:
    for key in ignore:
        if not any(matches(key, name) for name in layers):
            raise TamisValueError(
                f"optimize_: ignore: got {key!r}, wanted the name of a linear layer, such as "
                f"{next(iter(layers), 'none')!r}; correct it or prefix a pattern with 're:'."
            )
    return {n: m for n, m in layers.items() if not any(matches(key, n) for key in ignore)}


def mask_of(linear: nn.Linear) -> Tensor:
    """The mask [n, k] that pruning left on the layer, else where the weight is not zero."""
    keep = getattr(linear, KEEP, None)
    return keep if isinstance(keep, torch.Tensor) else linear.weight.detach() != 0


def as_dense(layer: SparseLinear) -> nn.Module:
    """The sparse layer as nn.Linear or nn.Conv2d; its mask stays with it."""
    if not isinstance(layer, SparseConv2d):
        return as_linear(layer)
    conv = layer.to_conv()
    keep = torch.as_tensor(layer.matrix.keep()).reshape(conv.weight.shape)
    conv.register_buffer(KEEP, keep, persistent=False)
    return conv if layer.bounds == NO_BOUNDS else nn.Sequential(conv, nn.Hardtanh(*layer.bounds))


def as_linear(layer: nn.Module) -> nn.Linear:
    """The layer as nn.Linear; a SparseLinear's mask stays with it."""
    if isinstance(layer, SparseLinear):
        linear = layer.to_linear()
        linear.register_buffer(KEEP, torch.as_tensor(layer.matrix.keep()), persistent=False)
        return linear.train(layer.training)
    if not isinstance(layer, nn.Linear):
        raise TamisTypeError(
            f"as_linear: layer: got {type(layer).__name__}, wanted nn.Linear or SparseLinear."
        )
    return layer


def holding_layouts(
    weight: Tensor, keep: Tensor, pattern: Pattern | None = None
) -> dict[str, tuple[Layout, int]]:
    """(Layout, bytes) by format, of the formats that hold weight [n, k] under keep exactly.

    With a pattern (the mask is known to follow it) nothing is looked for in the mask. Empty if no
    format stores the weight's dtype.
    """
    held = counted_layouts(weight, keep, pattern)
    return {name: (layout, layout.nbytes(count)) for name, (layout, count) in held.items()}


def counted_layouts(
    weight: Tensor, keep: Tensor, pattern: Pattern | None = None
) -> dict[str, tuple[Layout, int]]:
    """The same with the values that each stores instead of bytes."""
    dtype = DTYPE_NAMES.get(weight.dtype)
    if dtype is None:
        return {}
    n, k = weight.shape
    nnz = int(keep.sum())
    found = {name: (Layout(name, n, k, dtype), nnz) for name in ("bitmap", "csr", "csr8")}
    if pattern is None:
        pattern = _pattern_in(keep, nnz)
    if pattern.kind == "nm":
        found["nm"] = (Layout("nm", n, k, dtype, keep=pattern.keep, of=pattern.of), nnz)
    if pattern.kind == "block":
        stored = int(_block_counts(keep, pattern.rows, pattern.cols).count_nonzero())
        stored *= pattern.rows * pattern.cols
        layout = Layout("block", n, k, dtype, block=(pattern.rows, pattern.cols))
        found["block"] = (layout, stored)
    return found


def _pattern_in(keep: Tensor, nnz: int) -> Pattern:
    """The first known pattern that the mask follows exactly."""
    n, k = keep.shape
    for kept, of in GROUPS:
        exact = k % of == 0 and nnz == n * k // of * kept
        if exact and bool((keep.reshape(-1, of).sum(1) == kept).all()):
            return Pattern("nm", keep=kept, of=of)
    for rows, cols in BLOCKS:
        if n % rows == 0 and k % cols == 0:
            stored = int(_block_counts(keep, rows, cols).count_nonzero()) * rows * cols
            if stored < n * k and nnz >= BLOCK_FILL * stored:
                return Pattern("block", rows=rows, cols=cols)
    return Pattern()


def _block_counts(keep: Tensor, rows: int, cols: int) -> Tensor:
    return select.block_scores(keep.to(torch.int32), Pattern("block", rows=rows, cols=cols))


def _candidates(layer: nn.Module) -> dict[str, nn.Module]:
    """The layer in every format that holds it; the current one is the layer itself."""
    linear = as_linear(layer)
    candidates: dict[str, nn.Module] = {"dense": linear}
    own = _format_of(layer)
    if isinstance(layer, SparseLinear):
        candidates[own] = layer
    if isinstance(layer, SparseLinear) and layer.layout.quantized:
        return candidates  # other formats would need the codes; dense is its only rival
    keep = mask_of(linear)
    if bool(keep.all()):
        return candidates
    on_device = device_of(linear) is not None
    for name, (layout, nbytes) in holding_layouts(linear.weight, keep).items():
        if on_device and not cuda_cost.packed_form(layout):
            continue
        if name not in candidates and nbytes < _dense_bytes(linear):
            candidates[name] = compressed(linear, linear.weight.detach(), keep, layout)
    return candidates


def compressed(linear: nn.Linear, weight: Tensor, keep: Tensor, layout: Layout) -> SparseLinear:
    """SparseLinear with `weight` [n, k] under `keep` in place of the linear's own, and its bias."""
    source = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    source.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    source.bias = linear.bias
    module = SparseLinear.from_linear(
        source,
        keep=keep,
        format=layout.format,
        n_m=(layout.keep, layout.of) if layout.format == "nm" else None,
        block=layout.block if layout.format == "block" else None,
        dtype=layout.dtype if layout.quantized else None,
        group_size=layout.group_size,
    )
    return module.train(linear.training)


def swap(model: nn.Module, layers: Mapping[str, tuple[nn.Module, nn.Module]]) -> None:
    """Replaces (old, new) wherever the model holds old; all of them or, on an exception, none."""
    new_of = {id(old): new for old, new in layers.values()}
    places = [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child is not None and id(child) in new_of
    ]
    try:
        for parent, key, child in places:
            setattr(parent, key, new_of[id(child)])
    except BaseException:
        for parent, key, child in places:
            parent._modules[key] = child
        raise
    stored.follow(model)


# Rows of the report


def describe(
    name: str,
    layer: nn.Module,
    *,
    reason: str = "",
    sparsity: float | None = None,
    tokens: int = 1,
) -> LayerReport:
    """The report's row of one layer, without measured times; predicted for rows of x."""
    if isinstance(layer, SparseLinear):
        matrix, layout = layer.matrix, layer.layout
        return LayerReport(
            name=name,
            shape=(layout.rows, layout.cols),
            sparsity=1 - matrix.nnz / (layout.rows * layout.cols),
            format=layout.label,
            nbytes=matrix.nbytes,
            dense_nbytes=layout.dense_nbytes,
            kernel=_kernel(layer, tokens),
            predicted_ms=None
            if isinstance(layer, SparseConv2d)
            else _ms(cost.sparse_ns(layout, matrix.nnz, tokens, device=device_of(layer))),
            reason=reason,
        )
    linear = as_linear(layer)
    weight = linear.weight
    if sparsity is None:
        sparsity = 1 - int(mask_of(linear).sum()) / weight.numel()
    nbytes = weight.numel() * weight.element_size()
    dtype = DTYPE_NAMES.get(weight.dtype, str(weight.dtype).removeprefix("torch."))
    return LayerReport(
        name=name,
        shape=(linear.out_features, linear.in_features),
        sparsity=sparsity,
        format=f"dense {dtype}",
        nbytes=nbytes,
        dense_nbytes=nbytes,
        kernel="torch",
        predicted_ms=_dense_ms(linear, tokens),
        reason=reason,
    )


def _leaving_out(model: nn.Module) -> dict[str, LayerReport]:
    """Rows of the linears whose small activations are left out, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, InputSparseLinear):
            reason = "reads the columns of inputs that count, up to 4 tokens at a time"
            found[name] = _by_column(name, module.weight, "sparse_input", reason)
        elif isinstance(module, SparseMLP):
            counts = "reads what neurons that count meet, up to 4 tokens at a time"
            reasons = ("read whole: it says which neurons count", counts, counts)
            for part, weight, reason in zip(module.names, module.weights(), reasons, strict=True):
                found[f"{name}.{part}"] = _by_column(f"{name}.{part}", weight, "sparse_mlp", reason)
    return found


def _by_column(name: str, weight: Tensor, op: str, reason: str) -> LayerReport:
    from tamis import _C

    dtype = DTYPE_NAMES.get(weight.dtype, "")
    names = [
        row["name"]
        for row in _C.activation_kernels()
        if row["op"] == op and row["w_dtype"] == dtype and row["runs_here"]
    ]
    nbytes = weight.numel() * weight.element_size()
    shape = (weight.shape[0], weight.shape[1])
    kernel = names[0] if names else "torch"
    return LayerReport(
        name, shape, 0.0, f"dense {dtype}", nbytes, nbytes, kernel=kernel, reason=reason
    )


def _row(
    name: str,
    layer: nn.Module,
    costs: Mapping[str, float],
    best: str,
    objective: str,
    tokens: int,
) -> LayerReport:
    unit = "ms" if objective == "latency" else "bytes"
    others = ", ".join(f"{n} {c:.3g}" for n, c in costs.items() if n != best)
    better = "fastest" if objective == "latency" else "smallest"
    reason = f"{better}: {best} {costs[best]:.3g} {unit} against {others}"
    if best == "dense":
        reason = f"no format is {better[:-3] + 'er'}: dense {costs[best]:.3g} {unit}, {others}"
    row = describe(name, layer, reason=reason, tokens=tokens)
    return _timed(row, costs[best], costs["dense"]) if objective == "latency" else row


def _timed(row: LayerReport, own_ms: float, dense_ms: float) -> LayerReport:
    limit = _bandwidth()
    reached = row.nbytes / (own_ms * 1e6) / limit if limit else None
    return replace(row, measured_ms=own_ms, dense_ms=dense_ms, memory_limit=reached)


def _no_choice(layer: nn.Module) -> str:
    if isinstance(layer, SparseLinear):
        device = None if isinstance(layer, SparseConv2d) else device_of(layer)
        pays = "" if device is None else tokens_of(layer.layout, layer.nnz, device)
        return f"stored as {layer.layout.label}{pays}"
    zeros = 1 - float(mask_of(as_linear(layer)).float().mean())
    return f"stored dense with {zeros:.1%} zeros" if zeros else "dense: no zeros to leave out"


def _format_of(layer: nn.Module) -> str:
    return layer.layout.format if isinstance(layer, SparseLinear) else "dense"


def _dense_bytes(layer: nn.Module) -> int:
    if isinstance(layer, SparseLinear):
        return layer.layout.dense_nbytes
    return as_linear(layer).weight.numel() * as_linear(layer).weight.element_size()


def _kernel(layer: SparseLinear, tokens: int) -> str:
    from tamis import _C

    layout = layer.layout
    shape = (tokens, layout.rows, layout.cols, layer.nnz)
    x_dtype = DTYPE_NAMES[layer.float_dtype]
    active = str(_C.isa()["active"])
    if (device := device_of(layer)) is not None:
        return cuda_cost.kernel(layout, layer.nnz, tokens, device) or "torch"
    if isinstance(layer, SparseConv2d):
        return str(_C.choose_conv2d(layout.format, active)) if layout.dtype == "f32" else "torch"
    return str(_C.choose(layout.format, layout.dtype, x_dtype, *shape, active))


def device_of(layer: nn.Module) -> int | None:
    """Number of the CUDA device that a layer's weight lies on; None on others."""
    weight: Any = layer.weight
    return (weight.device.index or 0) if weight.is_cuda else None


def tokens_of(layout: Layout, nnz: int, device: int) -> str:
    """What a report adds on a CUDA device: up to how many tokens it pays."""
    most = cuda_cost.most_tokens(layout, nnz, device)
    if most is None:
        return ""
    return f"; on CUDA no slower than dense up to {most} tokens" if most else "; on CUDA slower"


def _ms(ns: float | None) -> float | None:
    return None if ns is None or ns == cuda_cost.NEVER else ns * 1e-6


def _dense_ms(linear: nn.Linear, tokens: int) -> float | None:
    """What torch is expected to take; None for dtypes that no figure is about."""
    dtype = DTYPE_NAMES.get(linear.weight.dtype)
    n, k = linear.weight.shape
    return _ms(cost.dense_ns(dtype, n, k, tokens, device=device_of(linear))) if dtype else None


def _bandwidth() -> float:
    """GB/s that a plain read reaches with the threads in use: measured before, else now."""
    from tamis import _C
    from tamis.ops import machine

    figures = _C.machine()
    if machine.load() and _C.num_threads() in (1, figures["threads"]):
        return figures["read_one" if _C.num_threads() == 1 else "read_all"]

    return _measured_bandwidth(_C.num_threads())


@cache
def _measured_bandwidth(threads: int) -> float:
    from tamis import _C

    return float(_C.stream_read(threads, 4 * _cache_bytes()))


# Timing


@dataclass
class _Bench:
    """Times candidates on weights that are as cold as a whole model's decoding leaves them."""

    tokens: int
    seed: int
    model_bytes: int

    def __post_init__(self) -> None:
        self._known: dict[tuple[object, ...], dict[str, float]] = {}

    def times(self, layer: nn.Module, candidates: Mapping[str, nn.Module]) -> dict[str, float]:
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
        nbytes = max(1, describe("", module).nbytes)
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
        if all(not isinstance(m, SparseLinear) or cuda_cost.packed_form(m.layout) for m in modules):
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


def _sizes(candidates: Mapping[str, nn.Module]) -> dict[str, float]:
    return {name: float(describe("", module).nbytes) for name, module in candidates.items()}


def _best(costs: Mapping[str, float], min_gain: float) -> str:
    """The cheapest; dense unless it is beaten by min_gain."""
    best = min(costs, key=lambda name: costs[name])
    return best if costs[best] < costs["dense"] * (1 - min_gain) else "dense"


@cache
def _cache_bytes() -> int:
    """Bytes of this host's last-level cache."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8")
        return int(text.strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return DEFAULT_CACHE_BYTES


def _check(model: object, objective: str, tokens: int, min_gain: float) -> None:
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"optimize_: model: got {type(model).__name__}, wanted a torch.nn.Module; load it first."
        )
    if objective not in ("latency", "bytes"):
        raise TamisValueError(
            f"optimize_: objective: got {objective!r}, wanted 'latency' or 'bytes'; correct it."
        )
    if not isinstance(tokens, int) or tokens < 1:
        raise TamisValueError(
            f"optimize_: tokens: got {tokens!r}, wanted at least 1; pass the rows of x to time."
        )
    if not 0 <= min_gain < 1:
        raise TamisValueError(
            f"optimize_: min_gain: got {min_gain}, wanted 0 <= min_gain < 1; it is a fraction of "
            "the dense cost."
        )

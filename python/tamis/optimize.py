"""Measures every format a layer can take, dense included, and keeps the best one per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from torch import nn

from tamis.decode import fusion
from tamis.errors import TamisValueError
from tamis.experts import unstacked
from tamis.formats import (
    as_linear,
    compressed,
    dense_bytes,
    device_of,
    format_of,
    holding_layouts,
    linear_layers,
    mask_of,
    nbytes_of,
    swap,
    tied,
)
from tamis.nn import SparseConv2d, SparseLinear
from tamis.ops import cuda_forms
from tamis.policy.allocate import matches
from tamis.prepack import keep_packed
from tamis.report import LayerReport, Report, host_facts
from tamis.report_rows import describe, leaving_out, no_choice, row_of, timed
from tamis.scope import check_in_memory, check_keys, check_model, left_dense
from tamis.timing import Bench

__all__ = ["explain", "optimize_"]


def optimize_(
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
    _check("optimize_", model, tokens)
    _check_aim(objective, min_gain)
    check_in_memory("optimize_", model)
    with unstacked(model):
        layers = _not_ignored(linear_layers(model), ignore)
        shared = tied(model)
        bench = Bench(tokens, seed, sum(dense_bytes(layer) for layer in layers.values()))
        rows: list[LayerReport] = []
        winners: dict[str, tuple[nn.Module, nn.Module]] = {}
        for name, layer in layers.items():
            if progress:
                progress(name)
            candidates = {"dense": layer} if layer in shared else _candidates(layer)
            if len(candidates) == 1:
                reason = "its weight is shared with another module" if layer in shared else ""
                rows.append(describe(name, layer, reason=reason or no_choice(layer), tokens=tokens))
                continue
            costs = bench.times(candidates) if objective == "latency" else _sizes(candidates)
            best = _best(costs, min_gain)
            if format_of(layer) != best:
                keep_packed(layer, candidates[best], tokens)
            rows.append(row_of(name, candidates[best], costs, best, objective, tokens))
            if format_of(layer) != best:
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
    _check("explain", model, tokens)
    if measure:
        check_in_memory("explain: measure", model)
    with unstacked(model):
        convs = {n: m for n, m in model.named_modules() if isinstance(m, SparseConv2d)}
        layers = linear_layers(model)
        bench = Bench(tokens, seed, sum(dense_bytes(layer) for layer in layers.values()))
        leaving = leaving_out(model)
        layers = {n: m for n, m in model.named_modules() if {n} & {*layers, *convs, *leaving}}
        rows = []
        for name, layer in layers.items():
            if name in leaving:
                rows.append(leaving[name])
                continue
            row = describe(name, layer, reason=no_choice(layer), tokens=tokens)
            if measure and name not in convs:  # a convolution's time is a matter of its images
                own = format_of(layer)
                twins = (
                    {"dense": as_linear(layer)}
                    if own == "dense"
                    else {"dense": as_linear(layer), own: layer}
                )
                costs = bench.times(twins)
                row = timed(row, costs.get(own, costs["dense"]), costs["dense"])
            rows.append(row)
    total = sum(row.nbytes for row in rows)
    facts: dict[str, float | int | str] = {
        "linear_bytes": total,
        "dense_linear_bytes": sum(row.dense_nbytes for row in rows),
    }
    facts |= left_dense(model)
    if fused := fusion(model):
        facts["fused for decoding"] = fused
    return Report("linear layers", rows, facts, host_facts(seed=seed))


def _not_ignored(layers: Mapping[str, nn.Module], ignore: Sequence[str]) -> dict[str, nn.Module]:
    check_keys("optimize_: ignore", ignore)
    for key in ignore:
        if not any(matches(key, name) for name in layers):
            raise TamisValueError(
                f"optimize_: ignore: got {key!r}, wanted the name of a linear layer, such as "
                f"{next(iter(layers), 'none')!r}; correct it or prefix a pattern with 're:'."
            )
    return {n: m for n, m in layers.items() if not any(matches(key, n) for key in ignore)}


def _candidates(layer: nn.Module) -> dict[str, nn.Module]:
    """The layer in every format that holds it; the current one is the layer itself."""
    linear = as_linear(layer)
    candidates: dict[str, nn.Module] = {"dense": linear}
    own = format_of(layer)
    if isinstance(layer, SparseLinear):
        candidates[own] = layer
    if isinstance(layer, SparseLinear) and layer.layout.quantized:
        return candidates  # other formats would need the codes; dense is its only rival
    keep = mask_of(linear)
    if bool(keep.all()):
        return candidates
    on_device = device_of(linear) is not None
    for name, (layout, nbytes) in holding_layouts(linear.weight, keep).items():
        if on_device and not cuda_forms.packed_form(layout):
            continue
        if name not in candidates and nbytes < dense_bytes(linear):
            candidates[name] = compressed(linear, linear.weight.detach(), keep, layout)
    return candidates


def _sizes(candidates: Mapping[str, nn.Module]) -> dict[str, float]:
    return {name: float(nbytes_of(module)) for name, module in candidates.items()}


def _best(costs: Mapping[str, float], min_gain: float) -> str:
    """The cheapest; dense unless it is beaten by min_gain."""
    best = min(costs, key=lambda name: costs[name])
    return best if costs[best] < costs["dense"] * (1 - min_gain) else "dense"


def _check(function: str, model: object, tokens: int) -> None:
    check_model(function, model)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise TamisValueError(
            f"{function}: tokens: got {tokens!r}, wanted at least 1; pass the rows of x to time."
        )


def _check_aim(objective: str, min_gain: float) -> None:
    if objective not in ("latency", "bytes"):
        raise TamisValueError(
            f"optimize_: objective: got {objective!r}, wanted 'latency' or 'bytes'; correct it."
        )
    if not isinstance(min_gain, Real) or not 0 <= min_gain < 1:
        raise TamisValueError(
            f"optimize_: min_gain: got {min_gain!r}, wanted 0 <= min_gain < 1; it is a fraction of "
            "the dense cost."
        )

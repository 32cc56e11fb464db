"""attach: puts a plan's thresholds into a model where leaving activations out is faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional

from tamis.activation.collect import GatedMlp, gated_mlps
from tamis.activation.layers import InputSparseLinear, SparseMLP, by_column, parameters_of
from tamis.activation.plan import Plan, Threshold
from tamis.errors import TamisTypeError, TamisValueError
from tamis.kv.identity import check_mark, model_mark
from tamis.model import family_of
from tamis.ops.sparse_input import sparse_input
from tamis.ops.sparse_mlp import sparse_mlp
from tamis.ops.spmm import ACTIVATIONS

_ROUNDS = 15


@dataclass(frozen=True)
class Place:
    """What became of one module.

    Attributes:
        name: Module path.
        sparsity: Share of its activations below the threshold, on the calibration data.
        dense_us: One token through torch's dense layers, microseconds; 0 if not measured.
        sparse_us: The same with that share left out.
        sparse: Whether activations are left out.
    """

    name: str
    sparsity: float
    dense_us: float
    sparse_us: float
    sparse: bool


class Handle:
    """Undoes ``attach``; also a context manager.

    Attributes:
        places: What became of each module of the plan.
    """

    def __init__(self, model: nn.Module, before: dict[str, nn.Module], places: list[Place]) -> None:
        self.model, self.places, self._before = model, places, before

    def remove(self) -> None:
        """The model computes as it did before, bit for bit."""
        for name, module in self._before.items():
            for weight in parameters_of(self.model.get_submodule(name)):
                weight.data = weight.data.contiguous()
            self.model.set_submodule(name, module)
        self._before = {}

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __str__(self) -> str:
        width = max((len(p.name) for p in self.places), default=0)
        lines = [f"{'':<{width}}  left out  dense us  sparse us"]
        for p in self.places:
            times = (
                f"{p.dense_us:8.1f}   {p.sparse_us:8.1f}" if p.dense_us else "       -          -"
            )
            note = "" if p.sparse else "  stays dense: not faster here"
            lines.append(f"{p.name:<{width}}  {p.sparsity:7.1%}  {times}{note}")
        return "\n".join(lines)


def attach(model: nn.Module, plan: Plan, *, prompts: bool = True, measure: bool = True) -> Handle:
    """Leaves the plan's small activations out of `model`, in place.

    Layers keep their parameters and names, so `state_dict` and `save_pretrained` give the dense
    model; weights that are read by column are laid out so, without a second copy. On the CPU each
    shape is timed once, and modules for which leaving activations out is not faster stay dense.

    Args:
        model: The model the plan was made for.
        plan: From `calibrate` or `Plan.load`.
        prompts: Whether more than 4 tokens at a time leave activations out too (computed densely);
            false keeps prompts exact.
        measure: False: every module of the plan leaves its activations out.

    Raises:
        TamisTypeError: model is not a module, or plan no Plan.
        TamisValueError: The plan is another model's, or its modules are not there or not dense.
    """
    if not isinstance(model, nn.Module) or not isinstance(plan, Plan):
        raise TamisTypeError(
            f"activation.attach: model, plan: got {type(model).__name__} and {type(plan).__name__}, "
            "wanted a torch.nn.Module and a Plan of activation.calibrate."
        )
    check_mark("activation.attach", "plan", plan.mark, model_mark(model))
    family = family_of(model)
    mlps = gated_mlps(model, family) if family else {}
    made: dict[str, nn.Module] = {}
    places = []
    times: dict[object, tuple[float, float]] = {}
    for name, threshold in plan.thresholds.items():
        place, module = _place(model, mlps, name, threshold, prompts, times if measure else None)
        places.append(place)
        if place.sparse:
            made[name] = module
    before = {name: model.get_submodule(name) for name in made}
    for name, module in made.items():
        for weight in parameters_of(module):
            weight.data = by_column(weight.data)
        model.set_submodule(name, module)
    return Handle(model, before, places)


def _place(
    model: nn.Module,
    mlps: dict[str, GatedMlp],
    name: str,
    threshold: Threshold,
    prompts: bool,
    times: dict[object, tuple[float, float]] | None,
) -> tuple[Place, nn.Module]:
    module: nn.Module
    key: object
    pair: Callable[[], tuple[Call, Call]]
    if threshold.kind == "neurons" and name in mlps and mlps[name].activation:
        mlp = mlps[name]
        gate, up, down = mlp.layers.values()
        bound = _bound(name, threshold, down.in_features)
        module = SparseMLP(mlp.layers, bound, mlp.activation, prompts)
        key = (gate.weight.shape, down.weight.shape, gate.weight.dtype)
        pair = partial(
            _mlp_calls, gate.weight, up.weight, down.weight, mlp.activation, threshold.sparsity
        )
    else:
        linear = _linear(model, name)
        bound = _bound(name, threshold, linear.in_features)
        module = InputSparseLinear(linear, bound, prompts)
        key = (linear.weight.shape, linear.weight.dtype)
        pair = partial(_linear_calls, linear.weight, threshold.sparsity)
    if times is None or not next(module.parameters()).is_cpu:
        return Place(name, threshold.sparsity, 0.0, 0.0, sparse=True), module
    if key not in times:
        times[key] = _alternate(*pair())
    dense, sparse = times[key]
    return Place(name, threshold.sparsity, dense, sparse, sparse=sparse < dense), module


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if type(module) is not nn.Linear:
        raise TamisValueError(
            f"activation.attach: plan: got a threshold for {name!r}, which is "
            f"{'not there' if module is None else type(module).__name__} in this model, wanted a "
            "dense layer; attach before pruning, and once."
        )
    return module


def _bound(name: str, threshold: Threshold, channels: int) -> Tensor:
    if threshold.weights is not None and len(threshold.weights) != channels:
        raise TamisValueError(
            f"activation.attach: plan: got {len(threshold.weights)} weights for {name!r}, wanted "
            f"{channels}; calibrate again."
        )
    return threshold.per_channel(channels)


# Timing: one token, each shape once. Weights come from memory the second time as they would in a
# model only if the model is larger than the caches; both sides have the same advantage.

Call = Callable[[], object]


def _linear_calls(weight: Tensor, sparsity: float) -> tuple[Call, Call]:
    x = torch.randn(1, weight.shape[1], dtype=weight.dtype)
    bound = x.abs().float().quantile(sparsity).expand(weight.shape[1]).contiguous()
    columns = by_column(weight.detach())
    return lambda: functional.linear(x, weight), lambda: sparse_input(x, columns, bound)


def _mlp_calls(
    gate: Tensor, up: Tensor, down: Tensor, activation: str, sparsity: float
) -> tuple[Call, Call]:
    x = torch.randn(1, gate.shape[1], dtype=gate.dtype)
    f = ACTIVATIONS[activation]
    with torch.no_grad():
        a = f(functional.linear(x, gate)).abs().float()
    bound = a.quantile(sparsity).expand(gate.shape[0]).contiguous()
    columns = by_column(down.detach())

    def dense() -> Tensor:
        return functional.linear(f(functional.linear(x, gate)) * functional.linear(x, up), down)

    return dense, lambda: sparse_mlp(x, gate, up, columns, bound, activation)


def _alternate(dense: Call, sparse: Call) -> tuple[float, float]:
    """Median microseconds of both, taking turns."""
    spent: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(_ROUNDS):
            for call, into in zip((dense, sparse), spent, strict=True):
                begin = perf_counter()
                call()
                into.append(1e6 * (perf_counter() - begin))
    return median(spent[0][2:]), median(spent[1][2:])

"""Calibration of activation sparsity: counts magnitudes in one pass over the data.

In two where a recipe weighs them by what only the data tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tamis import method as methods
from tamis.activation.plan import Plan, Threshold
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.kv.identity import model_mark
from tamis.model import family_of
from tamis.model.family import role_of
from tamis.ops.spmm import ACTIVATIONS
from tamis.policy import activation as policy
from tamis.recipe import ActivationRecipe, ActivationStats
from tamis.samples import Sample, call_model, read_samples

if TYPE_CHECKING:
    from tamis.model.family import Family

Watch = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class GatedMlp:
    """One gated MLP of a model.

    Attributes:
        name: Module path of the module that holds it.
        layers: Names in that module, and layers: gate, up, down.
        activation: Name of the activation, "" if it is none of ours.
    """

    name: str
    layers: dict[str, nn.Linear]
    activation: str


@dataclass
class Counts:
    """Magnitudes of one place, and the means that weigh them."""

    magnitudes: Tensor = field(default_factory=lambda: torch.zeros(policy.BINS, dtype=torch.int64))
    total: Tensor | None = None
    tokens: int = 0


def calibrate(
    model: nn.Module,
    method: str | ActivationRecipe,
    *,
    sparsity: float,
    data: Iterable[Any],
    tokenizer: Any = None,
    max_length: int = 512,
) -> Plan:
    """Thresholds below which `sparsity` of the activations lie, per layer, on this data.

    The model is not changed. Thresholds come from the dense model in one pass (two for "chess").

    Args:
        model: A transformers model with gated MLPs (Llama, Mistral, Qwen, Gemma families).
        method: "cats", "chess", "teal", "wina" or a recipe of your own.
        sparsity: Share of activations to leave out, 0 to below 1.
        data: What `sparsify_` takes: texts, token ids or dicts of model inputs.
        tokenizer: Needed for texts.
        max_length: Tokens per sequence.

    Raises:
        TamisTypeError: model is not a module.
        TamisValueError: No such method, a sparsity out of range, or data that cannot be used.
        TamisUnsupported: The model's layers are not known.
    """
    recipe = methods.recipe_of(
        method, "activation", ActivationRecipe, "activation.calibrate: method"
    )
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"activation.calibrate: model: got {type(model).__name__}, wanted a torch.nn.Module."
        )
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise TamisValueError(
            f"activation.calibrate: sparsity: got {sparsity!r}, wanted 0 to below 1; it is the share "
            "of activations that are left out."
        )
    family = _known(model)
    items = read_samples(data, model, tokenizer, max_length)
    linears = inputs_of(model, family, recipe)
    mlps = gated_mlps(model, family) if recipe.neurons is not None else {}
    if any(not mlp.activation for mlp in mlps.values()):
        raise TamisUnsupported(
            "activation.calibrate: model: got an MLP with another activation, wanted one of "
            f"{', '.join(ACTIVATIONS)}; use a method of inputs, such as 'teal'."
        )
    means: dict[str, Tensor] = {}
    if "mean_up" in recipe.needs:
        means = _means(model, mlps, items)
    weights = {name: _weigh(recipe.weigh, linears[name].weight) for name in linears}
    for name, mlp in mlps.items():
        down = tuple(mlp.layers.values())[2]
        weights[name] = _weigh(recipe.neurons, down.weight, means.get(name))
    counts = _magnitudes(model, linears, mlps, weights, items)
    found = {}
    for name, counted in counts.items():
        bound, share = policy.threshold(counted.magnitudes, sparsity)
        weight = weights[name]
        even = bool((weight == 1).all())
        found[name] = Threshold(
            "neurons" if name in mlps else "inputs",
            bound,
            None if even else tuple(weight.tolist()),
            share,
        )
    label = method if isinstance(method, str) else "recipe"
    return Plan(label, sparsity, model_mark(model), found)


def inputs_of(model: nn.Module, family: Family, recipe: ActivationRecipe) -> dict[str, nn.Linear]:
    """Linears whose inputs the recipe compares, by module path."""
    return {
        name: module
        for block in family.find_blocks(model)
        for name, module in model.get_submodule(block).named_modules(prefix=block)
        if isinstance(module, nn.Linear) and role_of(family, name) in recipe.inputs
    }


def gated_mlps(model: nn.Module, family: Family) -> dict[str, GatedMlp]:
    """Gated MLPs of a model by module path; those with biases are left out."""
    found = {}
    for block in family.find_blocks(model):
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            roles = {
                role_of(family, f"{name}.{child}"): (child, layer)
                for child, layer in module.named_children()
                if isinstance(layer, nn.Linear) and layer.bias is None
            }
            if {"gate", "up", "down"} <= roles.keys():
                layers = dict(roles[role] for role in ("gate", "up", "down"))
                found[name] = GatedMlp(name, layers, _name_of(getattr(module, "act_fn", None)))
    return found


def _known(model: nn.Module) -> Family:
    family = family_of(model)
    if family is None or not any(role_of(family, name) for name, _ in model.named_modules()):
        raise TamisUnsupported(
            f"activation.calibrate: model: got {type(model).__name__}, whose layers are not known, "
            "wanted a Llama, Mistral, Qwen or Gemma model that is still dense."
        )
    return family


def _name_of(function: Any) -> str:
    """Which of our activations computes the same."""
    if not callable(function):
        return ""
    probe = torch.linspace(-6, 6, 97)
    with torch.no_grad():
        wanted = function(probe)
    same = (name for name, f in ACTIVATIONS.items() if torch.allclose(f(probe), wanted, atol=1e-6))
    return next(same, "")


def _weigh(weigh: Any, weight: Tensor, mean_up: Tensor | None = None) -> Tensor:
    norms = weight.detach().float().norm(dim=0)
    made: Tensor = weigh(ActivationStats(norms, mean_up))
    if not bool(made.isfinite().all()):
        raise TamisValueError(
            "activation.calibrate: model: got weights or activations that are not finite, wanted "
            "finite ones; check the model's dtype."
        )
    return made


# Passes over the data


def _means(model: nn.Module, mlps: dict[str, GatedMlp], items: list[Sample]) -> dict[str, Tensor]:
    counts = {name: Counts() for name in mlps}

    def add(name: str, up: Tensor) -> None:
        here = up.float().abs().sum(0, dtype=torch.float64)
        place = counts[name]
        place.total = here if place.total is None else place.total + here
        place.tokens += len(up)

    with _watching(
        {n: tuple(m.layers.values())[1] for n, m in mlps.items()}, add, True, items
    ) as at:
        _run(model, items, at)
    return {name: (c.total / c.tokens).float() for name, c in counts.items() if c.total is not None}


def _magnitudes(
    model: nn.Module,
    linears: dict[str, nn.Linear],
    mlps: dict[str, GatedMlp],
    weights: dict[str, Tensor],
    items: list[Sample],
) -> dict[str, Counts]:
    counts = {name: Counts() for name in (*linears, *mlps)}

    def count(name: str, x: Tensor) -> None:
        counts[name].magnitudes += policy.count_magnitudes(x.float() * weights[name])

    def activated(name: str, gate: Tensor) -> None:
        count(name, ACTIVATIONS[mlps[name].activation](gate))

    gates = {name: next(iter(mlp.layers.values())) for name, mlp in mlps.items()}
    with (
        _watching(linears, count, False, items) as at,
        _watching(gates, activated, True, items) as at_gates,
    ):
        _run(model, items, at, at_gates)
    return counts


@contextmanager
def _watching(
    modules: dict[str, nn.Linear], watch: Watch, outputs: bool, items: list[Sample]
) -> Iterator[Callable[[Sample], None]]:
    """Hands the real tokens [t, channels] of inputs or outputs to `watch`; yields what begins a sample."""
    current: list[Sample] = [items[0]]

    def take(name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])
        real = current[0].real
        watch(name, flat if real is None else flat[real.reshape(-1)])

    def hook(name: str) -> Any:
        if outputs:
            return lambda module, args, out: take(name, out)
        return lambda module, args: take(name, args[0])

    handles = [
        module.register_forward_hook(hook(name))
        if outputs
        else module.register_forward_pre_hook(hook(name))
        for name, module in modules.items()
    ]
    try:
        yield lambda sample: current.__setitem__(0, sample)
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, items: list[Sample], *begins: Callable[[Sample], None]) -> None:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for sample in items:
                for begin in begins:
                    begin(sample)
                call_model(model, sample)
    finally:
        model.train(training)

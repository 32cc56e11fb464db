"""Experts that transformers stacks in one parameter, as linears while they are pruned, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tamis.formats import places_of, share_hooks
from tamis.nn import SparseExperts, SparseLinear

__all__ = ["are_alike", "is_expert", "restack", "stacks", "unstack", "unstacked"]

_EXPERT = re.compile(r"(.*)\.each\.\d+\.([a-z_]+)")


def is_expert(name: str) -> bool:
    """Whether a layer of that name is one expert's."""
    return _EXPERT.fullmatch(name) is not None


def are_alike(name: str, other: str) -> bool:
    """Whether these layers are the same part of two experts of one stack."""
    one, two = _EXPERT.fullmatch(name), _EXPERT.fullmatch(other)
    return one is not None and two is not None and one.groups() == two.groups()


def stacks(model: nn.Module) -> dict[str, nn.Module]:
    """Modules of transformers that hold all experts of a layer in one parameter, by name."""
    return {n: m for n, m in model.named_modules() if n and SparseExperts.takes(m)}


def unstack(
    model: nn.Module, layers: Iterable[str] | None = None
) -> dict[SparseExperts, nn.Module]:
    """Puts a linear for each expert in place of stacks, whose memory it shares.

    Args:
        model: Any.
        layers: Only where one of these names is an expert's; a base model's prefix is no matter.

    Returns:
        The stacks by what took their places.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = None
    if layers is not None:
        found = {m[1].removeprefix(prefix) for m in map(_EXPERT.fullmatch, layers) if m}
    made = {}
    for name, stack in stacks(model).items():
        if found is None or name.removeprefix(prefix) in found:
            experts = SparseExperts(stack)
            _put(model, stack, experts)
            made[experts] = stack
    return made


def restack(model: nn.Module, origin: dict[SparseExperts, nn.Module] | None = None) -> None:
    """Puts stacks in place where no expert is sparse; dense ones beside sparse ones are copied.

    Args:
        model: Any.
        origin: What ``unstack`` returned: these stacks come back, with the weights of now.
    """
    origin = origin or {}
    for module in [m for m in model.modules() if isinstance(m, SparseExperts)]:
        stack = origin.get(module)
        if not any(isinstance(x, SparseLinear) for x in module.modules()):
            if stack is not None:
                _take_weights(stack, module)
            _put(model, module, stack or module.to_stack())
        elif stack is not None:
            for linear in module.each.modules():
                for own in linear._parameters.values():
                    if own is not None and own.untyped_storage().nbytes() != own.nbytes:
                        own.data = own.data.clone(memory_format=torch.contiguous_format)


@contextmanager
def unstacked(model: nn.Module) -> Iterator[None]:
    """Linears in place of stacks; where none of them became sparse the stack is back at the end."""
    origin = unstack(model)
    try:
        yield
    finally:
        restack(model, origin)


@torch.no_grad()
def _take_weights(stack: Any, experts: SparseExperts) -> None:
    """Writes to a stack the weights that no longer lie in it."""
    for e, expert in enumerate(experts.each):
        for name in experts.names:
            place = getattr(stack, f"{name}_proj")[e]
            place = place.t() if stack.is_transposed else place
            weight: Any = expert.get_submodule(name).weight
            if weight.data_ptr() != place.data_ptr():
                place.copy_(weight)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent, key, _ in places_of(model, [old]):
        parent._modules[key] = new
    share_hooks(old, new)

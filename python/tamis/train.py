"""MaskGuard: keeps pruned weights exactly zero while the model trains on."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tamis.errors import TamisTypeError, TamisValueError
from tamis.experts import stacks
from tamis.recipe import KEEP
from tamis.transposed import is_conv1d

if TYPE_CHECKING:
    from torch import Tensor


class MaskGuard:
    """Zeroes pruned weights, and their optimizer state, after every optimizer step.

    Weight decay, momentum and second moments all would revive a zero; state of the parameter's
    shape is masked too, so that nothing builds up behind it. SparseLinear needs no guard: it has no
    parameter for a dropped weight.

        guard = MaskGuard(model, optimizer)
        ... optimizer.step() as usual ...
        guard.remove()

    The masks are those pruning left on the layers; of a layer without one, the zeros of its weight
    now, if it has any.

    Args:
        model: With masked nn.Linear layers, or Conv1D of transformers.
        optimizer: Its step is followed by the guard; None if `apply` is called by hand.
        masks: keep, bool in the weight's shape, by layer name, instead of the layers' own.

    Raises:
        TamisTypeError: model is not a module, or optimizer none of torch's.
        TamisValueError: A mask names no nn.Linear, has another shape, or nothing is masked.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TamisTypeError(
                f"MaskGuard: model: got {type(model).__name__}, wanted a torch.nn.Module; "
                "load it first."
            )
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TamisTypeError(
                f"MaskGuard: optimizer: got {type(optimizer).__name__}, wanted a "
                "torch.optim.Optimizer, or None to call apply() by hand."
            )
        self._linears: dict[str, Any] = {
            n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)
        }
        for name, stack in stacks(model).items():
            for part, parameter in stack.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    self._linears[f"{name}.{part}"] = SimpleNamespace(weight=parameter)
        self.masks: dict[str, Tensor] = {}
        self._set(_masks_of(self._linears) if masks is None else masks)
        self._optimizer = optimizer
        self._handle = optimizer.register_step_post_hook(self._after) if optimizer else None
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Zeroes every dropped weight, its gradient and its optimizer state."""
        for name, keep in self.masks.items():
            weight = self._linears[name].weight
            if keep.device != weight.device:
                keep = self.masks[name] = keep.to(weight.device)
            dropped = keep.logical_not()
            weight.masked_fill_(dropped, 0)
            if weight.grad is not None:
                weight.grad.masked_fill_(dropped, 0)
            state = self._optimizer.state.get(weight, {}) if self._optimizer else {}
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    value.masked_fill_(dropped, 0)

    def remove(self) -> None:
        """Stops following the optimizer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, one bit per weight: uint8 [ceil(n * k / 8)] by layer name."""
        return {name: _packed(keep) for name, keep in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over masks saved by `state_dict` and applies them.

        Raises:
            TamisValueError: A mask names no nn.Linear or has another size.
        """
        masks = {}
        for name, bits in state.items():
            shape = self._layer(name).weight.shape
            if bits.numel() != -(-shape.numel() // 8):
                raise TamisValueError(
                    f"MaskGuard.load_state_dict: {name}: got {bits.numel()} bytes, wanted "
                    f"{-(-shape.numel() // 8)} for {list(shape)}; load the state of this model."
                )
            masks[name] = _unpacked(bits, shape)
        self._set(masks)
        self.apply()

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.apply()

    def _set(self, masks: Mapping[str, Tensor]) -> None:
        if not isinstance(masks, Mapping):
            raise TamisTypeError(
                f"MaskGuard: masks: got {type(masks).__name__}, wanted masks by layer name; leave it out "
                "for those that pruning left."
            )
        checked = {}
        for name, keep in masks.items():
            weight = self._layer(name).weight
            shape = keep.shape if isinstance(keep, torch.Tensor) else ()
            if shape != weight.shape:
                raise TamisValueError(
                    f"MaskGuard: {name}: got a mask of shape {list(shape)}, wanted "
                    f"{list(weight.shape)}; pass the mask of this layer."
                )
            checked[name] = keep.to(device=weight.device, dtype=torch.bool)
        if not checked:
            raise TamisValueError(
                "MaskGuard: model: got no nn.Linear with pruned weights, wanted at least one; "
                "prune it with sparsify_(format='dense') first."
            )
        self.masks = checked

    def _layer(self, name: str) -> Any:
        if name not in self._linears:
            raise TamisValueError(
                f"MaskGuard: masks: got {name!r}, wanted the name of an nn.Linear of the model; "
                "correct it."
            )
        return self._linears[name]


def _masks_of(linears: Mapping[str, Any]) -> dict[str, Tensor]:
    masks = {}
    for name, linear in linears.items():
        keep = getattr(linear, KEEP, None)
        if keep is None:
            keep = linear.weight.detach() != 0
        if not bool(keep.all()):
            masks[name] = keep
    return masks


def _packed(keep: Tensor) -> Tensor:
    """Bits of keep, eight per byte, lowest first."""
    bits = keep.reshape(-1).to(torch.uint8).cpu()
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).reshape(-1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    return (bits * weights).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = (packed.cpu().reshape(-1, 1) >> shifts) & 1
    return bits.reshape(-1)[: shape.numel()].bool().reshape(shape)

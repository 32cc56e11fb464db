"""Trains the kept weights of one block so that it gives the output that the dense block gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tamis.calibrate import BlockRun
    from tamis.recipe import Reconstruct

Quantize = Callable[["Tensor"], "Tensor"]


def reconstruct(
    run: BlockRun,
    linears: Mapping[str, nn.Linear],
    weights: Mapping[str, Tensor],
    keeps: Mapping[str, Tensor],
    how: Reconstruct,
    quantize: Quantize | None,
) -> tuple[dict[str, Tensor], float, float]:
    """Weights [n, k] f32 by name, and the mean squared error of the block before and after.

    Adam on the kept weights alone, through what storing them will do; the learning rate falls
    linearly to zero. What does not lower the error is not taken.

    Args:
        run: The block, its inputs and the outputs to reach.
        linears: The block's linears by name.
        weights: [n, k], masked, by name.
        keeps: [n, k] bool.
        how: Steps, samples a step and learning rate.
        quantize: Differentiable; None where values are stored as they are.
    """
    trained = {name: w.detach().float().clone().requires_grad_() for name, w in weights.items()}
    masks = {name: keeps[name].to(torch.float32) for name in trained}

    def stored(name: str) -> Tensor:
        masked = trained[name] * masks[name]
        return quantize(masked) if quantize else masked

    def forward_of(name: str) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            bias = linears[name].bias
            return functional.linear(x, current[name].to(x.dtype), bias)

        return forward

    current: dict[str, Tensor] = {}
    forwards: dict[nn.Module, Callable[..., Any]] = {
        linears[name]: forward_of(name) for name in trained
    }
    optimizer = torch.optim.Adam(trained.values(), how.lr)
    with run.replaced(forwards), _matmuls_in_bf16(run):
        current = {name: stored(name) for name in trained}
        before = run.error(range(len(run)))
        for step in range(how.steps):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * (1 - step / how.steps)
            picked = [(step * how.samples + i) % len(run) for i in range(how.samples)]
            with torch.enable_grad():
                current = {name: stored(name) for name in trained}
                losses = [run.loss(i) for i in dict.fromkeys(picked)]
                loss = torch.stack(losses).mean()
                gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for parameter, gradient in zip(trained.values(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        current = {name: stored(name) for name in trained}
        after = run.error(range(len(run)))
    if not after < before:
        return {name: w.detach().float() for name, w in weights.items()}, before, before
    return {name: (w * masks[name]).detach() for name, w in trained.items()}, before, after


def _matmuls_in_bf16(run: BlockRun) -> Any:
    """Products of the training in bf16, which CPUs with AMX do ten times as fast as f32."""
    cpu = run.targets[0].device.type == "cpu" and run.targets[0].dtype == torch.float32
    return torch.autocast("cpu", dtype=torch.bfloat16) if cpu else nullcontext()

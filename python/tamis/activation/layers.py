"""The modules that leave activations out; they hold the dense layers' own parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tamis.ops import cuda_activation
from tamis.ops.sparse_input import TOKENS, masked_input, sparse_input
from tamis.ops.sparse_mlp import masked_mlp, sparse_mlp

__all__ = ["InputSparseLinear", "SparseMLP", "by_column"]


def by_column(weight: Tensor) -> Tensor:
    """Weight [n, k] of the same values with contiguous columns: what an input meets is one run of memory."""
    return weight.t().contiguous().t()


def _few(x: Tensor) -> int:
    """Most tokens of a step of decoding that leaves weights out."""
    return cuda_activation.DECODED if x.is_cuda else TOKENS


def _decodes(x: Tensor, width: int, *weights: Tensor) -> bool:
    """Whether the kernels take it: few tokens where there are kernels, and nobody wants a gradient."""
    if x.is_cuda:
        fits = cuda_activation.takes(x)
    else:
        fits = x.is_cpu and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not fits or x.numel() > _few(x) * width or any(w.dtype != x.dtype for w in weights):
        return False
    return not (
        torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights))
    )


class InputSparseLinear(nn.Module):
    """y [..., out] = x [..., in] @ w.T + bias with |x[k]| < threshold[k] counting as zero.

    Up to 4 tokens (one on CUDA) read only the columns of w that some of them needs; more tokens, devices
    without kernels and training multiply densely, with the same inputs set to zero unless ``prompts``
    is false.

    State: ``weight`` and ``bias``, as nn.Linear has them; thresholds belong to the plan.

    Args:
        linear: Its parameters are taken over; ``weight`` gets contiguous columns.
        threshold: [in] f32, at least 0.
        prompts: Whether more tokens at a time leave inputs out too.
    """

    threshold: Tensor

    def __init__(self, linear: nn.Linear, threshold: Tensor, prompts: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.prompts = prompts
        self.register_buffer("threshold", threshold.to(linear.weight.device), persistent=False)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """The product of x [..., in], [..., out] in x's dtype."""
        weights = (self.weight,) if self.bias is None else (self.weight, self.bias)
        if _decodes(x, self.in_features, *weights) and self.weight.t().is_contiguous():
            return sparse_input(x, self.weight, self.threshold, self.bias)
        if not self.prompts and x.numel() > _few(x) * self.in_features:
            return functional.linear(x, self.weight, self.bias)
        return masked_input(x, self.weight, self.threshold, self.bias)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class SparseMLP(nn.Module):
    """down(a * up(x)), a = f(gate(x)) with |a[j]| < threshold[j] counting as zero.

    Up to 4 tokens (one on CUDA) read only the rows of up and columns of down of the neurons that some of
    them needs; more tokens, devices without kernels and training multiply densely, with the same
    activations set to zero unless ``prompts`` is false.

    State: the three layers under the names of the module it replaces; thresholds belong to the plan.

    Args:
        layers: Names and layers gate, up and down, without bias; down's weight gets contiguous
            columns.
        threshold: [neurons] f32, at least 0.
        activation: f: "silu", "relu", "gelu" or "gelu_tanh".
        prompts: Whether more tokens at a time leave neurons out too.
    """

    threshold: Tensor

    def __init__(
        self,
        layers: dict[str, nn.Linear],
        threshold: Tensor,
        activation: str,
        prompts: bool = True,
    ) -> None:
        super().__init__()
        self.names = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        first = next(iter(layers.values()))
        self.activation, self.prompts = activation, prompts
        self.register_buffer("threshold", threshold.to(first.weight.device), persistent=False)
        self.train(first.training)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gate [n, k], up [n, k] and down [d, n]."""
        gate, up, down = (getattr(self, name).weight for name in self.names)
        return gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        """The MLP's output for x [..., k], [..., d] in x's dtype."""
        gate, up, down = self.weights()
        if _decodes(x, gate.shape[1], gate, up, down) and down.t().is_contiguous():
            return sparse_mlp(x, gate, up, down, self.threshold, self.activation)
        threshold = self.threshold
        if not self.prompts and x.numel() > _few(x) * gate.shape[1]:
            threshold = torch.zeros_like(threshold)
        return masked_mlp(x, gate, up, down, threshold, self.activation)

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation!r}"


def parameters_of(module: nn.Module) -> Any:
    """Every weight that `module`'s kernels read by column."""
    if isinstance(module, InputSparseLinear):
        return (module.weight,)
    return (getattr(module, module.names[2]).weight,) if isinstance(module, SparseMLP) else ()

"""Linear layers under other names: what is an nn.Linear, and Conv1D of transformers (GPT-2 and its kind).

The weight of a Conv1D lies as [in, out]. It is pruned, measured and compressed as the nn.Linear of its weight [out, in]; a SparseLinear in its
place is marked, so that whatever makes it dense again makes a Conv1D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tamis.nn import SparseLinear
from tamis.recipe import KEEP

__all__ = ["as_linear", "as_own", "in_place_of", "is_conv1d", "is_linear"]


def is_linear(layer: object) -> bool:
    """Whether this is nn.Linear, or Falcon's, which computes the same; other subclasses may not."""
    kind = type(layer)
    falcon = kind.__name__ == "FalconLinear" and kind.__module__.startswith("transformers.")
    return kind is nn.Linear or falcon


def is_conv1d(layer: object) -> bool:
    """Whether this is transformers' Conv1D; it is found by name, so that nothing is imported."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def as_linear(layer: Any) -> nn.Linear:
    """The Conv1D as nn.Linear, whose weight [out, in] is a view of its own; its mask goes along."""
    linear = nn.Linear(layer.nx, layer.nf, bias=False, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t(), layer.weight.requires_grad)
    linear.bias = layer.bias
    keep = getattr(layer, KEEP, None)
    if isinstance(keep, torch.Tensor):
        linear.register_buffer(KEEP, keep.t(), persistent=False)
    return linear.train(layer.training)


def as_own(layer: Any, matrix: Tensor) -> Tensor:
    """A matrix [out, in] in the shape of the layer's own weight."""
    return matrix.t().contiguous() if is_conv1d(layer) else matrix.reshape(layer.weight.shape)


def in_place_of(old: nn.Module, new: nn.Module) -> nn.Module:
    """The new layer, fit to stand where ``old`` does: in place of a Conv1D, marked or one itself."""
    if not (is_conv1d(old) or (isinstance(old, SparseLinear) and old.transposed)):
        return new
    if isinstance(new, SparseLinear):
        new.transposed = True
    return _as_conv1d(new) if isinstance(new, nn.Linear) else new


def _as_conv1d(linear: nn.Linear) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        made = Conv1D(linear.out_features, linear.in_features)
    weight = linear.weight
    made.weight = nn.Parameter(weight.detach().t().contiguous(), weight.requires_grad)
    made.bias = linear.bias
    keep = getattr(linear, KEEP, None)
    if isinstance(keep, torch.Tensor):
        made.register_buffer(KEEP, keep.t().contiguous(), persistent=False)
    return made.train(linear.training)

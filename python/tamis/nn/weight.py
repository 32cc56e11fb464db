"""SparseWeight: what stands for the weight of a SparseLinear where code asks for ``layer.weight``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from tamis.errors import TamisTypeError
from tamis.ops.spmm import unpack

if TYPE_CHECKING:
    from tamis.nn.linear import SparseLinear

__all__ = ["SparseWeight"]


class SparseWeight:
    """What ``SparseLinear.weight`` returns: enough of a tensor for code that only asks about it.

    A torch function that is given it gets ``to_dense()`` in its place, as a hand-written
    ``F.linear(x, layer.weight)`` does, which warns, as that unpacks the weight at every call;
    ``nn.TransformerEncoder`` sees by that to call its layers.

    Attributes:
        dtype: dtype of the dense weight; for int8 values the layer's float dtype.
        device: Where products run.
        shape: [out_features, in_features].
    """

    _is_hf_initialized = True  # so that transformers leaves random values to weights without any

    def __init__(self, layer: SparseLinear) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"SparseLinear.weight: got a use of {name!r}, wanted what this handle of a compressed weight "
            "has; take .to_dense(), or leave the layer dense by sparsify_'s ignore=."
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the dense weight, always floating point."""
        return self._layer.float_dtype

    @property
    def device(self) -> torch.device:
        """Where products run: the device of the arrays, or of what ``prepack_`` packed."""
        return self._layer.packed_on or self._layer.weight_values.device

    @property
    def shape(self) -> torch.Size:
        """[out_features, in_features]."""
        return torch.Size((self._layer.out_features, self._layer.in_features))

    @property
    def requires_grad(self) -> bool:
        """Whether the kept values are trained."""
        return self._layer.weight_values.requires_grad

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def is_cuda(self) -> bool:
        """Whether products run on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def is_meta(self) -> bool:
        """Whether the arrays have no memory yet."""
        return self.device.type == "meta"

    @property
    def data(self) -> SparseWeight:
        """This handle; the values themselves are ``SparseLinear.weight_values``."""
        return self

    def size(self, dim: int | None = None) -> Any:
        """Shape, or one extent of it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Two."""
        return 2

    def numel(self) -> int:
        """Weights of the dense matrix, zeros included."""
        return self.shape.numel()

    def to_dense(self) -> Tensor:
        """Dense weight [out_features, in_features] in ``dtype``; differentiable."""
        layer = self._layer
        dense = unpack(layer.layout.token, layer.weight_values, layer.rest())
        return dense.to(self.device, self.dtype)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The function of the dense weight.

        Raises:
            TamisTypeError: It would write to the weight.
        """
        kwargs = kwargs or {}
        changed = args[0] if args else next(iter(kwargs.values()), None)
        name = getattr(func, "__name__", str(func))
        if isinstance(changed, cls) and name.endswith("_") and not name.endswith("__"):
            raise TamisTypeError(
                f"SparseLinear.weight: got {name}, which would change a dense copy alone, wanted a "
                "function that reads; change weight_values, or call it before sparsify_."
            )
        if not torch.compiler.is_compiling():
            _warn_of_hand_made_products(tree_leaves((args, kwargs)), name)
        args, kwargs = tree_map_only(cls, cls.to_dense, (args, kwargs))
        return func(*args, **kwargs)

    def __repr__(self) -> str:
        return (
            f"SparseWeight({self._layer.layout.label}, shape={list(self.shape)}, "
            f"dtype={self.dtype}, device={self.device})"
        )


def _warn_of_hand_made_products(arguments: Iterable[Any], function: str) -> None:
    """Once for all layers of one name: Python shows a text once for each line that it comes from."""
    for weight in arguments:
        if not isinstance(weight, SparseWeight):
            continue
        layer = weight._layer
        leaf = layer.place.rpartition(".")[2]
        called = f"of {leaf}" if leaf else f"{list(weight.shape)}"
        key = layer.place if not leaf or leaf.isdigit() else f"re:.*{leaf}"
        fix = f"ignore=[{key!r}] of sparsify_" if key else "an nn.Linear"
        warnings.warn(
            f"SparseLinear.weight: got {function} of the weight {called} itself, wanted calls of the "
            f"layer: this unpacks the weight every time, which is slower than a dense layer; keep it "
            f"dense by {fix}.",
            stacklevel=3,
        )

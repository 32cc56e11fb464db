"""SparseLinear: nn.Linear whose weight is stored compressed."""

from __future__ import annotations

import torch
from torch import nn

from tamis.layout import Layout
from tamis.tensor.matrix import SparseMatrix


class SparseLinear(nn.Module):
    """y = x @ w.T + bias, w compressed."""

    def __init__(
        self,
        layout: Layout,
        nnz: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        keep: torch.Tensor | None = None,
        format: str = "auto",
        dtype: str | None = None,
        n_m: tuple[int, int] | None = None,
        block: tuple[int, int] | None = None,
        group_size: int = 0,
    ) -> SparseLinear:
        """SparseLinear with the weights of ``linear`` where ``keep`` is true."""
        raise NotImplementedError

    @classmethod
    def from_matrix(cls, a: SparseMatrix, bias: torch.Tensor | None = None) -> SparseLinear:
        """SparseLinear that shares the arrays of ``a``."""
        raise NotImplementedError

    def to_linear(self) -> nn.Linear:
        """nn.Linear with the dense weight."""
        raise NotImplementedError

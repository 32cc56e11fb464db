"""SparseMatrix: one handle over the compressed formats, NumPy or torch inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tamis.layout import Layout


class SparseMatrix:
    """A compressed weight w [rows, cols]: ``layout`` and its arrays by name."""

    def __init__(self, layout: Layout, arrays: Mapping[str, Any]) -> None:
        self.layout = layout
        self.arrays = dict(arrays)

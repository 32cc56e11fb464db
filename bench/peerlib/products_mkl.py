"""Products by sparse_dot_mkl: Intel MKL's CSR, from its own package."""

import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from peerlib.product import Array, Product, copies_for

# The package looks for the library by name; pip puts it into the environment's lib folder.
for found in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
    os.environ.setdefault("MKL_RT", str(found))

import scipy.sparse  # noqa: E402

_multiply: Callable[[Any, Array], Any] = importlib.import_module("sparse_dot_mkl").dot_product_mkl
_mkl = ctypes.CDLL(os.environ["MKL_RT"])


class InMkl(Product):
    """w @ x."""

    def __init__(self, w: Array, cold_bytes: int) -> None:
        super().__init__()
        first = scipy.sparse.csr_array(w)
        self.nbytes = first.data.nbytes + first.indices.nbytes + first.indptr.nbytes
        self.copies = copies_for(self.nbytes, cold_bytes)
        self._weights = [first.copy() for _ in range(self.copies)]
        self._x: Any = None

    def bind(self, x: Array, threads: int) -> None:
        _mkl.MKL_Set_Num_Threads(threads)
        self._x = np.ascontiguousarray(x.T)

    def call(self, i: int) -> Any:
        return _multiply(self._weights[i], self._x)

    def output(self) -> Array:
        y: Array = self.call(0).T
        return y


def make(name: str, w: Array, cold_bytes: int) -> Product:
    """Product of a candidate of this process for w [n,k]."""
    return InMkl(w, cold_bytes)

"""Products by ggml, the library under llama.cpp, from the llama-cpp-python package.

Weights go through ggml's repacking buffer where it takes them, as llama.cpp loads a model.
"""

import ctypes
import importlib
from ctypes import c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from peerlib.product import Array, Product, copies_for

_FOLDER = Path(str(importlib.import_module("llama_cpp").__file__)).parent / "lib"


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(_FOLDER / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)


_base, _cpu = _library("ggml-base"), _library("ggml-cpu")
TYPES = {"q4_0": 2, "q8_0": 8}
REPACKED = ("q4_0",)  # on x86; its buffer does not refuse the others, it crashes
F32 = 0


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


_init = _function(_base, "ggml_init", c_void_p, _InitParams)
_free = _function(_base, "ggml_free", None, c_void_p)
_overhead = _function(_base, "ggml_tensor_overhead", c_size_t)
_graph_overhead = _function(_base, "ggml_graph_overhead", c_size_t)
_new_2d = _function(_base, "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
_mul_mat = _function(_base, "ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
_new_graph = _function(_base, "ggml_new_graph", c_void_p, c_void_p)
_expand = _function(_base, "ggml_build_forward_expand", None, c_void_p, c_void_p)
_row_size = _function(_base, "ggml_row_size", c_size_t, c_int, c_int64)
_quantize = _function(
    _base,
    "ggml_quantize_chunk",
    c_size_t,
    c_int,
    ctypes.POINTER(c_float),
    c_void_p,
    c_int64,
    c_int64,
    c_int64,
    c_void_p,
)
_place = _function(_base, "ggml_backend_alloc_ctx_tensors", c_void_p, c_void_p, c_void_p)
_place_in = _function(
    _base, "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p
)
_release = _function(_base, "ggml_backend_buffer_free", None, c_void_p)
_set = _function(_base, "ggml_backend_tensor_set", None, c_void_p, c_void_p, c_size_t, c_size_t)
_get = _function(_base, "ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)
_compute = _function(_base, "ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
_cpu_init = _function(_cpu, "ggml_backend_cpu_init", c_void_p)
_set_threads = _function(_cpu, "ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)
# C++, so its name is mangled; older builds do not have it.
_repack = getattr(_cpu, "_Z35ggml_backend_cpu_repack_buffer_typev", None)
if _repack is not None:
    _repack.restype, _repack.argtypes = c_void_p, ()

_backend = _cpu_init()


def _context(tensors: int, graphs: int = 0) -> Any:
    size = _overhead() * tensors + _graph_overhead() * graphs + 1024
    return _init(_InitParams(size, None, True))


class InGgml(Product):
    """ggml_mul_mat on quantized copies; activations are quantized by ggml in every call."""

    def __init__(self, w: Array, kind: str, cold_bytes: int) -> None:
        super().__init__()
        n, k = w.shape
        self._n, self._k, type_id = n, k, TYPES[kind]
        self.nbytes = n * _row_size(type_id, k)
        self.copies = copies_for(self.nbytes, cold_bytes)
        codes = np.empty(self.nbytes, dtype=np.uint8)
        source = np.ascontiguousarray(w, dtype=np.float32)
        pointer = source.ctypes.data_as(ctypes.POINTER(c_float))
        _quantize(type_id, pointer, codes.ctypes.data, 0, n, k, None)
        self._weights_at = _context(self.copies)
        self._weights = [_new_2d(self._weights_at, type_id, k, n) for _ in range(self.copies)]
        repacked = kind in REPACKED and _repack is not None
        buffer = _place_in(self._weights_at, _repack()) if repacked else None
        self._buffers = [buffer or _place(self._weights_at, _backend)]
        for weight in self._weights:
            _set(weight, codes.ctypes.data, 0, self.nbytes)
        self._graphs: list[Any] = []
        self._inputs_at: Any = None
        self._y: Any = None
        self._shape = (0, n)

    def bind(self, x: Array, threads: int) -> None:
        _set_threads(_backend, threads)
        self._drop_inputs()
        m = x.shape[0]
        self._shape = (m, self._n)
        self._inputs_at = _context(1 + self.copies, self.copies)
        x_tensor = _new_2d(self._inputs_at, F32, self._k, m)
        outputs = [_mul_mat(self._inputs_at, weight, x_tensor) for weight in self._weights]
        self._graphs = [_new_graph(self._inputs_at) for _ in outputs]
        for graph, y in zip(self._graphs, outputs, strict=True):
            _expand(graph, y)
        self._y = outputs[0]
        self._buffers.append(_place(self._inputs_at, _backend))
        values = np.ascontiguousarray(x, dtype=np.float32)
        _set(x_tensor, values.ctypes.data, 0, values.nbytes)

    def call(self, i: int) -> Any:
        return _compute(_backend, self._graphs[i])

    def output(self) -> Array:
        self.call(0)
        y = np.empty(self._shape, dtype=np.float32)
        _get(self._y, y.ctypes.data, 0, y.nbytes)
        return y

    def _drop_inputs(self) -> None:
        if self._inputs_at is not None:
            _release(self._buffers.pop())
            _free(self._inputs_at)
            self._inputs_at = None

    def __del__(self) -> None:
        self._drop_inputs()
        _release(self._buffers.pop())
        _free(self._weights_at)


def make(name: str, w: Array, cold_bytes: int) -> Product:
    """Product of a candidate of this process for w [n,k]."""
    return InGgml(w, name.split()[-1], cold_bytes)

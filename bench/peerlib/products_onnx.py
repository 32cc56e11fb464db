"""Products by onnxruntime and DeepSparse, which take a model file.

The model holds several layers that share an input. Time per product is the time of the whole model
divided by its layers: the cost of a call is shared, to the engines' advantage.
"""

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from peerlib.onnx_file import write_layers
from peerlib.product import Array, Product

# Of dense f32 weights per model: so many that what evicting them leaves behind, which slows the first
# few products (SETTLE_S), counts little.
LAYERS_BYTES = 160 << 20
MAX_LAYERS = 32


class InEngine(Product):
    """A model of equal layers; all of it is evicted before each call."""

    flush = True

    def __init__(self, w: Array) -> None:
        super().__init__()
        self.layers = max(1, min(MAX_LAYERS, -(-LAYERS_BYTES // (w.size * 4))))
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name, "layers.onnx")
        self._w = w
        self._run: Any = None
        self._x: Any = None

    def prepare(self, k: int) -> None:
        """Nothing: a session is made for each input."""

    def call(self, i: int) -> Any:
        return self._run(self._x)

    def output(self) -> Array:
        y: Array = self.call(0)[0]
        return y


class InOnnxRuntime(InEngine):
    """One session per number of threads; the number of rows stays open."""

    def __init__(self, w: Array) -> None:
        super().__init__(w)
        self.nbytes = w.size * 4
        write_layers(self._path, w, 0, self.layers)
        self._threads = 0

    def bind(self, x: Array, threads: int) -> None:
        onnxruntime: Any = importlib.import_module("onnxruntime")

        self._x = x
        if threads == self._threads:
            return
        self._threads, self._run = threads, None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(self._path), options, providers=["CPUExecutionProvider"]
        )
        self._run = lambda x: session.run(None, {"x": x})


class InDeepSparse(InEngine):
    """One engine per number of rows and of threads."""

    def bind(self, x: Array, threads: int) -> None:
        os.environ["NM_DISABLE_ANALYTICS"] = "1"
        deepsparse: Any = importlib.import_module("deepsparse")

        self._run = None
        write_layers(self._path, self._w, x.shape[0], self.layers)
        engine = deepsparse.Engine(str(self._path), batch_size=x.shape[0], num_cores=threads)
        self._x, self._run = [np.ascontiguousarray(x)], engine.run


def make(name: str, w: Array, cold_bytes: int) -> Product:
    """Product of a candidate of this process for w [n,k]."""
    return InDeepSparse(w) if name.startswith("deepsparse") else InOnnxRuntime(w)

"""A process that owns some candidates: reads one JSON request per line, writes one JSON answer.

Requests: load (a weight), bind (an input; answers the output's file), time, read, drop.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np

from peerlib.product import Product

HOMES = {
    "main": "products_torch",
    "mkl": "products_mkl",
    "onnxruntime": "products_onnx",
    "deepsparse": "products_onnx",
    "ggml": "products_ggml",
}
VERSIONS = {
    "main": ("torch", "scipy", "tamis"),
    "mkl": ("sparse_dot_mkl",),
    "onnxruntime": ("onnxruntime",),
    "deepsparse": ("deepsparse",),
    "ggml": ("llama_cpp",),
}


class Server:
    """Products by candidate name."""

    def __init__(self, kind: str) -> None:
        self._home: ModuleType = importlib.import_module(f"peerlib.{HOMES[kind]}")
        self._kind = kind
        self._products: dict[str, Product] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer of one request; an exception becomes its sentence."""
        work: Callable[..., dict[str, Any]] = getattr(self, "do_" + request.pop("do"))
        try:
            return work(**request)
        except Exception as err:  # whatever a peer raises belongs into the table
            traceback.print_exc()
            text = str(err).splitlines()
            return {"failed": f"{type(err).__name__}: {text[0] if text else ''}"[:200]}

    def do_hello(self) -> dict[str, Any]:
        """Versions of what runs here."""
        return {n: importlib.import_module(n).__version__ for n in VERSIONS[self._kind]}

    def do_load(self, name: str, weight: str, cold_bytes: int) -> dict[str, Any]:
        """Copies of a weight for one candidate."""
        w = np.load(weight)
        product: Product = self._home.make(name, w, cold_bytes)
        product.prepare(w.shape[1])
        self._products[name] = product
        return {"nbytes": product.nbytes}

    def do_bind(self, name: str, x: str, threads: int, y: str) -> dict[str, Any]:
        """Input and threads of one candidate; its output is saved to y."""
        product = self._products[name]
        product.bind(np.load(x), threads)
        np.save(y, product.output())
        product.reset(threads)
        return {}

    def do_time(self, name: str) -> dict[str, Any]:
        """Seconds per product, one round."""
        return {"seconds": self._products[name].time()}

    def do_read(self, threads: int, nbytes: int) -> dict[str, Any]:
        """Bytes per second of plain reads."""
        return {"bytes_per_second": self._home.stream_read(threads, nbytes)}

    def do_drop(self) -> dict[str, Any]:
        """Forget every weight."""
        self._products.clear()
        gc.collect()
        return {}


def main() -> None:
    """Serves until the input ends."""
    _die_with_parent()
    # Libraries print; answers keep the real standard output, prints go to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        server = Server(sys.argv[1])
    except ImportError as err:
        print(json.dumps({"failed": str(err).splitlines()[0]}), file=out, flush=True)
        return
    print("{}", file=out, flush=True)
    with _no_gradients():
        for line in sys.stdin:
            print(json.dumps(server.answer(json.loads(line))), file=out, flush=True)


def _die_with_parent() -> None:
    """Asks Linux for it: a process that its parent has stopped would stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _no_gradients() -> AbstractContextManager[object]:
    context: AbstractContextManager[object] = (
        sys.modules["torch"].no_grad() if "torch" in sys.modules else nullcontext()
    )
    return context


if __name__ == "__main__":
    main()

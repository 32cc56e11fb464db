"""What is compared: shapes, patterns of zeros, candidates."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Output features n, input features k.
SHAPES = {
    "smollm2-qo": (576, 576),
    "smollm2-kv": (192, 576),
    "smollm2-up": (1536, 576),
    "smollm2-down": (576, 1536),
    "llama3-qo": (4096, 4096),
    "llama3-up": (14336, 4096),
    "llama3-down": (4096, 14336),
    "llama3-kv": (1024, 4096),
    "mobilenet-1x1": (512, 512),
}
# A 1x1 convolution multiplies every pixel at once.
PIXELS = {"mobilenet-1x1": (196, 784, 3136)}
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1)
BATCHES = (1, 2, 4, 8, 16, 64, 256)
BLOCK = 16

# Largest |y - reference| over the largest |reference|; above it a candidate counts as wrong.
TOLERANCE = {"f32": 1e-4, "bf16": 2e-2, "i8": 5e-2, "i4": 3e-1}


@dataclass(frozen=True)
class Candidate:
    """One way to multiply by a weight.

    Attributes:
        name: Unique; starts with the peer.
        worker: Process that runs it.
        dtype: Of the weights it reads: "f32", "bf16", "i8" or "i4".
        pattern: Zeros it gets: "any", "block" (16x16), "group" (1x16) or "2:4".
        dense: Reads zeros like any other weight.
        max_density: Left out above it.
        max_threads: Left out above it.
    """

    name: str
    worker: str
    dtype: str = "f32"
    pattern: str = "any"
    dense: bool = False
    max_density: float = 1.0
    max_threads: int = 1 << 20

    @property
    def peer(self) -> str:
        """What --peers selects."""
        return self.name.split()[0]

    def fits(self, density: float, threads: int) -> bool:
        """Whether it takes part."""
        if self.pattern == "2:4" and density != 0.5:
            return False
        return density <= self.max_density and threads <= self.max_threads


CANDIDATES = (
    Candidate("torch f32", "main", dense=True),
    Candidate("torch bf16", "main", dtype="bf16", dense=True),
    Candidate("torch i8", "main", dtype="i8", dense=True),
    Candidate("torch csr f32", "main", max_density=0.5),
    Candidate("torch bsr f32", "main", pattern="block", max_density=0.5),
    Candidate("scipy csr f32", "main", max_density=0.5, max_threads=1),
    Candidate("mkl csr f32", "mkl", max_density=0.5),
    Candidate("onnxruntime f32", "onnxruntime", dense=True),
    Candidate("deepsparse f32", "deepsparse"),
    Candidate("ggml q8_0", "ggml", dtype="i8", dense=True),
    Candidate("ggml q4_0", "ggml", dtype="i4", dense=True),
    Candidate("tamis f32", "main"),
    Candidate("tamis bf16", "main", dtype="bf16"),
    Candidate("tamis i8", "main", dtype="i8"),
    Candidate("tamis csr f32", "main", max_density=0.2),
    Candidate("tamis csr bf16", "main", dtype="bf16", max_density=0.2),
    Candidate("tamis 2:4 f32", "main", pattern="2:4"),
    Candidate("tamis 2:4 bf16", "main", dtype="bf16", pattern="2:4"),
    Candidate("tamis block f32", "main", pattern="block", max_density=0.5),
    Candidate("tamis groupq i4", "main", dtype="i4", pattern="group"),
)
BY_NAME = {c.name: c for c in CANDIDATES}
PEERS = tuple(dict.fromkeys(c.peer for c in CANDIDATES))


def make_weight(shape: tuple[int, int], density: float, pattern: str, seed: int) -> Array:
    """Random w [n,k] f32 with that share of nonzeros, scaled so that outputs are about 1."""
    rng = np.random.default_rng(seed)
    n, k = shape
    w = rng.standard_normal((n, k), dtype=np.float32)
    w[w == 0] = 1  # it happens, and would be one kept weight less
    if pattern == "2:4":
        order = rng.random((n, k // 4, 4), dtype=np.float32).argsort(-1)
        w *= (order < 2).reshape(n, k)
    elif density < 1 and pattern == "block":
        keep = rng.random((n // BLOCK, k // BLOCK)) < density
        w *= keep.repeat(BLOCK, 0).repeat(BLOCK, 1)
    elif density < 1 and pattern == "group":
        w *= (rng.random((n, k // BLOCK)) < density).repeat(BLOCK, 1)
    elif density < 1:
        w *= rng.random((n, k), dtype=np.float32) < density
    w /= np.float32(np.sqrt(density * k))
    return w


def make_input(m: int, k: int, seed: int) -> Array:
    """Random x [m,k] f32."""
    return np.random.default_rng(seed + 1).standard_normal((m, k), dtype=np.float32)


def error(y: Array, reference: Array) -> float:
    """Largest difference over the largest reference; infinite for a wrong shape or NaN."""
    if y.shape != reference.shape or not np.isfinite(y).all():
        return float("inf")
    return float(np.abs(y - reference).max() / np.abs(reference).max())

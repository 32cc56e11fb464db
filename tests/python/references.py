"""Float64 NumPy references that share no code with tamis, and random weights for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Spacing of a dtype at 1.
EPS = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}


def weight(rows: int, cols: int, pattern: str, sparsity: float, seed: int = 0) -> Array:
    """float32 w [rows, cols] that ``pattern`` ("any", "2:4", "block:4x4") can store exactly."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    w[w == 0] = 1
    if pattern == "2:4":
        order = rng.random((rows, cols // 4, 4)).argsort(-1).argsort(-1)
        w[(order >= 2).reshape(rows, cols)] = 0
    elif pattern == "block:4x4":
        blocks = rng.random((rows // 4, cols // 4)) < sparsity
        w[np.kron(blocks, np.ones((4, 4))) > 0] = 0
    else:
        w[rng.random((rows, cols)) < sparsity] = 0
    return w


def rounded(w: Array, dtype: str) -> Array:
    """``w`` rounded to ``dtype`` by torch, as float32."""
    return torch.from_numpy(w).to(TORCH[dtype]).float().numpy()


def product(x: Array, w: Array, bias: Array | None = None) -> Array:
    """x @ w.T + bias in float64."""
    y = x.astype(np.float64) @ w.astype(np.float64).T
    return y if bias is None else y + bias.astype(np.float64)


def bound(x: Array, w: Array, dtype: str, bias: Array | None = None, stored: str = "f32") -> Array:
    """Largest error a float32 accumulation and one rounding to ``dtype`` may leave, per output.

    Values stored as "i8" may be multiplied by x rounded to steps, each 1/127 of the largest |x| of
    its columns: half a step per element, and no more than half a step of the token's largest.
    """
    x, w = x.astype(np.float64), w.astype(np.float64)
    size = np.abs(x) @ np.abs(w).T
    lost = np.zeros_like(size)
    if stored == "i8" and x.size:
        step = np.abs(x).max(axis=-1, keepdims=True) / 127
        lost = (0.5 + 127 * EPS["f32"]) * step * np.abs(w).sum(axis=-1)
    if bias is not None:
        size = size + np.abs(bias)
    return lost + (8 * EPS["f32"] + EPS[dtype]) * (size + lost) + 1e-7


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k) v in float64, and the logarithm of its sums; keep: [b, g, s] bool."""
    b, h, n, d = q.shape
    g = k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(h // g, 1), v.repeat_interleave(h // g, 1)
    scores = q @ k.transpose(-1, -2) * (d**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if keep is not None:
        hidden = ~keep.repeat_interleave(h // g, 1).unsqueeze(2)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1)

"""Random queries, keys and values, and what attention makes of them."""

import torch


def problem(s, *, b=1, h=4, g=2, d=64, seed=0):
    """q [b, h, s, d], k and v [b, g, s, d], float32."""
    made = torch.Generator().manual_seed(seed)
    q = torch.randn(b, h, s, d, generator=made)
    k, v = torch.randn(2, b, g, s, d, generator=made)
    return q, k, v


def dense(q, k, v, seen):
    """Attention where ``seen`` [g, n, s], float64."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden = ~seen.repeat_interleave(group, 0)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num(0.0) @ v

"""Windows of attention heads that lose least: influence of block pairs, and the choice of a window each.

Fu et al. 2024, MoA (arXiv:2406.14909): sections 4.1 (influence) and 4.2 (choice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tamis.errors import TamisValueError

if TYPE_CHECKING:
    from torch import Tensor

RULES_PER_LAYER = 2
"""Different windows that the heads of a layer may have, so that few shapes of memory exist."""


def influence(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, *, scale: float, block: int
) -> Tensor:
    """How much the loss would change without each block pair, [g, m, m] f32: the largest of a group.

    Of one pair of tokens, to first order, with the row's weights brought to sum 1 again:
    |A_ij (G_ij - sum_k A_ik G_ik) / (1 - A_ij)|, where A are weights and G = dLoss / dA.

    Args:
        q: [b, h, n, d].
        k: [b, g, n, d].
        v: [b, g, n, d].
        gradient: dLoss / doutput, [b, h, n, d].
        scale: Of the scores.
        block: Tokens of a block; the last one may be shorter.
    """
    b, h, n, d = q.shape
    g, m = k.shape[1], -(-n // block)
    rows, grads = (x.float().view(b, g, h // g, n, d) for x in (q, gradient))
    columns, values = (x.float().transpose(-1, -2).unsqueeze(2) for x in (k, v))
    place = torch.arange(n, device=q.device)
    of_block = place // block
    total = torch.zeros(b, g, h // g, m, m, device=q.device)
    for i in range(m):
        at = slice(i * block, min(n, (i + 1) * block))
        upto = int(at.stop)
        scores = (rows[:, :, :, at] @ columns[..., :upto]) * scale
        future = place[:upto] > place[at.start : upto].unsqueeze(1)
        a = scores.masked_fill(future, float("-inf")).softmax(-1)
        slope = grads[:, :, :, at] @ values[..., :upto]
        change = (a * (slope - (a * slope).sum(-1, keepdim=True)) / (1 - a + 1e-6)).abs()
        alone = a == 1  # a row of one token cannot be brought to sum 1 again: all of it goes
        change = torch.where(alone, (a * slope).abs(), change).sum(3)
        total[:, :, :, i].index_add_(-1, of_block[:upto], change)
    return total.amax(2).sum(0)


@dataclass(frozen=True)
class Rule:
    """alpha + beta * tokens, and the blocks that makes at each length."""

    alpha: float
    beta: float
    windows: tuple[int, ...]


def candidates(lengths: Sequence[int], block: int) -> list[Rule]:
    """One rule for each possible tuple of windows at ``lengths``, windows from 1 block to all.

    Of rules that make the same windows the one with the smallest beta stays.
    """
    found: dict[tuple[int, ...], Rule] = {}
    longest = max(lengths)
    step = max(block, longest // 16 // block * block)
    for beta in (torch.arange(9) / 8).tolist():
        for alpha in range(-min(lengths), longest + 1, step):
            windows = tuple(int((alpha + beta * n) // block) for n in lengths)
            fits = all(1 <= w <= n // block for w, n in zip(windows, lengths, strict=True))
            if fits and windows not in found:
                found[windows] = Rule(float(alpha), beta, windows)
    return list(found.values())


def rule_losses(found: Tensor, windows: Sequence[int], sink: int) -> Tensor:
    """Influence that each window masks, [g, windows], of block influences [g, m, m]."""
    m = found.shape[-1]
    apart = torch.arange(m).view(-1, 1) - torch.arange(m).view(1, -1)
    hidden = [(apart >= w) & (torch.arange(m) >= sink) for w in windows]
    return torch.stack([(found * mask).sum((-1, -2)) for mask in hidden], -1)


def search_spans(
    found: Mapping[int, Mapping[int, Tensor]], *, block: int, sink: int, density: float
) -> dict[int, list[list[float]]]:
    """[alpha, beta] of each KV head by layer, which lose least at the given density.

    At every length the heads' windows and sinks, over the blocks of that length, average to
    ``density`` at most; a layer's heads have two different rules at most. By mixed integer
    programming where SciPy is at hand, else by a Lagrange multiplier.

    Args:
        found: Block influences [g, m, m] by length and layer.
        block: Tokens of a block.
        sink: First blocks that every row sees.
        density: Bound.

    Raises:
        TamisValueError: The bound is below the smallest possible, or above 1.
    """
    lengths = sorted(found)
    rules = candidates(lengths, block)
    layers = sorted(found[lengths[0]])
    loss: Tensor = sum(  # type: ignore[assignment]
        torch.stack(
            [rule_losses(found[n][i], [r.windows[at] for r in rules], sink) for i in layers]
        ).double()
        / sum(float(x.sum()) for x in found[n].values())
        for at, n in enumerate(lengths)
    )
    cost = torch.tensor(
        [
            [min(1.0, (r.windows[at] + sink) * block / n) for r in rules]
            for at, n in enumerate(lengths)
        ],
        dtype=torch.float64,
    )
    least = float(cost.amin(1).max())
    if not least <= density <= 1:
        raise TamisValueError(
            f"kv.calibrate: density: got {density}, wanted {least:.3g} (one block and the sink at the "
            "shortest length) to 1; longer lengths= allow less."
        )
    chosen = _by_milp(loss, cost, density)
    if chosen is None:
        chosen = _by_multiplier(loss, cost, density)
    return {
        i: [[rules[r].alpha, rules[r].beta] for r in chosen[at].tolist()]
        for at, i in enumerate(layers)
    }


def _by_milp(loss: Tensor, cost: Tensor, density: float) -> Tensor | None:
    """Rule of each head [layers, g] of losses [layers, g, rules]; None without SciPy or solution."""
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import eye_array, hstack, kron
    except ImportError:
        return None
    layers, g, rules = loss.shape
    heads = layers * g
    one = np.ones((1, rules))
    pick = kron(eye_array(heads), one)  # x of a head sum to 1
    spend = np.tile(cost.numpy(), (1, heads))
    used = kron(kron(eye_array(layers), np.ones((g, 1))), eye_array(rules))  # x <= y of its layer
    few = kron(eye_array(layers), one)
    x, y = heads * rules, layers * rules
    none_x, none_y = np.zeros((layers, x)), np.zeros((heads, y))
    bounds = [
        LinearConstraint(hstack([pick, none_y]).tocsr(), 1, 1),
        LinearConstraint(np.hstack([spend, np.zeros((len(cost), y))]), -np.inf, density * heads),
        LinearConstraint(hstack([eye_array(x), -used]).tocsr(), -np.inf, 0),
        LinearConstraint(hstack([none_x, few]).tocsr(), -np.inf, RULES_PER_LAYER),
    ]
    weights = np.concatenate([loss.flatten().numpy(), np.zeros(y)])
    whole = np.concatenate([np.ones(x), np.zeros(y)])  # y follows x
    found = milp(
        weights,
        constraints=bounds,
        bounds=Bounds(0, 1),
        integrality=whole,
        options={"time_limit": 60.0, "mip_rel_gap": 0.005},
    )
    if found.x is None:
        return None
    return torch.from_numpy(found.x[:x]).view(layers, g, rules).argmax(-1)


def _by_multiplier(loss: Tensor, cost: Tensor, density: float) -> Tensor:
    """Rule of each head [layers, g]: bisects the price of density until every length keeps its bound."""
    price = cost.sum(0)
    low, high = 0.0, 1.0
    while (
        bool((cost[:, _cheapest(loss + high * price)].mean((1, 2)) > density).any()) and high < 1e9
    ):
        high *= 4
    for _ in range(50):
        middle = (low + high) / 2
        chosen = _cheapest(loss + middle * price)
        fits = bool((cost[:, chosen].mean((1, 2)) <= density).all())
        low, high = (low, middle) if fits else (middle, high)
    return _cheapest(loss + high * price)


def _cheapest(total: Tensor) -> Tensor:
    """Rule of each head [layers, g], two different ones a layer at most, of totals [layers, g, rules]."""
    pairs = torch.minimum(total.unsqueeze(-1), total.unsqueeze(-2)).sum(1)  # [layers, rules, rules]
    best = pairs.flatten(1).argmin(-1)
    rules = total.shape[-1]
    both = torch.stack([best // rules, best % rules], -1)  # [layers, 2]
    index = both.unsqueeze(1).expand(-1, total.shape[1], -1)
    pick = total.gather(-1, index).argmin(-1, keepdim=True)
    return index.gather(-1, pick).squeeze(-1)

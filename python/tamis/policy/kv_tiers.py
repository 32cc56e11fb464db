"""Where a growing KV cache lives: on the device, on the host, or nowhere, to be computed again.

Zhao et al. 2024, ALISA (arXiv:2403.17312), section 5.2: three phases by length, whose constants
minimize the time of all steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tamis.errors import TamisValueError


@dataclass(frozen=True)
class Tiers:
    """What one machine and model allow.

    Attributes:
        bytes_per_token: Keys and values of all layers.
        device_bytes: Room for them on the device.
        host_bytes: Room on the host.
        bandwidth: Bytes a second from host to device.
        step_seconds: Of a step apart from what follows.
        attend_seconds: More for each token that a step reads.
        recompute_seconds: Of a token's keys and values.
    """

    bytes_per_token: int
    device_bytes: int
    host_bytes: int
    bandwidth: float
    step_seconds: float = 0.0
    attend_seconds: float = 0.0
    recompute_seconds: float = 0.0


@dataclass(frozen=True)
class TierPlan:
    """Three phases, by the number of tokens.

    Attributes:
        p1: Phase I, below so many: all tokens are on the device.
        p2: Phase II, below so many; phase III from there.
        alpha: From phase II on: part of the tokens before the local ones that is on the host; what a
            step selects of it is loaded.
        beta: In phase III: part of those, the oldest, that is dropped, and computed again where selected.
        seconds: Of all steps.
    """

    p1: int
    p2: int
    alpha: float
    beta: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Step:
    """Tokens by place, and the time of one step."""

    device: float
    host: float
    dropped: float
    seconds: float


def simulate(
    plan: TierPlan, tiers: Tiers, *, prompt: int, tokens: int, fraction: float
) -> Iterator[Step]:
    """The steps from ``prompt`` to ``tokens`` tokens; each reads ``fraction`` of what there is.

    Half of what a step reads are the latest tokens, half are selected, evenly among the others.
    """
    for n in range(prompt, tokens):
        local = selected = fraction * n / 2
        away = 0.0 if n < plan.p1 else plan.alpha * (n - local)
        dropped = 0.0 if n < plan.p2 else plan.beta * away
        share = 1 / max(n - local, 1.0)
        moved = selected * (away - dropped) * share * tiers.bytes_per_token
        again = selected * dropped * share
        yield Step(
            n - away,
            away - dropped,
            dropped,
            tiers.step_seconds
            + tiers.attend_seconds * (local + selected)
            + moved / tiers.bandwidth
            + tiers.recompute_seconds * again,
        )


def plan_tiers(tiers: Tiers, *, prompt: int, tokens: int, fraction: float = 0.2) -> TierPlan:
    """The plan of least time that fits both rooms at every step, by trying a grid of constants.

    Args:
        tiers: The machine and model.
        prompt: Tokens before the first step.
        tokens: Tokens after the last.
        fraction: Share of the tokens that a step reads.

    Raises:
        TamisValueError: No plan fits: even the tokens that every step reads exceed the device.
    """
    room = tiers.device_bytes // tiers.bytes_per_token
    p1 = min(room + 1, tokens)  # as long as all fits
    least = _least_alpha(room, tokens, fraction)
    grid = [least + (1 - least) * i / 8 for i in range(9)] if p1 < tokens else [0.0]
    ends = sorted({p1 + (tokens - p1) * i // 8 for i in range(9)})
    best: TierPlan | None = None
    for alpha, p2, beta in product(grid, ends, [i / 8 for i in range(9)]):
        plan = TierPlan(p1, p2, alpha, beta)
        if (beta == 0) != (p2 == tokens):  # phase III drops something, or there is none
            continue
        seconds = _seconds(plan, tiers, prompt, tokens, fraction)
        if seconds is not None and (best is None or seconds < best.seconds):
            best = TierPlan(p1, p2, alpha, beta, seconds)
    if best is None:
        raise TamisValueError(
            f"kv.plan_tiers: tiers: got room for {room} tokens on the device and "
            f"{tiers.host_bytes // tiers.bytes_per_token} on the host, wanted enough for {tokens} with "
            f"{fraction:.0%} read a step; raise one of them or read less."
        )
    return best


def _least_alpha(room: int, tokens: int, fraction: float) -> float:
    """Smallest part that must leave the device by the last step."""
    last = tokens - 1
    older = last * (1 - fraction / 2)
    return min(1.0, max(0.0, (last - room) / max(older, 1.0)))


def _seconds(
    plan: TierPlan, tiers: Tiers, prompt: int, tokens: int, fraction: float
) -> float | None:
    """Time of all steps, None where one exceeds its room; sampled where there are many."""
    device, host = (x / tiers.bytes_per_token for x in (tiers.device_bytes, tiers.host_bytes))
    total = 0.0
    for step in simulate(plan, tiers, prompt=prompt, tokens=tokens, fraction=fraction):
        if step.device > device + 1e-6 or step.host > host + 1e-6:
            return None
        total += step.seconds
    return total

"""Plans of where tokens lie and what is computed again (ALISA): they fit, and cost least."""

from dataclasses import replace

import pytest

from tamis.errors import TamisValueError
from tamis.policy.kv_tiers import Tiers, plan_tiers, simulate

TIERS = Tiers(
    bytes_per_token=1000,
    device_bytes=400_000,
    host_bytes=10_000_000,
    bandwidth=1e7,
    step_seconds=1e-3,
    attend_seconds=1e-6,
    recompute_seconds=2e-4,
)


def steps(plan, tiers=TIERS):
    return list(simulate(plan, tiers, prompt=100, tokens=1000, fraction=0.2))


def test_a_placement_fits_and_costs_least_of_those_tried():
    plan = plan_tiers(TIERS, prompt=100, tokens=1000)
    made = steps(plan)
    assert plan.p1 == 401
    assert plan.p1 <= plan.p2
    assert max(step.device for step in made) <= 400
    assert sum(step.seconds for step in made) == pytest.approx(plan.seconds)
    assert all(step.host == 0 for step in made[:300])
    assert made[-1].device + made[-1].host + made[-1].dropped == pytest.approx(999)
    for other in (replace(plan, alpha=1.0), replace(plan, alpha=0.9, beta=0.5, p2=700)):
        assert sum(step.seconds for step in steps(other)) >= plan.seconds * 0.999


def test_a_small_host_or_a_slow_link_makes_phase_three():
    full = plan_tiers(TIERS, prompt=100, tokens=1000)
    assert full.beta == 0  # a load takes 1e-4 s, computing again 2e-4
    small = plan_tiers(replace(TIERS, host_bytes=300_000), prompt=100, tokens=1000)
    assert small.p1 < small.p2 < 1000
    assert small.beta > 0
    made = steps(small, TIERS)
    assert max(step.host for step in made) <= 300
    assert max(step.dropped for step in made) > 0
    slow = plan_tiers(replace(TIERS, bandwidth=1e6), prompt=100, tokens=1000)
    assert slow.beta == 1.0
    assert slow.p2 == slow.p1
    roomy = plan_tiers(replace(TIERS, device_bytes=10**9), prompt=100, tokens=1000)
    assert roomy.alpha == 0
    with pytest.raises(TamisValueError, match="room for 50 tokens on the device"):
        plan_tiers(replace(TIERS, device_bytes=50_000), prompt=100, tokens=1000)

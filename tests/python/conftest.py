"""What every test shares: one thread unless it asks for more, repeatable examples, seeded torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything loads an OpenMP runtime

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tamis",
    deadline=None,  # the machine is shared
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tamis")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Seed torch where a test imported it, and leave its global switches as they were."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
    yield
    if torch is not None:
        torch.set_grad_enabled(True)

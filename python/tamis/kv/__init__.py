"""KV caches that hold fewer bytes and are read as stored.

``store`` holds one layer and needs only torch; ``Cache`` and ``attach`` put stores under a
transformers model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamis.kv.attention import Handle, attach
    from tamis.kv.cache import Cache
    from tamis.kv.calibration import calibrate
    from tamis.kv.kv_store import KvStore, store
    from tamis.kv.plan import Plan
    from tamis.kv.scorer import press
    from tamis.kv.tiers import Tiers
    from tamis.kv.together import Together

_HOME = {
    "Cache": "cache",
    "Handle": "attention",
    "KvStore": "kv_store",
    "Plan": "plan",
    "Tiers": "tiers",
    "Together": "together",
    "attach": "attention",
    "calibrate": "calibration",
    "press": "scorer",
    "store": "kv_store",
}

__all__ = [
    "Cache",
    "Handle",
    "KvStore",
    "Plan",
    "Tiers",
    "Together",
    "attach",
    "calibrate",
    "press",
    "store",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"tamis.kv.{_HOME[name]}"), name)
    raise AttributeError(f"module 'tamis.kv' has no attribute {name!r}")

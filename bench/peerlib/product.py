"""The product of one candidate: copies of a weight, an input, a call that is timed."""

import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ROUND_S = 2e-3  # wanted length of one timing; short calls repeat until then
# Calls before it, until the scheduler has given each thread a core again and what read 480 MB or
# slept before is forgotten: after that, the first three products of half a millisecond took 1.1,
# 0.9 and 0.7 on Zen 4, whatever their weights' pages, so two that were timed looked twice as slow.
SETTLE_S = 8e-3


class Product(ABC):
    """y [m,n] = x [m,k] @ w.T for weights that take turns, so that none is in cache.

    Attributes:
        nbytes: Read per call, of the weight as it is stored; 0 where the engine does not tell.
        copies: Equal weights in memory.
        layers: Products per call.
        flush: The copies fit in cache: evict them before each call.
    """

    nbytes: int = 0
    copies: int = 1
    layers: int = 1
    flush: bool = False

    def __init__(self) -> None:
        self._next = 0
        self._calls = 1
        self._clock = time.perf_counter

    @abstractmethod
    def bind(self, x: Array, threads: int) -> None:
        """Takes the next input and number of threads."""

    @abstractmethod
    def call(self, i: int) -> Any:
        """Multiplies by copy i; the result is whatever the library returns."""

    @abstractmethod
    def output(self) -> Array:
        """Result of a call as y [m,n] f32, of copy 0."""

    def prepare(self, k: int) -> None:
        """Multiplies every copy by one row: some libraries prepare a weight on its first use."""
        self.bind(np.zeros((1, k), dtype=np.float32), 1)
        for i in range(self.copies):
            self.call(i)

    def reset(self, threads: int) -> None:
        """Forgets how many calls fill a timing; a new input takes a new time.

        One thread is timed by what its process computes, so that others' turns on the core do not
        count.
        """
        self._calls = 1
        self._clock = time.process_time if threads == 1 else time.perf_counter

    def time(self) -> float:
        """Seconds per product."""
        calls, copies, i, call = self._calls, self.copies, self._next, self.call
        settled = time.perf_counter() + (0 if self.flush else SETTLE_S)
        while time.perf_counter() < settled:
            call(i)
            i = (i + 1) % copies
        if self.flush:
            _flush()
        start = self._clock()
        for _ in range(calls):
            call(i)
            i += 1
            if i == copies:
                i = 0
        seconds = max(self._clock() - start, 1e-9)
        self._next = i
        if not self.flush:
            self._calls = max(1, min(1000, round(ROUND_S * calls / seconds)))
        return seconds / calls / self.layers


def copies_for(nbytes: int, cold_bytes: int) -> int:
    """Copies of a weight that together exceed every cache."""
    return max(2, -(-cold_bytes // max(nbytes, 1)))


_evict: Array | None = None


def _flush() -> None:
    global _evict
    if _evict is None:
        _evict = np.ones(480 << 17, dtype=np.int64)  # 480 MiB
    _evict.sum()

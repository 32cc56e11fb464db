"""Times on a CUDA device: events round graphs of calls, medians, several sides in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

ROTATED_BYTES = 250 << 20  # five times the L2 of an H100
REPEATS, LEAST_REPEATS = 21, 5
TURNS_S = 1.0  # after so long the least do
WARM_UP_S = 0.1  # clocks of an idle device rise only with work


def copies_of(nbytes: int) -> int:
    return max(2, -(-ROTATED_BYTES // nbytes))


def timed(calls: Callable[[], object], count: int) -> float:
    """Median seconds of one of the ``count`` calls that ``calls`` makes, from graph replays."""
    return timed_in_turns({"": calls}, count)[""]


def timed_in_turns(
    sides: dict[str, Callable[[], object]],
    count: int,
    warm_up_s: float = WARM_UP_S,
    lead_cycles: int = 0,
) -> dict[str, float]:
    """Median seconds of one call of each side.

    ``lead_cycles``: the device is busy so long before, so that no replay waits for the host.
    """
    import torch

    graphs = {}
    stream = torch.cuda.Stream()
    for name, calls in sides.items():
        with torch.cuda.stream(stream):
            calls()
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name], stream=stream):
            calls()
        graphs[name].replay()
    end = time.monotonic() + warm_up_s
    while time.monotonic() < end:
        for graph in graphs.values():
            graph.replay()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in sides}
    end = time.monotonic() + TURNS_S
    for turn in range(REPEATS):
        if turn >= LEAST_REPEATS and time.monotonic() > end:
            break
        for name, graph in graphs.items():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if lead_cycles:
                torch.cuda._sleep(lead_cycles)
            first.record()
            graph.replay()
            last.record()
            last.synchronize()
            times[name].append(first.elapsed_time(last) / 1e3 / count)
    return {name: statistics.median(values) for name, values in times.items()}

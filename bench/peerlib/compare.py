"""Runs the candidates side by side: rounds take turns, the median of each counts."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peerlib.cases import BY_NAME, TOLERANCE, Array, Candidate, error, make_input, make_weight
from peerlib.process import Worker

ROUNDS = 7
# A candidate this many times slower than the best of its dtype is settled after three rounds; never
# a dense one, which is what the others are measured against. One that has computed this long is
# settled too.
HOPELESS, FEW_ROUNDS, LONG_S = 4.0, 3, 0.5
READ_BYTES = 480 << 20


@dataclass
class Row:
    """One candidate at one point; medians. ms is 0 where it did not run, and note says why."""

    shape: str
    n: int
    k: int
    density: float
    m: int
    threads: int
    candidate: str
    dtype: str
    ms: float = 0.0
    best_ms: float = 0.0
    spread: float = 0.0  # (third quartile - first) / median
    rounds: int = 0
    nbytes: int = 0
    limit_gbs: float = 0.0
    limit_share: float = 0.0  # bytes over time, of the read speed in the same round
    error: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What to run at every shape and density."""

    points: Sequence[tuple[int, int]]  # threads, m
    candidates: Sequence[Candidate]
    cold_bytes: int
    seed: int
    rounds: int = ROUNDS


class Comparison:
    """All points of one weight [n,k] at one density."""

    def __init__(
        self,
        workers: dict[str, Worker],
        plan: Plan,
        shape: tuple[str, int, int],
        density: float,
    ) -> None:
        self._workers, self._plan, self._density = workers, plan, density
        self._shape, self._n, self._k = shape
        self._failed: dict[str, str] = {}
        self._nbytes: dict[str, int] = {}
        self._weights: dict[str, Array] = {}

    def run(self, say: Callable[[str], None]) -> Iterator[list[Row]]:
        """The rows of every point, as measured; weights and inputs travel as files."""
        with tempfile.TemporaryDirectory() as folder:
            self._load(Path(folder))
            for threads, m in self._plan.points:
                say(f"{self._shape} density {self._density:g} m {m} threads {threads}")
                yield self._point(Path(folder), m, threads)
        for worker in self._workers.values():
            worker.ask("drop")

    def _load(self, folder: Path) -> None:
        fewest = min(threads for threads, _ in self._plan.points)
        chosen = [c for c in self._plan.candidates if c.fits(self._density, fewest)]
        for pattern in dict.fromkeys(c.pattern for c in chosen):
            w = make_weight((self._n, self._k), self._density, pattern, self._plan.seed)
            self._weights[pattern] = w
            np.save(folder / f"{_file(pattern)}.npy", w)
        for c in chosen:
            answer = self._workers[c.worker].ask(
                "load",
                name=c.name,
                weight=str(folder / f"{_file(c.pattern)}.npy"),
                cold_bytes=self._plan.cold_bytes,
            )
            self._nbytes[c.name] = int(answer.get("nbytes", 0))
            if "failed" in answer:
                self._failed[c.name] = answer["failed"]

    def _point(self, folder: Path, m: int, threads: int) -> list[Row]:
        x = make_input(m, self._k, self._plan.seed)
        np.save(folder / "x.npy", x)
        references = {p: x @ w.T for p, w in self._weights.items()}
        rows = [
            self._row(c, m, threads)
            for c in self._plan.candidates
            if c.fits(self._density, threads)
        ]
        for row in rows:
            self._check(row, folder, references[BY_NAME[row.candidate].pattern])
        limit = self._time([row for row in rows if not row.note], threads)
        for row in rows:
            row.limit_gbs = limit / 1e9
        return rows

    def _row(self, c: Candidate, m: int, threads: int) -> Row:
        row = Row(self._shape, self._n, self._k, self._density, m, threads, c.name, c.dtype)
        row.nbytes, row.note = self._nbytes[c.name], self._failed.get(c.name, "")
        return row

    def _check(self, row: Row, folder: Path, reference: Array) -> None:
        """Runs a candidate once; one that fails or is wrong gets a note and no time."""
        if row.note:
            return
        worker = self._workers[BY_NAME[row.candidate].worker]
        x, y = str(folder / "x.npy"), str(folder / "y.npy")
        answer = worker.ask("bind", name=row.candidate, x=x, threads=row.threads, y=y)
        if "failed" in answer:
            row.note = answer["failed"]
            return
        row.error = error(np.load(y), reference)
        if not row.error <= TOLERANCE[row.dtype]:
            row.note = f"wrong: differs by {row.error:.1e} of the largest output"

    def _time(self, rows: list[Row], threads: int) -> float:
        """Fills in times; returns the stream-read limit in bytes per second."""
        times: dict[str, list[float]] = {row.candidate: [] for row in rows}
        limits: list[float] = []
        for done in range(self._plan.rounds):
            settled = _hopeless(times) if done >= FEW_ROUNDS else set()
            answer = self._workers["main"].ask("read", threads=threads, nbytes=READ_BYTES)
            limits.append(answer.get("bytes_per_second", 0.0))
            for row in rows:
                if row.note or row.candidate in settled:
                    continue
                answer = self._workers[BY_NAME[row.candidate].worker].ask(
                    "time", name=row.candidate
                )
                if "failed" in answer:
                    row.note = answer["failed"]
                else:
                    times[row.candidate].append(answer["seconds"])
        for row in rows:
            _settle(row, times[row.candidate], limits)
        return statistics.median(limits)


def _hopeless(times: dict[str, list[float]]) -> set[str]:
    best: dict[str, float] = {}
    for name, found in times.items():
        dtype = BY_NAME[name].dtype
        best[dtype] = min([best.get(dtype, float("inf")), *found])
    slow = {
        name
        for name, found in times.items()
        if found and not BY_NAME[name].dense and min(found) > HOPELESS * best[BY_NAME[name].dtype]
    }
    return slow | {name for name, found in times.items() if sum(found) > LONG_S}


def _settle(row: Row, times: list[float], limits: list[float]) -> None:
    if row.note:
        return
    row.ms, row.best_ms = statistics.median(times) * 1e3, min(times) * 1e3
    row.rounds = len(times)
    # Round by round, because on a shared machine the memory's speed drifts.
    shares = [row.nbytes / t / read for t, read in zip(times, limits, strict=False) if read]
    row.limit_share = statistics.median(shares) if shares else 0.0
    low, _, high = statistics.quantiles(times, n=4)
    row.spread = (high - low) / statistics.median(times)


def _file(pattern: str) -> str:
    return pattern.replace(":", "-")

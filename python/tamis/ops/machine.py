"""This machine's figures: measured once, kept in the user's cache folder, used when predicting."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tamis import _C
from tamis.layout import Layout

TOKENS = (1, 2, 4, 8, 16, 64, 256)  # of the dense tables, as in csrc/base/machine.h
COLUMNS = (576, 4096)
ROWS = 1024
_COLD_BYTES = 160 << 20  # at least, and more than the caches
_DENSE_S = 0.03  # per point and round
_KERNEL_CALLS = 20
_SCALE_TOKENS = (1, 4, 16, 64, 256)
_ROUNDS = 3
_TIMED_FORMATS = ("bitmap", "csr", "csr8", "nm", "block")  # the others follow the rest


@cache
def load() -> str:
    """Where the figures in use come from: a file, or "" if they are the built-in ones.

    The first call reads the file, if this machine has been measured by this version.
    """
    path = file()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key():
            _C.set_machine(stored["figures"])
            return str(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        pass  # not measured, or damaged: the built-in figures stay
    return ""


def measure(say: Callable[[str], None] = lambda _: None) -> Path:
    """Measures this machine, half a minute, and keeps the figures; returns the file.

    Raises:
        OSError: The cache folder cannot be written; nothing was measured.
    """
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()
    try:
        figures = _measured(say)
        write(path, json.dumps({"key": key(), "figures": figures}, indent=1))
    finally:  # interrupted, the figures are again what they were
        load.cache_clear()
        load()
    return path


def _measured(say: Callable[[str], None]) -> _C.Figures:
    _C.set_machine(None)
    figures = _C.machine()
    threads = _C.num_threads()
    say("memory")
    figures["threads"] = threads
    figures["read_one"] = _C.stream_read(1, cold_bytes())
    figures["read_all"] = _C.stream_read(threads, cold_bytes())
    if threads > 1:
        figures["fork"] = _C.fork_ns(threads)
    _measure_kernels(figures, say)
    _measure_weights(figures, threads, say)
    _measure_torch(figures, threads, say)
    return figures


def key() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(_C.num_threads()),
        "isa": _C.isa()["active"],
        "tamis": metadata.version("tamis") if _installed() else "source",
        "constants": _constants(),
    }


@cache
def _constants() -> str:
    """Of the kernels' built-in constants, which the figures are multiples of: a new kernel or fit voids them."""
    said = [
        (row["name"], _C.compute_ns(row["name"], tokens, 512, 4096, 1 << 20))
        for row in _C.kernels()
        if row["op"] == "spmm"
        for tokens in (1, 64)
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def file() -> Path:
    """The file of this machine's figures, whether it exists or not."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if sys.platform == "darwin" and not os.environ.get("XDG_CACHE_HOME"):
        base = Path.home() / "Library" / "Caches"
    name = hashlib.sha256(json.dumps(key(), sort_keys=True).encode()).hexdigest()[:12]
    return Path(base) / "tamis" / f"machine-{name}.json"


def cold_bytes() -> int:
    """So much data that reading it again comes from memory; at most 512 MB."""
    largest = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)K\s*", path.read_text(encoding="ascii", errors="replace"))
        largest = max(largest, int(found.group(1)) << 10 if found else 0)
    return min(max(_COLD_BYTES, largest * 3 // 2), 512 << 20)


def cpu_name() -> str:
    """Model name of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    facts = [
        re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
        for name in ("model name", "cpu family", "model")
    ]
    return " ".join(found.group(1) for found in facts if found) or platform.machine()


def _installed() -> bool:
    try:
        metadata.version("tamis")
    except metadata.PackageNotFoundError:
        return False
    return True


def _measure_kernels(figures: Any, say: Callable[[str], None]) -> None:
    """Each kernel's time in cache over what its constants say."""
    before = _C.num_threads()
    _C.set_num_threads(1)
    try:
        own = {
            row["name"]: (_small(row["format"], row["w_dtype"]), row["from_m"])
            for row in _C.kernels()
            if row["runs_here"]
            and row["name"] in figures["kernels"]
            and row["format"] in _TIMED_FORMATS
        }
        scales = dict.fromkeys(own, np.inf)
        for _ in range(_ROUNDS):  # the least of several moments, as others' work only adds
            for name, (a, fewest) in own.items():
                say(name)
                scales[name] = min(scales[name], _scale_of(name, a, fewest))
        # Half its own and half everyone's: one kernel's moment is noise, all of them the clock.
        middle = float(np.median(list(scales.values())))
        for name in figures["kernels"]:
            figures["kernels"][name] = float(np.sqrt(scales.get(name, middle) * middle))
        a = _small("bitmap", "f32")
        figures["unpack"] = min(_timed(a.unpack) for _ in range(20)) * 1e9 / (a.rows * a.cols)
    finally:
        _C.set_num_threads(before)


def _measure_weights(figures: Any, threads: int, say: Callable[[str], None]) -> None:
    """How fast a kernel gets cold weights, and what threads do to each other when computing."""
    from tamis.ops.handle import make_matrix

    say("weights")
    half = ROWS * COLUMNS[1] // 2
    kernel = _C.choose("bitmap", "f32", "f32", 1, ROWS, COLUMNS[1], half, _C.isa()["active"])
    layout, first = _half_full("bitmap", "f32", ROWS, COLUMNS[1])
    nbytes = sum(array.nbytes for array in first.values())
    copies = [{n: a.copy() for n, a in first.items()} for _ in range(cold_bytes() // nbytes + 2)]
    cold = [make_matrix(layout, arrays, check=False) for arrays in copies]
    near = _small("bitmap", "f32")
    alone = 0.0
    for name, count in (("weights_one", 1), ("weights_all", threads)):
        _C.set_num_threads(count)
        try:
            times = [t for _ in range(_ROUNDS) for t in _C.time_spmm(kernel, cold, 1, len(cold))]
            busy = min(_C.time_spmm(kernel, [near], 64, _KERNEL_CALLS))
        finally:
            _C.set_num_threads(0)
        figures[name] = nbytes / float(np.quantile(times, 0.25))
        if count == 1:
            alone = busy
        else:
            figures["share"] = min(alone / busy / count, 1.0)


def _scale_of(name: str, a: _C.Matrix, fewest: int) -> float:
    """Measured over expected time, for two of the numbers of tokens that it is chosen for."""
    ratios = []
    for m in [m for m in _SCALE_TOKENS if m >= fewest][:2]:
        expected = _C.compute_ns(name, m, a.rows, a.cols, a.nnz)
        ratios.append(min(_C.time_spmm(name, [a], m, _KERNEL_CALLS)) / expected)
    return float(np.sqrt(ratios[0] * ratios[1]))


def _small(format: str, dtype: str) -> _C.Matrix:
    """A half-full weight that fits the second-level cache."""
    from tamis.ops.handle import make_matrix

    return make_matrix(*_half_full(format, dtype, 256, COLUMNS[0]), check=False)


def _half_full(format: str, dtype: str, n: int, k: int) -> tuple[Layout, dict[str, Any]]:
    """A random weight's layout and arrays."""
    from tamis.ops.handle import NUMPY_VALUES, pack

    keep = np.zeros((n, k // 4, 4), dtype=np.bool_)
    keep[:, :, :2] = np.random.default_rng(0).random((n, k // 4, 1)) < 0.5
    keep[:, :, 2:] = ~keep[:, :, :2]
    if format == "block":
        keep = (np.random.default_rng(0).random((n // 16, k // 16)) < 0.5).repeat(16, 0)
        keep = keep.repeat(16, 1)
    kept, of = (2, 4) if format == "nm" else (0, 0)
    block = (16, 16) if format == "block" else (0, 0)
    layout = Layout(format, n, k, dtype, kept, of, block)
    source = "f32" if dtype == "i8" else dtype
    # Of bf16 the bits: as integer 1 it would be a denormal, which costs some processors 100 cycles.
    one = 0x3F80 if source == "bf16" else 1
    w = np.full((n, k), one, dtype=NUMPY_VALUES[source])
    return layout, pack(layout, w, source, keep.reshape(n, k))


def _measure_torch(figures: Any, threads: int, say: Callable[[str], None]) -> None:
    """Dense products, if torch is there; else the built-in rates stay."""
    try:
        import torch
        from torch.nn.functional import linear
    except ImportError:
        return
    before = torch.get_num_threads()
    points = [(t, i) for t in range(2) for i in range(len(TOKENS))]
    try:
        with torch.no_grad():
            one = torch.ones(1, 1)
            torch.set_num_threads(1)
            figures["call"] = min(_timed(lambda: linear(one, one)) for _ in range(200)) * 1e9
            for name, dtype in (("dense_f32", torch.float32), ("dense_16", torch.bfloat16)):
                for wide, k in enumerate(COLUMNS):
                    say(f"torch {dtype} {ROWS}x{k}")
                    first = torch.ones(ROWS, k, dtype=dtype)
                    count = cold_bytes() // (first.numel() * first.element_size())
                    weights = [first, *(first.clone() for _ in range(count))]
                    least = dict.fromkeys(points, np.inf)
                    for point in points * _ROUNDS:
                        torch.set_num_threads(threads if point[0] else 1)
                        x = torch.ones(TOKENS[point[1]], k, dtype=dtype)
                        clock = (
                            time.perf_counter if torch.get_num_threads() > 1 else time.thread_time
                        )
                        least[point] = min(least[point], _dense_seconds(linear, x, weights, clock))
                    for (t, i), seconds in least.items():
                        ns = max(seconds * 1e9 - figures["call"], 1.0) / (ROWS * k)
                        figures[name][t][wide][i] = float(ns)
    finally:
        torch.set_num_threads(before)


def _dense_seconds(linear: Any, x: Any, weights: list[Any], clock: Callable[[], float]) -> float:
    """A typical time: the lower third of some calls, each with the next weight."""
    times: list[float] = []
    begin = time.perf_counter()
    linear(x, weights[-1])
    while len(times) < 5 or (time.perf_counter() - begin < _DENSE_S and len(times) < 300):
        w = weights[len(times) % len(weights)]
        times.append(_timed(partial(linear, x, w), clock))
    return sorted(times)[len(times) // 3]


def _timed(call: Callable[[], Any], clock: Callable[[], float] = time.thread_time) -> float:
    """Seconds; by the clock of this thread they leave out what others do on its core meanwhile."""
    begin = clock()
    call()
    return clock() - begin


def write(path: Path, text: str) -> None:
    """All of it or nothing: others may read at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)

"""Sections of gpu.py that are right or wrong: the build, the device's tests, the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
TESTED = (
    *(
        f"cuda{what}"
        for what in ("", "_spmm", "_cost", "_activation", "_prefill", "_grad", "_graphs", "_models")
    ),
    *(f"cuda_kv{what}" for what in ("", "_select", "_edit", "_store")),
    "prepack",
    "spgemm",
)


def run(*command: str, limit: float = 300, threads: int | None = None) -> str:
    """Output of a command, also when it fails; the code stands in the first line."""
    start = time.monotonic()
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        so_far = said if isinstance(said, str) else said.decode(errors="replace")
        return f"rc timeout\n{so_far[-3000:]}\nstopped after {limit:.0f} s"
    seconds = f"took {time.monotonic() - start:.0f} s"
    first, last = done.stdout[:3000], done.stdout[3000:][-3000:]
    return f"rc {done.returncode}\n{first}{last}{done.stderr[-3000:]}\n{seconds}"


def at_once(commands: dict[str, list[str]], limit: float) -> dict[str, str]:
    """Outputs of commands that share the device, which nothing times meanwhile.

    They share the cores too: with a thread for each core in each of them, torch's OpenMP spins at
    every barrier for threads that do not run, and a test of 3 s takes minutes.
    """
    threads = max(1, (os.cpu_count() or 1) // len(commands))
    with ThreadPoolExecutor(len(commands)) as pool:
        waiting = {
            name: pool.submit(run, *c, limit=limit, threads=threads) for name, c in commands.items()
        }
        return {name: said.result() for name, said in waiting.items()}


def build() -> dict[str, Any]:
    configured = run(
        "cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DTAMIS_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}",
    )  # fmt: skip
    built = run("cmake", "--build", str(BUILD), "--target", "_C", "tamis_cuda")
    if not built.startswith("rc 0"):
        raise SystemExit(f"gpu: build failed\n{configured}\n{built}")
    return {"ok": True}


def conformance() -> dict[str, Any]:
    pytest = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    commands = {name: [*pytest, f"tests/python/test_{name}.py"] for name in TESTED}
    found = at_once(commands, limit=240)
    for name, said in found.items():
        ok = said.startswith("rc 0")
        print(
            f"  {name}: {' '.join(said.splitlines()[-2:])}" if ok else f"  {name}: {said[-3000:]}"
        )
    ok = all(said.startswith("rc 0") for said in found.values())
    return {"ok": ok, "output": {name: said[-1000:] for name, said in found.items()}}


# What each run of a sanitizer gets of gpu_small.py: racecheck part by part, as one may end it.
PARTS = ("few", "f32", "p24", "r24", "tiles", "m24", "codes", "kv", "rest", "spgemm")
SANITIZED = {
    "memcheck control": ("control",),
    "memcheck": PARTS,
    "synccheck": PARTS,
    "initcheck": PARTS[:-2],
    **{f"racecheck {part}": (part,) for part in PARTS},
}


def sanitizer(limit: float = 120) -> dict[str, Any]:
    """What compute-sanitizer says of small calls; of "control" it must say something."""
    places = (shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer")
    tool_path = next((place for place in places if place and Path(place).exists()), None)
    if tool_path is None:
        print("  SKIP sanitizer: no compute-sanitizer on PATH or in the toolkit")
        return {"ok": True}
    commands = {}
    for name, parts in SANITIZED.items():
        tool = name.split()[0]
        # initcheck must see what torch's kernels write.
        only = [] if tool == "initcheck" else ["--kernel-name", "kernel_substring=tamis"]
        commands[name] = [
            "env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool_path, "--tool", tool, *only,
            sys.executable, "bench/gpu_small.py", *parts,
        ]  # fmt: skip
    found: dict[str, Any] = {"ok": True}
    for tool, said in at_once(commands, limit).items():
        summary = [line.strip("= ") for line in said.splitlines() if "SUMMARY" in line]
        clean = bool(summary) and "SUMMARY: 0 " in summary[-1]
        right = summary and not clean if "control" in tool else clean and "finished" in said
        found[tool] = f"{summary[-1] if summary else 'no summary'}, {said.splitlines()[-1]}"
        found["ok"] = found["ok"] and bool(right)
        print(f"  {tool}: {'' if right else 'WRONG: '}{found[tool]}")
        if not right:
            print(said)
    return found

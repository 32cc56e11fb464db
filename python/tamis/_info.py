"""info() and kernels(): what this build is, what this host runs, and why."""

from __future__ import annotations

import os
import platform
from typing import Any

import tamis
from tamis import _C
from tamis.kv import limits
from tamis.ops import cuda, machine

ENVIRONMENT = {
    "TAMIS_ISA": "narrows the instruction set: scalar, avx2, avx512, avx512vbmi2, avx512bf16, avx512fp16, amx; "
    "scalar, neon, neon_dot, neon_fhm, neon_bf16",
    "TAMIS_CUDA": "0 keeps the CUDA library unloaded",
    "TAMIS_NUM_THREADS": "threads of a call, if tamis and torch are not told otherwise",
    "TAMIS_LOG": "level of the logger named tamis",
}


class Info(dict[str, Any]):
    """A dict that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        lines = []
        for name, value in self.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            text = [f"{key}: {part}" if key else str(part) for key, part in parts]
            lines += [f"{name:<{width}}  {text[0]}"]
            lines += [f"{'':<{width}}  {line}" for line in text[1:]]
        return "\n".join(lines)


def info() -> Info:
    """Version, instruction sets, threads, backends, build and environment of this process."""
    isa = _C.isa()
    rows = kernels()
    return Info(
        version=tamis.__version__,
        python=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        isa={"host": isa["host"], "active": isa["active"]},
        threads=_C.num_threads(),
        kernels=f"{sum(bool(row['runs_here']) for row in rows)} of {len(rows)} run on this host",
        machine=_figures(),
        backends={"cpu": f"on, {isa['active']}", "cuda": cuda.status()},
        build=_C.__file__,
        environment={
            name: os.environ.get(name, f"unset ({ENVIRONMENT[name]})") for name in ENVIRONMENT
        },
    )


def _figures() -> dict[str, str]:
    """Where predictions come from, and what this machine reads."""
    path = machine.load()
    now = _C.machine()
    kv = limits.limits()
    return {
        "figures": path or "built in; tamis info --measure replaces them by this machine's",
        "reads": f"{now['read_one']:.1f} GB/s on one thread, {now['read_all']:.1f} on "
        f"{now['threads']}",
        "KV caches": f"by torch's SDPA below {kv.sdpa_f32} tokens in f32, {kv.sdpa_16} in 16 bits; "
        f"chosen tokens from {kv.choose_bytes} bytes left out",
    }


def kernels() -> list[dict[str, Any]]:
    """Every kernel of this build, best first within an op, format and dtype.

    Each has name, op, format, w_dtype, x_dtype, isa, tile_m (tokens per pass), tile_n (rows per
    step), from_m (fewest tokens it is chosen for) and runs_here.
    """
    rows = (
        *_C.kernels(),
        *_C.spmm_grad_kernels(),
        *_C.spgemm_kernels(),
        *_C.activation_kernels(),
        *_C.conv2d_kernels(),
        *_C.kv_kernels(),
        *cuda.kernel_rows(),
    )
    return [{"from_m": 1, **row} for row in rows]

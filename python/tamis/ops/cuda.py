"""The CUDA library: opened on first use, why it is off, what it has.

The CUDA library lies beside ``_C`` and is opened on first use; without it, without a driver or with
``TAMIS_CUDA=0`` nothing here fails, and the operators expand the weight with plain torch. Products
with weights on a device are ``tamis.ops.cuda_spmm``.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from tamis import _C


@cache
def why_off() -> str:
    """Why no CUDA kernel runs in this process; empty if they do."""
    if os.environ.get("TAMIS_CUDA") == "0":
        return "TAMIS_CUDA=0"
    path = Path(_C.__file__).parent / "libtamis_cuda.so"
    if not path.exists():
        return "this build has no CUDA library"
    return _C.cuda_load(str(path))


def status() -> str:
    """One phrase for ``tamis.info()``."""
    reason = why_off()
    if reason:
        return f"off, {reason}"
    names = [f"{d['name']} (sm{d['capability']})" for d in _C.cuda_devices()]
    return f"on, {', '.join(names)}"


def kernel_rows() -> list[Any]:
    """Rows for ``tamis.kernels()``; ``runs_here`` is the first device's choice."""
    return [] if why_off() else list(_C.cuda_kernels(_C.cuda_devices()[0]["capability"]))

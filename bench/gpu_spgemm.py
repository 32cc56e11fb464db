"""Products of two sparse matrices on a CUDA device against torch's (cuSPARSE), in turns.

Both ask the host how many values there are, so whole calls are timed, not graphs.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

ROWS, EACH = 100_000, 8


def spgemm_section() -> list[dict[str, Any]]:
    import torch

    from tamis.ops.spgemm import spgemm

    found = []
    for kind in ("uniform", "skewed"):
        sides = []
        for _ in range(2):
            i, j = (torch.rand(2, ROWS * EACH, device="cuda", dtype=torch.float64)).unbind()
            if kind == "skewed":
                i, j = i * i, j * j
            where = torch.stack([(i * ROWS).long(), (j * ROWS).long()])
            values = torch.randn(ROWS * EACH, device="cuda")
            coo = torch.sparse_coo_tensor(where, values, (ROWS, ROWS)).coalesce()
            sides.append(coo.to_sparse_csr())
        ours = [(s.values(), s.crow_indices(), s.col_indices().int()) for s in sides]
        calls = {
            "ours": lambda ours=ours: spgemm(ours[0], ours[1], (ROWS, ROWS, ROWS)),
            "torch": lambda sides=sides: sides[0] @ sides[1],
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(8):
            for name, call in calls.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                call()
                torch.cuda.synchronize()
                if turn:
                    times[name].append(time.perf_counter() - start)
        c, want = calls["ours"](), calls["torch"]().to_sparse_coo().coalesce()
        same = c[0].numel() == want.values().numel()
        error = ((c[0] - want.values()).norm() / want.values().norm()).item() if same else 1.0
        found.append({
            "what": kind, "values": c[0].numel(), "error": error,
            **{f"{name}_us": 1e6 * statistics.median(t) for name, t in times.items()},
        })  # fmt: skip
    return found


def print_spgemm(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        wrong = "" if r["error"] < 1e-5 else f"  WRONG by {r['error']:.1e}"
        print(
            f"spgemm {r['what']:8} {r['values']} values {r['ours_us']:9.0f} us, torch "
            f"{r['torch_us']:9.0f}, {r['torch_us'] / r['ours_us']:.2f} times{wrong}"
        )

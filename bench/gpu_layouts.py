"""Every layout of a product on a CUDA device against the one that is planned, one weight at a time.

python bench/gpu_layouts.py [--tokens 1 8] [--shapes "q, o" "gate, up"]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import torch
from gpu_products import SHAPES, Sparse
from gpu_timing import timed_in_turns


def layouts(sparse: Sparse, w: torch.Tensor, m: int) -> list[tuple[float, int, int]]:
    """Microseconds of each layout that fits, best first, with warps and blocks over k.

    Where warpgroups take the weight (m24 and bitmap on Hopper): with the line of their layouts, and
    blocks.
    """
    x = torch.randn(m, w.shape[1], dtype=torch.bfloat16, device="cuda")
    y = x.new_empty(m, len(w))
    count = len(sparse.matrices)
    choices = [(k, s) for k in (1, 2, 4, 8) for s in (1, 2, 3, 4, 6, 8, 12, 16)]
    lay_out = "lay_out"
    if sparse.matrices[0].plan(m)["layout"] >= 0:
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        parts = {-(-len(w) // rows) * k for rows in (64, 128, 256) for k in range(1, 9)}
        shares = {sms * k // 2 for k in (1, 2, 3, 4, 6, 8)}
        choices = [(i, blocks) for i in range(16) for blocks in sorted(parts | shares)]
        lay_out = "lay_out_groups"
    found = []
    for first, second in choices:
        if not all(getattr(a, lay_out)(m, first, second) for a in sparse.matrices):
            continue
        if sparse.matrices[0].workspace(m) > sparse.workspace.numel():
            continue
        times = timed_in_turns({"": lambda: sparse.calls(x, y, count)}, count, warm_up_s=0.02)
        found.append((1e6 * times[""], first, second))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--forms", nargs="*", default=["m24 2:4", "t16 0.5"])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    a = parser.parse_args()
    print(torch.cuda.get_device_name())
    for name in a.shapes:
        rows, cols = SHAPES[name]
        dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
        keep = torch.rand(rows, cols // 4, 4, device="cuda").argsort(-1).lt(2).view(rows, cols)
        for what in a.forms:
            form, kept = what.split()
            if form == "m24":
                w, sparse = dense * keep, Sparse(dense * keep, keep)
            else:
                w = dense * (torch.rand_like(dense, dtype=torch.float32) < float(kept))
                sparse = Sparse(w, form=form)
            for m in a.tokens:
                plan = sparse.matrices[0].plan(m)
                planned = (plan["warps_k"], plan["splits"])
                if plan["layout"] >= 0:
                    planned = (plan["layout"], plan["blocks"])
                all_of_them = layouts(sparse, w, m)
                line = ", ".join(f"{us:.1f} ({k} x {s})" for us, k, s in all_of_them[:4])
                mine = next((us for us, k, s in all_of_them if (k, s) == planned), float("nan"))
                print(f"{name:9} {what:10} m {m:4}: planned {mine:.1f} {planned}; best {line}")


if __name__ == "__main__":
    main()

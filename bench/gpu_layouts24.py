"""Every layout and cluster of the m24 product for many tokens, against dense and torch's 2:4 path.

python bench/gpu_layouts24.py [--tokens 64 512] [--shapes "q, o" "gate, up"] [--best 6]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import torch
from gpu import SHAPES, Sparse, semi_structured
from gpu_timing import copies_of, timed_in_turns

# Row blocks, token blocks and parts of k of a cluster.
CLUSTERS = (
    (1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 1), (2, 2, 1),
    (1, 1, 2), (2, 1, 2), (4, 1, 2), (1, 1, 3), (2, 1, 3), (1, 2, 2), (1, 1, 4), (2, 1, 4), (1, 1, 5), (1, 1, 6), (1, 1, 7), (1, 1, 8),
)  # fmt: skip
LAYOUTS = (  # of m24_many_layouts.def: tokens, warpgroups, slots, blocks of an SM
    (64, 2, 2, 1), (64, 4, 1, 1), (128, 2, 2, 1), (128, 2, 1, 1), (128, 4, 1, 1), (192, 2, 2, 1), (192, 3, 1, 1), (256, 2, 2, 1), (256, 2, 1, 1), (32, 2, 1, 1), (32, 4, 1, 1), (32, 2, 1, 2), (64, 2, 1, 2),
)  # fmt: skip


def choices(rows: int, m: int, sms: int) -> list[tuple[int, int, int, int]]:
    """Layouts and clusters that fit: parts only where they find room at once."""
    found = []
    for i, (tokens, groups, _, at_once) in enumerate(LAYOUTS):
        if tokens > max(32, 1.5 * m):
            continue
        for by_rows, by_tokens, parts in CLUSTERS:
            over_tokens = -(-m // (tokens * by_tokens))
            areas = -(-rows // (64 * groups * by_rows)) * over_tokens
            blocks = areas * by_rows * by_tokens * parts
            if by_tokens > 1 and m <= tokens * (by_tokens - 1):
                continue
            if parts > 1 and not sms // 3 < blocks <= sms * at_once:
                continue
            found.append((i, by_rows, by_tokens, parts))
    return found


def one(
    name: str,
    m: int,
    sparse: Sparse,
    w: torch.Tensor,
    weights: list[torch.Tensor],
    best: int,
    out: str,
):
    x = torch.randn(m, w.shape[1], dtype=torch.bfloat16, device="cuda")
    y, y_dense = (x.new_empty(m, len(w)) for _ in range(2))
    y_turned = x.new_empty(len(w), m)
    count = max(len(weights), len(sparse.matrices))

    def linear() -> None:
        for i in range(count):
            torch.mm(x, weights[i % len(weights)].t(), out=y_dense)

    def turned() -> None:
        for i in range(count):
            torch.mm(weights[i % len(weights)], x.t(), out=y_turned)

    sides = {"linear": linear, "turned": turned} | semi_structured(w, x, y, count)
    if m <= sparse.matrices[0].most_tokens:
        sides["as planned"] = lambda: sparse.calls(x, y, count)
    times = {side: 1e6 * t for side, t in timed_in_turns(sides, count).items()}
    dense = min(times["linear"], times["turned"])
    print(
        f"{name} m {m}: dense {dense:.1f} us, "
        + ", ".join(f"{k} {v:.1f}" for k, v in times.items())
    )
    wanted = x.float() @ w.float().t()
    found, worst = [], 0.0
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    for choice in choices(len(w), m, sms):
        if not all(a.lay_out_many(m, *choice) for a in sparse.matrices):
            continue
        y.fill_(float("nan"))
        try:
            us = 1e6 * timed_in_turns({"": lambda: sparse.calls(x, y, count)}, count, 0.01)[""]
        except RuntimeError as error:
            print(f"  {choice}: {str(error).splitlines()[0]}")
            continue
        error = ((y.float() - wanted).norm() / wanted.norm()).item()
        worst = max(worst, error if error == error else 9.0)
        if not error < 5e-3:
            print(f"  WRONG {LAYOUTS[choice[0]]} {choice[1:]}: error {error}")
        found.append((us, LAYOUTS[choice[0]], choice[1:]))
    found.sort()
    if out:
        with Path(out).open("a") as file:
            for us, layout, cluster in found:
                row = {"shape": name, "m": m, "us": us, "layout": layout, "cluster": cluster}
                file.write(json.dumps(row | {"sides": times}) + "\n")
    print(
        f"  {len(found)} layouts, worst error {worst:.1e}; dense over the best {dense / found[0][0]:.2f}"
    )
    for us, layout, cluster in found[:best]:
        print(f"  {us:7.1f} us ({dense / us:.2f}) {layout} {cluster}")
    by_layout: dict[tuple[int, ...], str] = {}
    for us, layout, cluster in found:
        by_layout.setdefault(layout, f"{us:.1f} {cluster}")
    print(f"  best of each: {by_layout}")
    by_cluster: dict[tuple[int, ...], str] = {}
    for us, layout, cluster in found:
        by_cluster.setdefault(cluster, f"{us:.1f} {layout}")
    print(f"  best of each: {by_cluster}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--best", type=int, default=6)
    parser.add_argument("--out", default="")
    a = parser.parse_args()
    print(torch.cuda.get_device_name())
    for name in a.shapes:
        rows, cols = SHAPES[name]
        dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
        weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
        keep = torch.rand(rows, cols // 4, 4, device="cuda").argsort(-1).lt(2).view(rows, cols)
        w = dense * keep
        sparse = Sparse(w, keep)
        for m in a.tokens:
            one(name, m, sparse, w, weights, a.best, a.out)


if __name__ == "__main__":
    main()

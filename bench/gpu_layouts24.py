"""Every layout of the m24 product for many tokens, against dense and torch's 2:4 path.

python bench/gpu_layouts24.py [--tokens 64 512] [--shapes "q, o" "gate, up"] [--best 6] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import torch
from gpu_products import SHAPES, Sparse, semi_structured
from gpu_timing import copies_of, timed_in_turns


def layouts() -> list[tuple[int, ...]]:
    """Lines of m24_many_layouts.def: tokens, warpgroups, slots, blocks of an SM."""
    path = Path(__file__).resolve().parents[1] / "csrc/ops/spmm/m24_many_layouts.def"
    lines = [line for line in path.read_text().splitlines() if line.startswith("TAMIS_M24_MANY(")]
    return [tuple(int(n) for n in line[15:-1].split(",")) for line in lines]


LAYOUTS = layouts()


def choices(rows: int, m: int, sms: int) -> list[tuple[int, int]]:
    """Layouts and parts of k that find room at once."""
    found = []
    for i, (tokens, groups, _, at_once) in enumerate(LAYOUTS):
        for parts in range(1, 9):
            blocks = -(-rows // (64 * groups)) * -(-m // tokens) * parts
            fits = parts == 1 or blocks <= sms * at_once
            if tokens <= max(64, 1.5 * m) and fits:
                found.append((i, parts))
    return found


def others(
    w: torch.Tensor, weights: list[torch.Tensor], sparse: Sparse, x: torch.Tensor, count: int
) -> dict[str, float]:
    """Microseconds of dense products, torch's 2:4 path and the plan."""
    y, y_turned = x.new_empty(len(x), len(w)), x.new_empty(len(w), len(x))

    def linear() -> None:
        for i in range(count):
            torch.mm(x, weights[i % len(weights)].t(), out=y)

    def turned() -> None:
        for i in range(count):
            torch.mm(weights[i % len(weights)], x.t(), out=y_turned)

    sides = {"linear": linear, "turned": turned} | semi_structured(w, x, y, count)
    y_planned = torch.empty_like(y)
    if len(x) <= sparse.matrices[0].most_tokens:
        sides["as planned"] = lambda: sparse.calls(x, y_planned, count)
    return {side: 1e6 * t for side, t in timed_in_turns(sides, count).items()}


def every_layout(
    w: torch.Tensor, sparse: Sparse, x: torch.Tensor, count: int
) -> list[tuple[float, tuple[int, ...], int]]:
    """Microseconds of each, best first; says which give wrong sums."""
    y, wanted = x.new_empty(len(x), len(w)), x.float() @ w.float().t()
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    found = []
    for choice in choices(len(w), len(x), sms):
        if not all(a.lay_out_many(len(x), *choice) for a in sparse.matrices):
            continue
        y.fill_(float("nan"))
        sides = {"": lambda: sparse.calls(x, y, count)}
        us = 1e6 * timed_in_turns(sides, count, warm_up_s=0.01)[""]
        error = ((y.float() - wanted).norm() / wanted.norm()).item()
        if not error < 5e-3:
            print(f"  WRONG {LAYOUTS[choice[0]]}, {choice[1]} parts: error {error}")
        found.append((us, LAYOUTS[choice[0]], choice[1]))
    return sorted(found)


def one(
    name: str, w: torch.Tensor, weights: list[torch.Tensor], sparse: Sparse, m: int, best: int
) -> list[dict[str, object]]:
    x = torch.randn(m, w.shape[1], dtype=torch.bfloat16, device="cuda")
    count = max(len(weights), len(sparse.matrices))
    times = others(w, weights, sparse, x, count)
    dense = min(times["linear"], times["turned"])
    found = every_layout(w, sparse, x, count)
    said = ", ".join(f"{side} {us:.1f}" for side, us in times.items())
    print(f"{name} m {m}: {said}; dense over the best of {len(found)}: {dense / found[0][0]:.2f}")
    for us, layout, parts in found[:best]:
        print(f"  {us:7.1f} us ({dense / us:.2f}) {layout}, {parts} parts")
    by_layout: dict[tuple[int, ...], str] = {}
    for us, layout, parts in found:
        by_layout.setdefault(layout, f"{us:.1f}, {parts} parts")
    print(f"  best of each: {by_layout}", flush=True)
    row = {"shape": name, "m": m, "sides": times}
    return [row | {"us": us, "layout": a, "parts": b} for us, a, b in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--best", type=int, default=6)
    parser.add_argument("--out", type=Path, help="gets a line of JSON for each time")
    a = parser.parse_args()
    print(torch.cuda.get_device_name())
    for name in a.shapes:
        rows, cols = SHAPES[name]
        dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
        weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
        keep = torch.rand(rows, cols // 4, 4, device="cuda").argsort(-1).lt(2).view(rows, cols)
        sparse = Sparse(dense * keep, keep)
        for m in a.tokens:
            found = one(name, dense * keep, weights, sparse, m, a.best)
            if a.out:
                with a.out.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in found)


if __name__ == "__main__":
    main()

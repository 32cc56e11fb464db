"""f32 products on a CUDA device, weights multiplied as they are stored, beside torch's dense f32 ones.

    python bench/gpu_f32.py [--kept 0.5 0.3] [--tokens 1 2 4 8 16 32 64 128 512 2048]

Layers of Llama-3-8B in shape, sides in turns as CUDA graphs, weights rotated beyond L2; torch multiplies
in f32, as it does unless it is told to take TF32. Errors are the largest of each side beside float64.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import torch
from gpu_products import SHAPES
from gpu_timing import copies_of, timed_in_turns
from torch import nn

import tamis
from tamis.ops import cuda


def sides_of(n: int, k: int, kept: float) -> dict[str, nn.ModuleList]:
    linear = nn.Linear(k, n, bias=False, device="cuda").requires_grad_(False)
    keep = torch.rand(n, k, device="cuda") < kept
    linear.weight.data *= keep
    sparse = tamis.nn.SparseLinear.from_linear(linear, keep=keep, format="bitmap")
    # One is packed, on the host; the others only have to lie elsewhere.
    copies = range(copies_of(4 * n * k))
    return {
        s: nn.ModuleList(copy.deepcopy(x) for _ in copies)
        for s, x in (("dense", linear), ("ours", sparse))
    }


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=float, nargs="*", default=[0.5, 0.3])
    parser.add_argument(
        "--tokens", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128, 512, 2048]
    )
    a = parser.parse_args()
    if cuda.why_off():
        print(f"SKIP gpu_f32: {cuda.why_off()}")
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    for kept in a.kept:
        for name, (n, k) in SHAPES.items():
            layers = sides_of(n, k, kept)
            for m in a.tokens:
                x = torch.randn(m, k, device="cuda")
                wanted = x.double() @ layers["dense"][0].weight.double().T
                off = {s: float((ls[0](x) - wanted).abs().max()) for s, ls in layers.items()}
                sides = {
                    s: lambda ls=ls, x=x: [layer(x) for layer in ls] for s, ls in layers.items()
                }
                times = timed_in_turns(sides, len(layers["dense"]))
                found = ", ".join(
                    f"{s} {1e6 * t:.1f} us (off by {off[s]:.1e})" for s, t in times.items()
                )
                speedup = times["dense"] / times["ours"]
                print(f"{kept} {name:9} {m:5} tokens: {found}: {speedup:.2f}", flush=True)
            del layers
    return 0


if __name__ == "__main__":
    sys.exit(main())

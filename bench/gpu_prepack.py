"""What a weight costs on a CUDA device by what lies there: saved and packed, packed alone, densely too.

    python bench/gpu_prepack.py [--kept 0.5] [--tokens 1 16 48 64 128 512 2048]

Layers of Llama-3-8B in shape, bf16, a prompt of so many tokens, sides in turns as CUDA graphs; then
what the forms take to be written out.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import torch
from gpu_products import SHAPES
from gpu_timing import timed_in_turns
from torch import nn

import tamis
from tamis.ops import cuda, cuda_spmm_grad
from tamis.ops.cuda_packed import Packed

BEYOND_L2 = 200_000_000  # bytes of a side's dense weights at least
WRITTEN = 8  # times in a turn


def sides_of(n: int, k: int, kept: float) -> dict[str, nn.ModuleList]:
    dense, saved = nn.ModuleList(), nn.ModuleList()
    for _ in range(-(-BEYOND_L2 // (2 * n * k))):
        linear = nn.Linear(k, n, bias=False, dtype=torch.bfloat16, device="cuda")
        keep = torch.rand(n, k, device="cuda") < kept
        linear.weight.data *= keep
        dense.append(linear.requires_grad_(False))
        saved.append(tamis.nn.SparseLinear.from_linear(linear, keep=keep, format="bitmap"))
    alone, kept_too = copy.deepcopy(saved), copy.deepcopy(saved)
    tamis.prepack_(alone)
    tamis.prepack_(kept_too, keep_dense=True)
    return {"dense": dense, "saved": saved, "packed": alone, "dense too": kept_too}


def written_out(layer: tamis.nn.SparseLinear) -> dict[str, float]:
    """Us to write the layer's weight out from each form, and from its mask."""
    values, rest = layer.weight_values, layer.rest()
    out = torch.empty(layer.out_features, layer.in_features, dtype=values.dtype, device="cuda")
    mask = cuda_spmm_grad.mask_of(layer.layout, values, rest[0], rest[1], values.dtype)
    if mask is None:
        raise SystemExit(
            "gpu_prepack: got a mask without a kernel, wanted shapes in multiples of 8"
        )
    sides: dict[str, Callable[[], object]] = {
        "mask": lambda: [cuda_spmm_grad.unpack(mask, values) for _ in range(WRITTEN)]
    }
    packed = {
        form: Packed(layer.layout, values, rest, values.dtype, form, values.device)
        for form in ("p24", "gap")
    }
    for form in packed:

        def unpack(form: str = form) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            for _ in range(WRITTEN):
                packed[form].matrix.unpack(out.data_ptr(), out.stride(0), stream)

        sides[form] = unpack
    return {name: 1e6 * s for name, s in timed_in_turns(sides, WRITTEN).items()}


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 16, 48, 64, 128, 512, 2048])
    a = parser.parse_args()
    if cuda.why_off():
        print(f"SKIP gpu_prepack: {cuda.why_off()}")
        return 0
    for name, (n, k) in SHAPES.items():
        layers = sides_of(n, k, a.kept)
        for m in a.tokens:
            x = torch.randn(1, m, k, device="cuda", dtype=torch.bfloat16)
            sides = {s: lambda ls=ls, x=x: [layer(x) for layer in ls] for s, ls in layers.items()}
            times = timed_in_turns(sides, len(layers["dense"]))
            found = (f"{s} {1e6 * t:.1f} ({times['dense'] / t:.2f})" for s, t in times.items())
            print(f"{name:9} {m:5} tokens, us: {', '.join(found)}", flush=True)
        found = (f"{form} {us:.1f}" for form, us in written_out(layers["saved"][0]).items())
        print(f"{name:9} written out, us: {', '.join(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

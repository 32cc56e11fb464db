"""Decode speed on a CUDA device of a random model in the shape of Llama-3-8B, dense against sparsified.

    python bench/gpu_e2e.py [--layers 2] [--blocks 32] [--batch 1] [--context 1024] [--prepack]

The model is plain torch, its operations in the order of Hugging Face's: RMS norms, rotary positions, grouped attention by SDPA over a cache of fixed
length, SwiGLU, an output layer that stays dense. Both sides run one decode step as a CUDA graph, in
turns. `--layers` blocks have weights of their own and stand `--blocks / --layers` times in the model:
what a step reads is the same, as two blocks (0.87 GB dense) are many times the L2 cache, and pruning
takes seconds. The sparse side is `tamis.sparsify_(model, "magnitude")`, with `--prepack` packed by
`tamis.prepack_` too. Device memory is that of the blocks' layers, after a first step.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import torch
from gpu_timing import timed_in_turns
from torch import Tensor, nn
from torch.nn import functional as f

import tamis

WIDTH, HIDDEN, HEADS, KV_HEADS, DIM, WORDS = 4096, 14336, 32, 8, 128, 128256


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kv = KV_HEADS * DIM
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        for name, n, k in (
            ("q_proj", WIDTH, WIDTH), ("k_proj", kv, WIDTH), ("v_proj", kv, WIDTH),
            ("o_proj", WIDTH, WIDTH), ("gate_proj", HIDDEN, WIDTH), ("up_proj", HIDDEN, WIDTH),
            ("down_proj", WIDTH, HIDDEN),
        ):  # fmt: skip
            setattr(self, name, nn.Linear(k, n, bias=False))

    def forward(self, x: Tensor, at: Tensor, turned: tuple[Tensor, Tensor], kv: Any) -> Tensor:
        b = x.shape[0]
        y = self.norm1(x)
        q = self.q_proj(y).view(b, HEADS, 1, DIM)
        k, v = (proj(y).view(b, KV_HEADS, 1, DIM) for proj in (self.k_proj, self.v_proj))
        keys, values = kv
        q = turn(q, *turned)
        keys.index_copy_(2, at, turn(k, *turned))
        values.index_copy_(2, at, v)
        y = f.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        x = x + self.o_proj(y.view(b, 1, WIDTH))
        y = self.norm2(x)
        return x + self.down_proj(f.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self, layers: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.blocks = blocks
        self.norm = nn.RMSNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor, at: Tensor, turned: tuple[Tensor, Tensor], kv: Any) -> Tensor:
        x = self.embed(ids)
        for i in range(self.blocks):
            x = self.layers[i % len(self.layers)](x, at, turned, kv[i])
        return self.lm_head(self.norm(x)).argmax(-1)


def model(layers: int, blocks: int, seed: int) -> Llama:
    torch.manual_seed(seed)
    with torch.device("cuda"):
        made = Llama(layers, blocks).bfloat16()
    for p in made.parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=0.02)
    return made.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--patterns", nargs="*", default=["unstructured", "2:4"])
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--prepack", action="store_true")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    if not torch.cuda.is_available():
        print("SKIP gpu_e2e: torch sees no CUDA device")
        return 0
    shape = (a.batch, KV_HEADS, a.context, DIM)
    kv = [torch.randn(2, *shape, device="cuda").bfloat16() for _ in range(a.blocks)]
    ids = torch.zeros(a.batch, 1, dtype=torch.long, device="cuda")
    at = torch.tensor([a.context - 1], device="cuda")
    angle = at / 500000 ** (torch.arange(0, DIM, 2, device="cuda") / DIM)
    turned = tuple(torch.cat((x, x)).bfloat16() for x in (angle.cos(), angle.sin()))
    torch.ones(8, 8, device="cuda") @ torch.ones(
        8, 8, device="cuda"
    )  # cuBLAS takes memory of its own
    models: dict[str, Llama] = {}
    memory: dict[str, float] = {}
    sides = {}
    for pattern in ["dense", *a.patterns]:
        before = torch.cuda.memory_allocated()
        made = models[pattern] = model(a.layers, a.blocks, 0)
        rest = sum(p.nbytes for p in made.parameters()) - sum(
            p.nbytes for p in made.layers.parameters()
        )
        if pattern != "dense":
            report = tamis.sparsify_(
                made, "magnitude", sparsity=a.sparsity, pattern=pattern, ignore=["lm_head"]
            )
            if a.prepack:
                report = tamis.prepack_(made, tokens=a.batch)
            print(f"{pattern}: {report.layers[0].format}, {report.layers[0].reason}", flush=True)
        sides[pattern] = lambda m=made: m(ids, at, turned, kv)
        with torch.no_grad():
            sides[pattern]()
        memory[pattern] = torch.cuda.memory_allocated() - before - rest
    with torch.no_grad():
        times = timed_in_turns(sides, 1)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), **vars(a), "bytes": memory}
    for name, seconds in times.items():
        rate, ratio = a.batch / seconds, times["dense"] / seconds
        found[name] = {"ms": 1e3 * seconds, "tokens_per_s": rate, "speedup": ratio}
        share = memory[name] / memory["dense"]
        print(
            f"{name:14} {1e3 * seconds:7.3f} ms a step, {rate:7.1f} tokens/s, {ratio:.2f}; "
            f"device memory {share:.2f} of dense"
        )
    if a.out:
        a.out.write_text(json.dumps(found, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())

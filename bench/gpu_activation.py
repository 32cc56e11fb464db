"""Activation sparsity on a CUDA device against the dense layers, in turns, on cold weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_timing import copies_of, timed_in_turns

HIDDEN, NEURONS = 4096, 14336  # Llama-3-8B
SPARSITIES = (0.5, 0.7, 0.9)
TOKENS = (1, 4, 8)


def in_turn(each: list[Callable[[], object]]) -> Callable[[], None]:
    def run() -> None:
        for call in each:
            call()

    return run


def dense_mlp(x: Any, gate_up: Any, down: Any) -> Any:
    """One product for gate and up, as serving engines have it."""
    from torch.nn.functional import linear, silu

    gate, up = linear(x, gate_up).chunk(2, -1)
    return linear(silu(gate) * up, down)


def dense_three(x: Any, gate: Any, up: Any, down: Any) -> Any:
    from torch.nn.functional import linear, silu

    return linear(silu(linear(x, gate)) * linear(x, up), down)


def mlps() -> list[dict[str, Any]]:
    """Shares of activations that count, of one token: that of several is their union."""
    import torch

    from tamis.activation.layers import by_column
    from tamis.ops.sparse_mlp import masked_mlp, sparse_mlp

    scale = HIDDEN**-0.5
    made = copies_of(6 * HIDDEN * NEURONS)

    def weight(rows: int, cols: int) -> list[Any]:
        first = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda") * scale
        return [first] + [first.clone() for _ in range(made - 1)]

    both, down = weight(2 * NEURONS, HIDDEN), weight(HIDDEN, NEURONS)
    columns = [by_column(w) for w in down]
    found = []
    for m in TOKENS:
        x = torch.randn(m, HIDDEN, dtype=torch.bfloat16, device="cuda")
        gate = torch.nn.functional.silu(x.float() @ both[0][:NEURONS].float().T)
        sides = {
            "dense": in_turn([partial(dense_mlp, x, b, d) for b, d in zip(both, down, strict=True)]),
            "dense, three products": in_turn([
                partial(dense_three, x, b[:NEURONS], b[NEURONS:], d)
                for b, d in zip(both, down, strict=True)
            ]),
        }  # fmt: skip
        thresholds = {}
        for sparsity in (0.0, *SPARSITIES):
            bound = gate.abs().flatten().quantile(sparsity) if sparsity else gate.new_zeros(())
            threshold = bound.expand(NEURONS).contiguous()
            thresholds[sparsity] = threshold
            sides[f"sparse {sparsity}"] = in_turn([
                partial(sparse_mlp, x, b[:NEURONS], b[NEURONS:], d, threshold)
                for b, d in zip(both, columns, strict=True)
            ])  # fmt: skip
            y = sparse_mlp(x, both[0][:NEURONS], both[0][NEURONS:], columns[0], threshold)
            want = masked_mlp(
                x.float(), both[0][:NEURONS].float(), both[0][NEURONS:].float(), down[0].float(),
                threshold,
            )  # fmt: skip
            error = ((y.float() - want).norm() / want.norm()).item()
            if error > 1e-2:
                print(f"  sparse_mlp m {m}, {sparsity}: WRONG by {error:.1e}")
        times = timed_in_turns(sides, made)
        best = min(times["dense"], times["dense, three products"])
        for name, t in times.items():
            row = {"what": f"mlp, {name}", "tokens": m, "us": 1e6 * t, "speedup": best / t}
            if name.startswith("sparse"):
                counts = gate.abs() >= thresholds[float(name.split()[1])]
                share = counts.any(0).float().mean().item()
                row["bytes"] = 2 * HIDDEN * NEURONS * (1 + 2 * share)
            found.append(row)
    return found


def inputs(n: int, k: int) -> list[dict[str, Any]]:
    import torch

    from tamis.activation.layers import by_column
    from tamis.ops.sparse_input import sparse_input

    first = torch.randn(n, k, dtype=torch.bfloat16, device="cuda")
    dense = [first] + [first.clone() for _ in range(copies_of(2 * n * k) - 1)]
    columns = [by_column(w) for w in dense]
    found = []
    for m in TOKENS:
        x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
        sides = {
            "dense": in_turn([partial(torch.nn.functional.linear, x, w) for w in dense]),
            "dense by column": in_turn(
                [partial(torch.nn.functional.linear, x, w) for w in columns]
            ),
        }
        shares = {}
        for sparsity in SPARSITIES:
            bound = x.float().abs().flatten().quantile(sparsity)
            threshold = bound.expand(k).contiguous()
            shares[f"sparse {sparsity}"] = (x.abs() >= bound).any(0).float().mean().item()
            sides[f"sparse {sparsity}"] = in_turn(
                [partial(sparse_input, x, w, threshold) for w in columns]
            )
        times = timed_in_turns(sides, len(dense))
        best = min(times["dense"], times["dense by column"])
        for name, t in times.items():
            row = {"what": f"{n} x {k}, {name}", "tokens": m, "us": 1e6 * t, "speedup": best / t}
            if name in shares:
                row["bytes"] = 2 * n * k * shares[name]
            found.append(row)
    return found


def activation(rate: float) -> list[dict[str, Any]]:
    import torch

    found = mlps()
    for n, k in ((HIDDEN, HIDDEN), (NEURONS, HIDDEN), (HIDDEN, NEURONS)):
        torch.cuda.empty_cache()
        found += inputs(n, k)
    for row in found:
        if "bytes" in row:
            row["of_copy_rate"] = row["bytes"] / row["us"] * 1e-3 / rate
    return found


def print_activation(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        share = f" {r['of_copy_rate']:5.0%} of copy" if "of_copy_rate" in r else ""
        print(f"{r['what']:36} {r['tokens']} tokens {r['us']:8.2f} us {r['speedup']:6.2f}{share}")

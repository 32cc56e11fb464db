"""Activation sparsity: perplexity on SmolLM2, and the kernels beside torch's dense layers.

`python bench/activation.py quality` prints the perplexity of each method and share, and checks that
CHESS loses less than CATS. `... speed` times single layers and a gated MLP of the shapes of
Llama-3-8B and SmolLM2 at several shares, in turn with torch, on weights that no cache holds, as a
ratio, and tokens a second of SmolLM2.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import fmean, median
from time import perf_counter

import torch
from torch.nn import functional
from tqdm import tqdm

import tamis
from tamis import _C, corpus, evaluate, source
from tamis.activation.layers import by_column
from tamis.ops.sparse_input import sparse_input
from tamis.ops.sparse_mlp import sparse_mlp

COLD = 600 << 20  # bytes of copies in turn; the largest cache here holds half
ROUNDS = 7
SHARES = (0.0, 0.5, 0.7, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("quality", "speed", "model"))
    parser.add_argument("--data", help="text to calibrate on")
    parser.add_argument("--text", help="text of the perplexity")
    parser.add_argument("--methods", nargs="+", default=["cats", "chess", "teal", "wina"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7])
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    {"quality": quality, "speed": speed, "model": decoding}[a.what](a)


def opened(a: argparse.Namespace, dtype: str) -> tuple[source.Opened, list[list[int]]]:
    made = source.open_model("smollm2", dtype=dtype)
    text = corpus.default_text("calibrate", a.data)[1]
    return made, evaluate.token_windows(made.tokenizer, text, length=512, count=8)


def quality(a: argparse.Namespace) -> None:
    made, data = opened(a, "f32")
    text = corpus.default_text("evaluate", a.text)[1]
    dense = evaluate.perplexity(made.model, made.tokenizer, text, windows=6)
    print(f"dense {dense:.2f}")
    found: dict[tuple[str, float], float] = {}
    for method in a.methods:
        for sparsity in a.sparsities:
            plan = tamis.activation.calibrate(made.model, method, sparsity=sparsity, data=data)
            with tamis.activation.attach(made.model, plan, measure=False):
                ppl = evaluate.perplexity(made.model, made.tokenizer, text, windows=6)
            found[method, sparsity] = ppl
            left_out = fmean(item.sparsity for item in plan.thresholds.values())
            print(f"{method:6} {sparsity:.2f}  left out {left_out:.3f}  perplexity {ppl:.2f}")
    for sparsity in a.sparsities:
        if {"cats", "chess"} <= set(a.methods) and sparsity >= 0.7:
            if found["chess", sparsity] > found["cats", sparsity]:
                sys.exit(f"CHESS lost more than CATS at {sparsity}")


def alternate(calls: list[Callable[[int], object]], copies: int) -> list[float]:
    """Median milliseconds of each; call(i) uses copy i."""
    spent: list[list[float]] = [[] for _ in calls]
    i = 0
    for _ in range(ROUNDS + 1):
        for call, into in zip(calls, spent, strict=True):
            begin = perf_counter()
            call(i % copies)
            into.append(1e3 * (perf_counter() - begin))
            i += 1
    return [median(times[1:]) for times in spent]


def speed(a: argparse.Namespace) -> None:
    limit = _C.stream_read(a.threads, 1 << 30)
    print(f"plain read {limit:.1f} GB/s, {a.threads} thread(s), bf16, one token")
    print("layer                     left out   torch ms  tamis ms  times   of plain read")
    for n, k in ((4096, 4096), (14336, 4096), (4096, 14336), (576, 1536), (1536, 576)):
        size = 2 * n * k
        copies = max(2, COLD // size)
        rows = [torch.randn(n, k, dtype=torch.bfloat16) for _ in tqdm(range(copies), leave=False)]
        columns = [by_column(w) for w in rows]
        linear(rows, columns, limit)
    for k, n in ((4096, 14336), (576, 1536)):
        mlp(k, n, limit)


def linear(rows: list[torch.Tensor], columns: list[torch.Tensor], limit: float) -> None:
    n, k = rows[0].shape
    size = 2 * n * k
    x = torch.randn(1, k, dtype=torch.bfloat16)
    for share in SHARES:
        bound = x.abs().float().quantile(share).expand(k).contiguous()
        bound = bound if share else torch.zeros(k)
        dense, ours = alternate(
            [
                lambda i: functional.linear(x, rows[i]),
                lambda i, t=bound: sparse_input(x, columns[i], t),
            ],
            len(rows),
        )
        read = size * (1 - share) / ours / 1e6 / limit
        shape = f"{n}x{k}"
        print(
            f"linear {shape:16} {share:10.0%} {dense:11.3f} {ours:9.3f} {dense / ours:6.2f} {read:12.0%}"
        )


def mlp(k: int, n: int, limit: float) -> None:
    size = 6 * n * k
    copies = max(2, COLD // size)
    made = [
        [torch.randn(s, dtype=torch.bfloat16) / s[1] ** 0.5 for s in ((n, k), (n, k), (k, n))]
        for _ in range(copies)
    ]
    columns = [by_column(w[2]) for w in made]
    x = torch.randn(1, k, dtype=torch.bfloat16)

    def torch_mlp(i: int) -> torch.Tensor:
        gate, up, down = made[i]
        z = functional.silu(functional.linear(x, gate)) * functional.linear(x, up)
        return functional.linear(z, down)

    act = functional.silu(functional.linear(x, made[0][0])).abs().float()
    for share in SHARES:
        bound = (act.quantile(share) if share else torch.zeros(())).expand(n).contiguous()
        dense, ours = alternate(
            [
                torch_mlp,
                lambda i, t=bound: sparse_mlp(x, made[i][0], made[i][1], columns[i], t),
            ],
            copies,
        )
        read = size * (1 + 2 * (1 - share)) / 3 / ours / 1e6 / limit
        shape = f"{k}-{n}"
        print(
            f"MLP {shape:19} {share:10.0%} {dense:11.3f} {ours:9.3f} {dense / ours:6.2f} {read:12.0%}"
        )


def decoding(a: argparse.Namespace) -> None:
    made, data = opened(a, "bf16")
    ids = made.tokenizer("A sieve is a kitchen tool that")["input_ids"]
    for method in a.methods:
        for sparsity in a.sparsities:
            plan = tamis.activation.calibrate(made.model, method, sparsity=sparsity, data=data[:2])
            rates = {}
            for _ in range(3):
                for name in ("dense", "sparse"):
                    handle = None
                    if name == "sparse":
                        handle = tamis.activation.attach(made.model, plan)
                    done = evaluate.decode_speed(
                        {name: made.model}, ids, new_tokens=24, threads=a.threads
                    )[name]
                    rates.setdefault(name, []).append(done.tokens_per_s)
                    if handle is not None:
                        sparse = sum(place.sparse for place in handle.places)
                        total = len(handle.places)
                        handle.remove()
            dense, ours = median(rates["dense"]), median(rates["sparse"])
            print(
                f"{method:6} {sparsity:.2f}  dense {dense:.1f} tokens/s, sparse {ours:.1f} "
                f"({ours / dense:.2f}x), {sparse} of {total} modules sparse"
            )


if __name__ == "__main__":
    main()

"""Attention of a prompt: tamis against torch SDPA, causal, in one interleaved run.

`python bench/prefill.py --tokens 4096` prints milliseconds and two ratios: to torch's faster way in the
same dtype (the query heads of a KV head given a copy of its keys, or `enable_gqa`), and to the fastest
of all. `--probes` does the same for the attention that tokens draw from a prompt's last 128 queries,
against the torch policy; `--model smollm2` reads a whole prompt with each kind of cache. One thread is
timed by its own clock.
"""

import argparse
import time
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tamis import commands, corpus, kv, source
from tamis.ops.kv_select import kv_mass
from tamis.ops.prefill import Blocks, Pattern, Spans, Subset, prefill_attention
from tamis.policy.kv_score import probe_mass

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
PROBES = 128
CACHES = ("full", "zipvl", "zipvl_sparse", "s2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtypes", nargs="*", default=["f32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--probes", action="store_true")
    parser.add_argument("--model")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    clock = time.thread_time if a.threads == 1 else time.perf_counter
    make = make_prompts if a.model else make_probes if a.probes else make_cases
    cases = make(a)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(a.turns):
        for name, call in cases.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    best = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    torches = {name: seconds for name, seconds in best.items() if name.startswith("torch")}
    print(f"{a.tokens} tokens, {a.threads} thread(s), medians of {a.turns} turns")
    print(f"{'':30}      ms  same dtype  fastest torch")
    for name, seconds in best.items():
        dtype = next(x for x in DTYPES if x in name.split())
        same = min(t for n, t in torches.items() if dtype in n.split())
        fastest = min(torches.values())
        print(f"{name:30} {seconds * 1e3:8.1f} {same / seconds:10.2f}x {fastest / seconds:9.2f}x")


def arrays(a: argparse.Namespace) -> list[Tensor]:
    """Queries, keys and values."""
    torch.manual_seed(0)
    q = torch.randn(1, a.heads, a.tokens, a.head_dim)
    return [q, *torch.randn(2, 1, a.kv_heads, a.tokens, a.head_dim)]


def make_cases(a: argparse.Namespace) -> dict:
    """Calls by name."""
    n, group = a.tokens, a.heads // a.kv_heads
    q, k, v = arrays(a)
    half = Subset(torch.randperm(n)[: n // 2].sort().values.int().view(1, -1))
    cases = {}
    for label in a.dtypes:
        x = [t.to(DTYPES[label]) for t in (q, k, v)]
        copied = [x[0], *(t.repeat_interleave(group, 1) for t in x[1:])]
        cases[f"torch {label}"] = partial(sdpa, *copied, is_causal=True)
        cases[f"torch {label} enable_gqa"] = partial(sdpa, *x, is_causal=True, enable_gqa=True)
        for name, pattern in (
            ("causal", Pattern()),
            ("15 % of blocks", Pattern(blocks=blocks(a, 0.15))),
            ("spans 64 + 512", Pattern(spans=spans(64, 512))),
            ("half the tokens", Pattern(rows=half, columns=half)),
        ):
            cases[f"{name} {label}"] = partial(prefill_attention, *x, pattern)
    return cases


def make_probes(a: argparse.Namespace) -> dict:
    """The attention that tokens draw."""
    rows, seen = torch.arange(a.tokens - PROBES, a.tokens), torch.ones(1, a.tokens).bool()
    cases = {}
    for label in a.dtypes:
        q, k, _ = (t.to(DTYPES[label]) for t in arrays(a))
        cases[f"torch policy {label}"] = partial(probe_mass, q, k, rows, a.head_dim**-0.5, seen)
        places = rows.int()
        cases[f"kv_mass {label}"] = lambda q=q, k=k, at=places: kv_mass(
            q[:, :, rows], k, positions=at
        )
    return cases


def make_prompts(a: argparse.Namespace) -> dict:
    """A model reads a prompt into each cache."""
    commands.quiet()
    cases = {}
    for label in a.dtypes:
        opened = source.open_model(a.model, dtype=label)
        model = opened.model.eval()
        text = corpus.default_text("evaluate")[1]
        ids = opened.tokenizer(text, return_tensors="pt")["input_ids"][:, : a.tokens]
        cases[f"torch {label}"] = partial(read, model, ids, None)
        cases |= {f"{name} {label}": partial(read, model, ids, name) for name in CACHES}
    return cases


@torch.no_grad()
def read(model: torch.nn.Module, ids: Tensor, method: str | None) -> None:
    """One prompt, with transformers' own cache or ours."""
    if method is None:
        model(ids, logits_to_keep=1)
        return
    with kv.attach(model):
        model(ids, past_key_values=kv.Cache(model.config, method), logits_to_keep=1)


def spans(sink: int, window: int) -> Spans:
    """The same for all heads."""
    return Spans(torch.tensor([sink], dtype=torch.int32), torch.tensor([window], dtype=torch.int32))


def blocks(a: argparse.Namespace, density: float, size: int = 64) -> Blocks:
    """The diagonal and random blocks below it, `density` of the causal ones, per KV head."""
    count = -(-a.tokens // size)
    offsets = torch.zeros(a.kv_heads, count + 1, dtype=torch.int32)
    rows: list[list[Tensor]] = [[] for _ in range(a.kv_heads)]
    for head, found in enumerate(rows):
        for i in range(count):
            extra = torch.randperm(i)[
                : round(density * (i + 1)) - 1 if density * (i + 1) > 1 else 0
            ]
            found.append(torch.cat([extra.sort().values, torch.tensor([i])]).int())
        offsets[head, 1:] = torch.tensor([len(r) for r in found]).cumsum(0)
    columns = torch.zeros(a.kv_heads, int(offsets.max()), dtype=torch.int32)
    for head, found in enumerate(rows):
        columns[head, : offsets[head, -1]] = torch.cat(found)
    return Blocks(size, offsets, columns)


if __name__ == "__main__":
    main()

"""Decode attention of one token on cold data: tamis against torch SDPA, in one interleaved run.

`python bench/kv.py --tokens 16384` prints milliseconds, GB/s of the bytes read with their share of a
plain read, and two ratios: to the faster of torch's `enable_gqa` forms (f32, bf16), and to the fastest
form of all, which may be the one that takes a KV head's query heads as rows. Methods that choose read
1/16 of the tokens, Quest as much for every query head: how much of all tokens that is stands beside it.

`--warm` calls one copy again and again, and reads it through a ``full`` store too. `--real FILE` takes
the keys and the last queries of a model's layers, as `bench/kv_e2e.py --keep FILE` writes them, beside
random queries. `--summaries` times what methods choose by: bounds and means of pages, beside torch.
`--check` fails where an aim is missed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tamis import _C
from tamis.kv.kv_store import KvStore
from tamis.kv.limits import limits
from tamis.kv.methods import recipe_of
from tamis.kv.rows import Rows
from tamis.ops.attention import DenseSegment, PageSegment, sparse_attention
from tamis.ops.kv_quantize import kv_quantize, page_layout
from tamis.ops.kv_summary import page_bounds, page_means
from tamis.policy.kv_recipe import KvRecipe

COLD = 600 << 20  # bytes of copies that a case walks through, beyond any last-level cache
WARM = 4  # calls before those that count, and of those
PLAIN_EVERY = 40  # turns between plain reads of as many bytes, after the first five

AT_16K = {"dense bf16": 2.5, "8-bit": 4.0, "4-bit": 6.0, "2-bit": 6.0, "quest": 14.1}
# Times the faster `enable_gqa` form that each should reach, by tokens.
AIMS = {
    16384: AT_16K | {"double_sparsity": 14.1},
    65536: {"quest": 20.0, "double_sparsity": 20.0},
    1024: dict.fromkeys([*AT_16K, "dense f32", "double_sparsity"], 0.95),
}


@dataclass(frozen=True)
class Case:
    """Calls on copies of the data, the bytes that one reads, and what share of the tokens."""

    calls: list[Callable[[], object]]
    nbytes: float
    share: float = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--real", help="file of a model's keys, values and queries")
    parser.add_argument("--check", action="store_true", help="fail where an aim is missed")
    parser.add_argument("--warm", action="store_true", help="one copy, called again and again")
    parser.add_argument("--summaries", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.summaries:
        show_summaries(a)
    elif a.real:
        measure(a, real_cases(a))
    else:
        measure(a, make_cases(a))


def measure(a: argparse.Namespace, cases: dict[str, Case]) -> None:
    """Calls of all cases in turns, and the table."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    stream = []
    end = time.monotonic() + a.seconds
    turn = 0
    while time.monotonic() < end or turn < 5:
        for name, case in list(cases.items())[:: 1 if turn % 2 == 0 else -1]:
            call = case.calls[turn % len(case.calls)]
            for _ in range(WARM if a.warm else 0):
                call()
            start = time.perf_counter()
            for _ in range(WARM if a.warm else 1):
                call()
            times[name].append((time.perf_counter() - start) / (WARM if a.warm else 1))
        if turn < 5 or turn % PLAIN_EVERY == 0:
            stream.append(_C.stream_read(a.threads, COLD))
        turn += 1
    plain = sorted(stream)[len(stream) // 2]
    best = {name: sorted(t)[len(t) // 5] for name, t in times.items()}
    gqa = min(t for name, t in best.items() if name in ("torch f32", "torch bf16"))
    fastest = min(t for name, t in best.items() if name.startswith("torch"))
    heat = "warm" if a.warm else "cold"
    print(
        f"{a.tokens} tokens, {heat}, {a.threads} thread(s), plain read {plain:.1f} GB/s, {turn} turns"
    )
    for name, seconds in best.items():
        case = cases[name]
        rate = case.nbytes / seconds / 1e9
        share = "" if case.share == 1.0 else f" reads {16 * case.share:.2f}/16 of the tokens"
        print(
            f"{name:26} {seconds * 1e3:8.3f} ms {rate:6.1f} GB/s {rate / plain:5.0%} of plain"
            f" {gqa / seconds:6.2f}x enable_gqa {fastest / seconds:6.2f}x fastest torch{share}"
        )
    if a.check:
        check({name: gqa / seconds for name, seconds in best.items()}, AIMS.get(a.tokens, {}))


def check(found: dict[str, float], aims: dict[str, float]) -> None:
    """Exits with a line for each aim that was missed."""
    missed = [(n, found[n], aim) for n, aim in aims.items() if n in found and found[n] < aim]
    if missed:
        raise SystemExit("\n".join(f"{n}: {x:.2f}x enable_gqa, aim {aim}" for n, x, aim in missed))


def make_cases(a: argparse.Namespace) -> dict[str, Case]:
    """Everything on random keys, values and queries."""

    def wanted(name: str) -> bool:
        return not a.only or name in a.only

    cases = {}
    q = torch.randn(1, a.heads, 1, a.head_dim)
    for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        x = q.to(dtype)
        k, v = torch.randn(2, 1, a.kv_heads, a.tokens, a.head_dim).to(dtype)
        size = 2 * k.numel() * k.element_size()
        pairs = [(held(k), held(v)) for _ in copies(a, size)]
        cases |= torch_cases(label, [(x, *kv) for kv in pairs], size)
        if wanted(f"dense {label}"):
            calls = [partial(sparse_attention, x, [DenseSegment(*kv)]) for kv in pairs]
            cases[f"dense {label}"] = Case(turned(calls, 2, 3), size)
        if a.warm and wanted(f"full {label}"):  # the store as a model calls it, by Python
            store = KvStore(recipe_of("full"), limits=limits())
            store.append(k, v)
            cases[f"full {label}"] = Case([partial(store.attend, x)], size)
    cases |= packed_cases(a, wanted, (x, k, v))
    for name, method in chosen().items():  # estimate, choice and attention
        if wanted(name):
            stores = [make_store(method, *kv, x) for kv in pairs]
            cases[name] = Case([partial(s.attend, x) for s in stores], *bytes_read(stores[0], x))
    if wanted("shadowkv"):
        first = make_store("shadowkv", k, v, x)
        stores = [first, *(copy_of(first) for _ in copies(a, first.nbytes())[1:])]
        # Bytes: of the coordinates and values that are read, the basis and the landmarks.
        parts, share = first.bytes_by_part(), 1 / 16
        far = parts["coordinates"] + parts["far_values"]
        read = first.nbytes() - far + share * far
        cases["shadowkv"] = Case([partial(s.attend, x) for s in stores], read, share)
    return cases


def packed_cases(a: argparse.Namespace, wanted: Callable, qkv: tuple) -> dict[str, Case]:
    """Attention over pages of 8, 4 and 2 bits."""
    cases = {}
    x, k, v = qkv
    for bits in filter(lambda bits: wanted(f"{bits}-bit"), (8, 4, 2)):
        layout = page_layout(a.head_dim, bits, bits)
        out = torch.empty(1, a.kv_heads, a.tokens // 32, layout.nbytes, dtype=torch.uint8)
        kv_quantize(k, v, layout, out)
        segments = [PageSegment(held(out), layout) for _ in copies(a, out.numel())]
        calls = [partial(sparse_attention, x, [segment]) for segment in segments]
        cases[f"{bits}-bit"] = Case(calls, out.numel())
    return cases


def real_cases(a: argparse.Namespace) -> dict[str, Case]:
    """What chooses, on the layers of a model, by their own last queries and by random ones."""
    layers = [tuple(x.bfloat16() for x in layer) for layer in torch.load(a.real)][2:]
    k = layers[0][0]
    a.tokens, size = k.shape[2], 2 * k.numel() * k.element_size()
    times = -(-COLD // (len(layers) * size))
    own = [q[:, :, -1:].contiguous() for _, _, q in layers]
    pairs = [
        (q, held(k), held(v))
        for _ in range(times)
        for q, (k, v, _) in zip(own, layers, strict=True)
    ]
    cases = torch_cases("bf16", pairs, size)
    for name, method in chosen().items():
        stores = [make_store(method, k, v, q) for q, k, v in pairs]
        for kind in ("real", "random"):
            asked = [q if kind == "real" else torch.randn_like(q) for q, _, _ in pairs]
            read = [bytes_read(s, q) for s, q in zip(stores, asked, strict=True)][: len(layers)]
            means = (sum(x) / len(read) for x in zip(*read, strict=True))
            calls = [partial(s.attend, q) for s, q in zip(stores, asked, strict=True)]
            cases[f"{name}, {kind}"] = Case(
                calls if kind == "real" else turned(calls, 1, 2), *means
            )
    return cases


def chosen() -> dict[str, str | KvRecipe]:
    """By name: methods that read some of the tokens of a dense store."""
    together = recipe_of("quest")
    together = replace(together, select=replace(together.select, each_head=False))
    return {"quest": "quest", "quest, group": together, "double_sparsity": "double_sparsity"}


def torch_cases(label: str, asked: list, size: int) -> dict[str, Case]:
    """SDPA for queries, keys and values, and for a KV head's query heads as rows."""
    rows = [(q.view(1, k.shape[1], -1, q.shape[3]), k, v) for q, k, v in asked]
    return {
        f"torch {label} rows": Case([partial(sdpa, *x) for x in rows], size),
        f"torch {label}": Case(
            turned([partial(sdpa, *x, enable_gqa=True) for x in asked], 1, 3), size
        ),
    }


def turned(calls: list[Callable], part: int, parts: int) -> list[Callable]:
    """The same, ``part / parts`` of the way round: beside others on the same copies, not in a cache."""
    at = part * len(calls) // parts
    return calls[at:] + calls[:at]


def show_summaries(a: argparse.Namespace) -> None:
    """Milliseconds of bounds of pages of 16 and means of 8 tokens, ours and torch's, in turns."""
    for dtype in (torch.float32, torch.bfloat16):
        keys = torch.randn(1, a.kv_heads, a.tokens, a.head_dim).to(dtype)
        data = [held(keys) for _ in copies(a, keys.numel() * keys.element_size())]
        for ours, theirs in (
            (partial(page_bounds, page=16), torch_bounds),
            (partial(page_means, page=8), torch_means),
        ):
            times: list[list[float]] = [[], []]
            for turn in range(max(5, int(a.seconds / 4 / 0.3))):
                for make, into in zip((ours, theirs), times, strict=True):
                    start = time.perf_counter()
                    make(data[turn % len(data)])
                    into.append(time.perf_counter() - start)
            mine, other = (sorted(t)[len(t) // 5] * 1e3 for t in times)
            print(f"{theirs.__name__[6:]} {dtype}: {mine:.2f} ms, torch {other:.2f}")


def torch_bounds(keys: Tensor) -> Tensor:
    """``page_bounds`` of pages of 16."""
    pages = keys.unflatten(2, (-1, 16))
    return torch.stack([pages.amin(3), pages.amax(3)], 3)


def torch_means(keys: Tensor) -> tuple[Tensor, Tensor]:
    """``page_means`` of pages of 8."""
    pages = keys.float().unflatten(2, (-1, 8))
    means = pages.mean(3, keepdim=True)
    return means.squeeze(3).to(keys.dtype), cosine_similarity(pages, means, dim=-1).amin(-1)


def bytes_read(store: KvStore, q: Tensor) -> tuple[float, float]:
    """Bytes that a step reads, summaries included, and its share of the tokens."""
    keys = store.rows["keys"].view
    size, share = 2 * keys.numel() * keys.element_size(), share_read(store, q)
    return store.nbytes() - size + share * size, share


def copy_of(store: KvStore) -> KvStore:
    """The same in memory of its own."""
    copy = store.fresh()
    copy.restore(store.snapshot())
    return copy


def share_read(store: KvStore, q: Tensor) -> float:
    """Of the tokens, those that a step reads: where heads choose for themselves, more than each does."""
    segments = store.selection.segments(q, store.rows["keys"].view, store.rows["values"].view, None)
    read = [s.tokens if s.lists.count is None else s.lists.count.float().mean() for s in segments]
    return float(sum(read)) / store.tokens


def held(x: Tensor) -> Tensor:
    """A copy in memory as a store holds it, for torch too."""
    return Rows.copy_of(x).view


def copies(a: argparse.Namespace, size: int) -> range:
    """As many as make the data cold, or one."""
    return range(1 if a.warm else max(1, COLD // size))


def make_store(method: str | KvRecipe, k: Tensor, v: Tensor, q: Tensor) -> KvStore:
    """A store that reads 1/16 of the tokens, with its summaries made."""
    turns = 1e4 ** (-torch.arange(0, k.shape[3], 2) / k.shape[3])  # of low-rank keys
    store = KvStore(recipe_of(method), budget=k.shape[2] // 256 * 16, layer=2, frequencies=turns)
    store.append(k, v)
    store.settle(None if store.selection is None else q)
    store.attend(q)
    return store


if __name__ == "__main__":
    main()

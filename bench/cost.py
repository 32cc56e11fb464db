"""Fits the cost model's constants to this machine, and checks what it predicts and chooses.

    python bench/cost.py fit                  # every kernel in cache; prints lines of costs.def
    python bench/cost.py fit --kernels panels
    python bench/cost.py check --shapes 4096x4096 --threads 1 --json out/cost.json
    XDG_CACHE_HOME=out python bench/cost.py check --measure   # by figures taken just before
    python bench/cost.py check --formats bitmap csr8 nm block bitmap:i8 nm:i8 groupq:u4
    python bench/cost.py check --read out/*.json

`check` times, weights cold, every stored format's kernel and torch's dense product in turns, and
compares them with the predictions: the share of times within 25 %, and of choices within 10 % of the
best candidate. Stored formats only: expanding first is a choice for one of them, and counts as one.
A format holds floats as x does, or codes where one says so; codes and floats are not chosen between.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"  # weights of a model lie in small pages

import numpy as np

from tamis import _C
from tamis.layout import Layout
from tamis.ops import machine
from tamis.ops.handle import make_matrix, pack

TOKENS = (1, 2, 4, 8, 16, 64, 256)
FIT_TOKENS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 32, 64, 128, 256)
# In the second-level cache, with few and many words a row, and with x of many tokens beyond it.
FIT_SHAPES = ((512, 576), (64, 3072), (192, 4096))
# So many words that nothing learns by heart where each ends; for kernels of many tokens, which
# compute longer than they read, and for lists of columns.
WIDE_SHAPE = (1024, 4096)
SHAPES = (
    *((192, 576), (576, 576), (1536, 576), (576, 1536)),
    *((1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336)),
)
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1)
COLD_BYTES = 500 << 20
MOST_COPIES = 2000
PATTERNS = {0.5: (2, 4), 0.3: (10, 32), 0.2: (6, 32), 0.1: (3, 32), 0.25: (1, 4), 1.0: (4, 4)}


def matrix(format: str, dtype: str, n: int, k: int, density: float, block: int = 16) -> "_C.Matrix":
    """A random weight."""
    return make_matrix(*packed(format, dtype, n, k, density, block), check=False)


def packed(
    format: str, dtype: str, n: int, k: int, density: float, block: int = 16
) -> tuple[Layout, dict[str, np.ndarray]]:
    """A random weight's layout and arrays: 1024 rows drawn, then repeated.

    (Equal rows closer together lie a multiple of 4 KB apart: they fight for the sets of caches.)
    """
    rng = np.random.default_rng(0)
    rows = min(n, 1024)
    if format == "nm":
        kept, of = PATTERNS[density]
        draw = rng.random((rows, k // of, of)).argsort(-1) < kept
        keep = draw.reshape(rows, k)
    elif format == "block":
        keep = (rng.random((rows // block, k // block)) < density).repeat(block, 0).repeat(block, 1)
    elif format == "groupq":
        keep = (rng.random((rows, k // 16)) < density).repeat(16, 1)
    else:
        keep = rng.random((rows, k)) < density
    keep = np.ascontiguousarray(np.tile(keep, (-(-n // rows), 1))[:n])
    kinds = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
    w = np.full((n, k), 0x3F80 if dtype == "bf16" else 1, dtype=kinds.get(dtype, np.float32))
    layout = Layout(
        format,
        n,
        k,
        dtype,
        *(PATTERNS[density] if format == "nm" else (0, 0)),
        block=(block, block) if format == "block" else (0, 0),
        group_size=16 if format == "groupq" else 0,
    )
    return layout, pack(layout, w, dtype if dtype in kinds else "f32", keep)


# Fitting


def fit(args: argparse.Namespace) -> None:
    """Prints a line of costs.def for each kernel that this host runs, or puts them there."""
    _C.set_num_threads(1)
    lines: dict[str, str] = {}
    for row in _C.kernels():
        name = row["name"]
        wanted = not args.kernels or any(part in name for part in args.kernels)
        if not wanted or not row["runs_here"] or row["isa"] == "scalar":
            continue
        constants, error = fit_kernel(row, args.seconds)
        line = ", ".join(f"{c:.3g}" for c in constants)
        lines[name] = f"TAMIS_COST({name}, {line})"
        print(lines[name], flush=True)
        print(
            f"  {name}: median error {np.median(error):.3f}, most {error.max():.3f}",
            file=sys.stderr,
        )
    if args.into:
        put(lines, args.into)


def put(lines: dict[str, str], path: Path) -> None:
    """Replaces the lines of these kernels in costs.def; new ones come last, unknown ones leave."""
    known = [row["name"] for row in _C.kernels()]
    comment, old = [], {}
    for line in path.read_text().splitlines():
        if line.startswith("//"):
            comment.append(line)
        elif line:
            old[line.split("(")[1].split(",")[0]] = line
    merged = old | lines
    path.write_text("\n".join([*comment, *(merged[name] for name in known if name in merged), ""]))


def fit_kernel(row: "_C.KernelRow", seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Constants that fit the kernel's times in cache, and the relative errors that they leave."""
    from scipy.optimize import nnls

    densities = {"csr": (0.3, 0.1, 0.05), "nm": (0.5, 0.25)}.get(row["format"], (0.5, 0.2, 0.1))
    features, times = [], []
    tokens = [m for m in FIT_TOKENS if m >= row["from_m"]]
    wide = row["from_m"] > 8 or row["format"] == "csr8" or "lists" in row["name"]
    shapes = (*FIT_SHAPES, WIDE_SHAPE) if wide else FIT_SHAPES
    cases = [(n, k, d, m) for n, k in shapes for d in densities for m in tokens]
    least = np.full(len(cases), np.inf)
    held = {
        (n, k, d): matrix(row["format"], row["w_dtype"], n, k, d)
        for n, k in shapes
        for d in densities
    }
    for _ in range(3):  # the least of several moments, as others' work only adds
        for i, (n, k, d, m) in enumerate(cases):
            first = min(_C.time_spmm(row["name"], [held[n, k, d]], m, 2))
            calls = max(3, int(seconds / 3 / len(cases) / first * 1e9))
            least[i] = min(
                least[i], *_C.time_spmm(row["name"], [held[n, k, d]], m, min(calls, 200))
            )
    for (n, k, d, m), ns in zip(cases, least, strict=True):
        nnz = held[n, k, d].nnz
        passes = -(-m // row["tile_m"])
        words = n * -(-k // 64)
        form = row["name"].endswith(row["isa"]) is False
        features.append(
            [words * passes, words * m, nnz * passes, nnz * m, n * passes, n * m, k * m * form]
        )
        times.append(ns - 100)  # a call's own
    a, t = np.array(features, float), np.array(times, float)
    found, _ = nnls(a / t[:, None], np.ones(len(t)))
    return found, np.abs(a @ found / t - 1)


# Checking


@dataclass(frozen=True)
class Case:
    """One candidate at one point."""

    shape: tuple[int, int]
    density: float
    dtype: str
    m: int
    threads: int
    candidate: str
    kernel: str
    measured: float  # ns
    predicted: float


def check(args: argparse.Namespace) -> None:
    """Times candidates, or reads times, and prints both shares and what was missed."""
    if args.measure:
        machine.measure(lambda what: print(f"\r{what:60}", end="", file=sys.stderr))
    cases = list(read(args.read)) if args.read else list(measure(args))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(case) for case in cases]))
    print(*summary(cases, verbose=args.verbose), sep="\n")


def read(paths: Sequence[Path]) -> Iterable[Case]:
    """Times of earlier runs with this build's predictions."""
    for path in paths:
        for item in json.loads(path.read_text()):
            item["shape"] = tuple(item["shape"])
            n, k = item["shape"]
            if item["candidate"] == "dense":
                item["predicted"] = _C.predict_dense(
                    item["dtype"], item["m"], n, k, item["threads"]
                )
            else:
                item["predicted"] = predicted(
                    item["candidate"], item["dtype"], item["density"], n, k, item["m"],
                    item["threads"], item["kernel"],
                )  # fmt: skip
            yield Case(**item)


def predicted(  # noqa: PLR0913
    candidate: str, dtype: str, density: float, n: int, k: int, m: int, threads: int, kernel: str
) -> float:
    """ns that the model expects of a kernel."""
    format, w_dtype = stored(candidate, dtype)
    block = (16, 16) if format == "block" else (1, 1)
    nnz = round(n * k * density)
    return _C.predict(format, w_dtype, dtype, m, n, k, nnz, threads, block, kernel)


def stored(candidate: str, dtype: str) -> tuple[str, str]:
    """Format and dtype of the weights of a candidate for x of this dtype."""
    format, _, codes = candidate.partition(":")
    return format, codes or dtype


def measure(args: argparse.Namespace) -> Iterable[Case]:
    """Times, in turns."""
    import torch

    torch.set_grad_enabled(False)
    kinds = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    start = time.monotonic()
    for text in args.shapes:
        n, k = map(int, text.split("x"))
        for dtype in args.dtypes:
            dense = torch.ones(n, k, dtype=kinds[dtype])
            count = copies(dense.numel() * dense.element_size())
            weights = [dense, *(dense.clone() for _ in range(count))]
            for density in args.densities:
                held = {}
                for format in args.formats:
                    if density < 1.0 or format == "bitmap":
                        held[format] = cold(*packed(*stored(format, dtype), n, k, density))
                for threads in args.threads:
                    torch.set_num_threads(threads)
                    _C.set_num_threads(threads)
                    for m in args.tokens:
                        x = torch.ones(m, k, dtype=kinds[dtype])
                        yield from point(args, (n, k), density, dtype, threads, x, weights, held)
            print(f"{time.monotonic() - start:.0f} s {text} {dtype}", file=sys.stderr)


def copies(nbytes: int) -> int:
    """Enough more that each is out of the caches when its turn comes again."""
    return min(COLD_BYTES // nbytes, MOST_COPIES)


def cold(layout: Layout, arrays: dict[str, np.ndarray]) -> "list[_C.Matrix]":
    """The weight and its copies."""
    count = copies(sum(array.nbytes for array in arrays.values()))
    made = [arrays, *({n: a.copy() for n, a in arrays.items()} for _ in range(count))]
    return [make_matrix(layout, each, check=False) for each in made]


def point(args, shape, density, dtype, threads, x, weights, held):  # noqa: PLR0913
    """All candidates at one point, in turns."""
    from torch.nn.functional import linear

    m = x.shape[0]
    kernels = {f: ms[0].kernel(m, dtype) for f, ms in held.items()}
    seen = {name: [] for name in ("dense", *held)}
    at = dict.fromkeys(seen, 0)
    linear(x, weights[0])
    # As time_spmm: one thread's own time, so that others' turns on the core do not count.
    clock = time.thread_time if threads == 1 else time.perf_counter
    begin = time.perf_counter()
    while len(seen["dense"]) < 3 or (
        time.perf_counter() - begin < args.seconds and len(seen["dense"]) < 400
    ):
        for name in seen:
            for _ in range(4 if m * x.shape[1] * shape[0] < 1e7 else 1):
                i = at[name]
                at[name] += 1
                if name == "dense":
                    w = weights[i % len(weights)]
                    t = clock()
                    linear(x, w)
                    seen[name].append((clock() - t) * 1e9)
                else:
                    w = held[name][i % len(held[name])]
                    seen[name] += _C.time_spmm(kernels[name], [w], m, 1)
    for name, times in seen.items():
        ns = float(np.quantile(times, 0.3))
        if name == "dense":
            guess = _C.predict_dense(dtype, m, *shape, threads)
        else:
            guess = predicted(name, dtype, density, *shape, m, threads, kernels[name])
        yield Case(shape, density, dtype, m, threads, name, kernels.get(name, "torch"), ns, guess)


def summary(cases: Sequence[Case], *, verbose: bool) -> Iterable[str]:
    """Both shares, and the misses."""
    known = [case for case in cases if case.predicted > 0]
    bad = [case for case in known if abs(case.predicted / case.measured - 1) > 0.25]
    for kind in sorted({case.candidate for case in known}):
        part = [case for case in known if case.candidate == kind]
        off = [case for case in bad if case.candidate == kind]
        yield f"{kind}: {1 - len(off) / len(part):.1%} of {len(part)} times within 25 %"
    yield from choices(known)
    if not verbose:
        return
    for case in sorted(bad, key=lambda case: (case.kernel, case.shape, case.m)):
        yield (
            f"  {name_of(case)} {case.kernel}: predicted {case.predicted / 1e3:.1f} us, "
            f"measured {case.measured / 1e3:.1f}: {case.predicted / case.measured:.2f}"
        )


def choices(cases: Sequence[Case]) -> Iterable[str]:
    """The share of points whose choice is near the best, and those where it is not."""
    groups: dict[tuple, list[Case]] = {}
    dense = {point_of(case): case for case in cases if case.candidate == "dense"}
    for case in cases:
        if case.candidate != "dense":
            kind = (*point_of(case), stored(case.candidate, case.dtype)[1])
            groups.setdefault(kind, [dense[point_of(case)]]).append(case)
    wrong = []
    for group in groups.values():
        best = min(group, key=lambda case: case.measured)
        chosen = min(group, key=lambda case: case.predicted)
        if chosen.measured > 1.1 * best.measured:
            wrong.append((chosen, best))
    yield f"choice: {1 - len(wrong) / len(groups):.1%} of {len(groups)} within 10 % of the best"
    for chosen, best in wrong:
        yield (
            f"  {name_of(chosen)}: chose {chosen.candidate} {chosen.measured / 1e3:.1f} us, "
            f"{best.candidate} takes {best.measured / 1e3:.1f}"
        )


def point_of(case: Case) -> tuple:
    """What candidates compete at."""
    return case.shape, case.density, case.dtype, case.m, case.threads


def name_of(case: Case) -> str:
    """The point."""
    n, k = case.shape
    return f"{n}x{k} {case.dtype} d={case.density} m={case.m} t={case.threads}"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    sub = what.add_parser("fit")
    sub.add_argument("--kernels", nargs="+", help="parts of names")
    sub.add_argument("--into", type=Path, help="costs.def to write the lines to")
    sub.add_argument("--seconds", type=float, default=1.0, help="for each kernel")
    sub = what.add_parser("check")
    sub.add_argument("--shapes", nargs="+", default=[f"{n}x{k}" for n, k in SHAPES])
    sub.add_argument("--dtypes", nargs="+", default=["bf16", "f32"])
    sub.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    sub.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    sub.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    sub.add_argument("--formats", nargs="+", default=["bitmap", "csr"])
    sub.add_argument("--seconds", type=float, default=0.1, help="for each point")
    sub.add_argument("--json", type=Path)
    sub.add_argument("--read", nargs="+", type=Path)
    sub.add_argument("--measure", action="store_true", help="this machine's figures first")
    sub.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    {"fit": fit, "check": check}[args.what](args)


if __name__ == "__main__":
    main()

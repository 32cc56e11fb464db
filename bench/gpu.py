"""Everything on a CUDA device: build, conformance, sanitizer, rates, and times against torch.

    python bench/gpu.py [--out gpu.json] [--sections spmm ...] [--minutes 9]

Sections that the JSON file already holds are skipped, unless named. Times are CUDA events round a
graph of calls, one per copy of the weights; the copies together exceed the L2 cache several times.
The dense side is the faster of two cuBLAS calls, timed in turns with ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_activation import activation, print_activation
from gpu_grad import gradients, print_gradients
from gpu_kv import kv, print_kv, print_shares, shares
from gpu_merge import merges
from gpu_prefill import prefill, print_prefill
from gpu_rates import rates
from gpu_spgemm import print_spgemm, spgemm_section
from gpu_tiers import tiers
from gpu_timing import copies_of, timed, timed_in_turns

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
SHAPES = {  # Llama-3-8B: rows, columns
    "q, o": (4096, 4096),
    "k, v": (1024, 4096),
    "gate, up": (14336, 4096),
    "down": (4096, 14336),
}
TOKENS = (1, 8, 16, 32, 64)
FEW_TOKENS = {"gap": (1, 2, 4), "p24": (1, 4, 8, 16)}
MANY_TOKENS = (20, 32, 64, 128, 256, 512, 2048)  # of bitmap, which nobody packs
TOKENS24 = (*TOKENS, 128, 256, 512, 1024, 2048)
DENSITIES = (0.5, 0.3, 0.2)
TESTED = (
    *(f"cuda{what}" for what in ("", "_spmm", "_cost", "_activation", "_prefill", "_grad")),
    *(f"cuda_kv{what}" for what in ("", "_select", "_edit", "_store")),
    "spgemm",
)


def run(*command: str, limit: float = 300) -> str:
    """Output of a command, also when it fails; the code stands in the first line."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        so_far = said if isinstance(said, str) else said.decode(errors="replace")
        return f"rc timeout\n{so_far[-3000:]}\nstopped after {limit:.0f} s"
    seconds = f"took {time.monotonic() - start:.0f} s"
    first, last = done.stdout[:3000], done.stdout[3000:][-3000:]
    return f"rc {done.returncode}\n{first}{last}{done.stderr[-3000:]}\n{seconds}"


def at_once(commands: dict[str, list[str]], limit: float) -> dict[str, str]:
    """Outputs of commands that share the device, which nothing times meanwhile."""
    with ThreadPoolExecutor(len(commands)) as pool:
        waiting = {name: pool.submit(run, *c, limit=limit) for name, c in commands.items()}
        return {name: said.result() for name, said in waiting.items()}


def build() -> dict[str, Any]:
    configured = run(
        "cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DTAMIS_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}",
    )  # fmt: skip
    built = run("cmake", "--build", str(BUILD), "--target", "_C", "tamis_cuda")
    if not built.startswith("rc 0"):
        raise SystemExit(f"gpu: build failed\n{configured}\n{built}")
    return {"ok": True}


def conformance() -> dict[str, Any]:
    pytest = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    commands = {name: [*pytest, f"tests/python/test_{name}.py"] for name in TESTED}
    found = at_once(commands, limit=240)
    for name, said in found.items():
        ok = said.startswith("rc 0")
        print(
            f"  {name}: {' '.join(said.splitlines()[-2:])}" if ok else f"  {name}: {said[-3000:]}"
        )
    ok = all(said.startswith("rc 0") for said in found.values())
    return {"ok": ok, "output": {name: said[-1000:] for name, said in found.items()}}


# What each run of a sanitizer gets of gpu_small.py: racecheck part by part, as one may end it.
PARTS = ("few", "tiles", "m24", "codes", "kv", "rest", "spgemm")
SANITIZED = {
    "memcheck control": ("control",),
    "memcheck": PARTS,
    "synccheck": PARTS,
    "initcheck": PARTS[:-2],
    **{f"racecheck {part}": (part,) for part in PARTS},
}


def sanitizer(limit: float = 120) -> dict[str, Any]:
    """What compute-sanitizer says of small calls; of "control" it must say something."""
    places = (shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer")
    tool_path = next((place for place in places if place and Path(place).exists()), None)
    if tool_path is None:
        print("  SKIP sanitizer: no compute-sanitizer on PATH or in the toolkit")
        return {"ok": True}
    commands = {}
    for name, parts in SANITIZED.items():
        tool = name.split()[0]
        # initcheck must see what torch's kernels write.
        only = [] if tool == "initcheck" else ["--kernel-name", "kernel_substring=tamis"]
        commands[name] = [
            "env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool_path, "--tool", tool, *only,
            sys.executable, "bench/gpu_small.py", *parts,
        ]  # fmt: skip
    found: dict[str, Any] = {"ok": True}
    for tool, said in at_once(commands, limit).items():
        summary = [line.strip("= ") for line in said.splitlines() if "SUMMARY" in line]
        clean = bool(summary) and "SUMMARY: 0 " in summary[-1]
        right = summary and not clean if "control" in tool else clean and "finished" in said
        found[tool] = f"{summary[-1] if summary else 'no summary'}, {said.splitlines()[-1]}"
        found["ok"] = found["ok"] and bool(right)
        print(f"  {tool}: {'' if right else 'WRONG: '}{found[tool]}")
        if not right:
            print(said)
    return found


def host() -> dict[str, float]:
    """Microseconds of host time of one eager call: ours, the operator, and torch's dense layer."""
    import torch

    import tamis

    w = torch.randn(4096, 4096, dtype=torch.bfloat16)
    w[torch.rand(4096, 4096) < 0.5] = 0
    dense = torch.nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16)
    dense.weight.data = w
    sparse = tamis.nn.SparseLinear.from_linear(dense, format="bitmap").cuda()
    dense = dense.cuda()
    x = torch.randn(1, 1, 4096, dtype=torch.bfloat16, device="cuda")
    found = {}
    with torch.no_grad():
        for name, layer in (("ours", sparse), ("dense", dense)):
            best = 1e9
            for _ in range(12):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(200):
                    layer(x)
                best = min(best, (time.perf_counter() - start) / 200)
                torch.cuda.synchronize()
            found[name] = 1e6 * best
    print(f"  host us a call: {found}")
    return found


def copy_rate() -> dict[str, Any]:
    """GB/s of a device-to-device copy, bytes read plus bytes written."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), 1)
    return {"gb_per_s": 2 * source.numel() / seconds / 1e9, "device": torch.cuda.get_device_name()}


class Sparse:
    """Copies of one packed weight, and a workspace."""

    def __init__(
        self,
        w: Any,
        keep: Any = None,
        group_size: int = 0,
        dtype: str | None = None,
        form: str = "",
    ) -> None:
        """A 2:4 weight with ``keep``, 4-bit codes in groups with ``group_size``, or unstructured.

        With ``dtype="i8"`` values are 8-bit codes, with "i4" 4-bit ones; ``group_size`` is theirs then.
        ``form``: another packed form than that for any number of tokens.
        """
        import torch

        import tamis
        from tamis import _C
        from tamis.ops import cuda
        from tamis.ops.cuda_cost import packed_form
        from tamis.ops.handle import make_matrix
        from tamis.ops.tensors import as_numpy

        if reason := cuda.why_off():
            raise SystemExit(f"gpu: {reason}")
        if group_size and dtype is None:
            a = tamis.compress(w.float().cpu(), format="groupq", dtype="u4", group_size=group_size)
        elif keep is None:
            a = tamis.compress(w.cpu(), format="bitmap", dtype=dtype)
        else:
            made = {"dtype": dtype, "group_size": group_size}
            a = tamis.compress(w.cpu(), keep=keep.cpu(), format="nm", n_m=(2, 4), **made)
        if a.layout.quantized:
            self.exact = a.to_dense().cuda()
        form = form or ("m24i4" if dtype == "i4" else packed_form(a.layout))
        if form == "bitmap":
            self.take_canonical(a)
            return
        matrix = make_matrix(a.layout, {name: as_numpy(t) for name, t in a.arrays.items()})
        tiles = _C.pack_for_cuda(matrix, form)
        records = torch.from_numpy(tiles["records"]).cuda()
        self.nbytes, offsets, scales = records.numel(), 0, 0
        if "offsets" in tiles:
            self.offsets = torch.from_numpy(tiles["offsets"].view("int32")).cuda()
            self.nbytes += 4 * self.offsets.numel()
            offsets = self.offsets.data_ptr()
        if a.layout.dtype == "i8":
            self.scales = a.arrays["scales"].cuda()
            self.nbytes += 4 * self.scales.numel()
            scales = self.scales.data_ptr()
        self.records = [records] + [records.clone() for _ in range(copies_of(self.nbytes) - 1)]
        self.matrices = [
            _C.CudaMatrix(r.data_ptr(), r.numel(), tiles["max_record_bytes"],
                          offsets, *w.shape, "bf16", 0, form, scales,
                          group_size if scales else 0)
            for r in self.records
        ]  # fmt: skip
        self.workspace = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")

    def take_canonical(self, a: Any) -> None:
        import torch

        from tamis import _C
        from tamis.ops import cuda_spmm_grad

        arrays = {name: t.cuda() for name, t in a.arrays.items()}
        self.nbytes = sum(t.numel() * t.element_size() for t in arrays.values())
        self.records = [
            {name: t.clone() for name, t in arrays.items()} for _ in range(copies_of(self.nbytes))
        ]
        self.masks = [
            cuda_spmm_grad.mask_of(
                a.layout, r["values"], r["mask"], r["row_offsets"], r["values"].dtype
            )
            for r in self.records
        ]
        self.matrices = [
            _C.CudaMatrix(r["values"].data_ptr(), 2 * r["values"].numel(), 0, 0, a.layout.rows,
                          a.layout.cols, "bf16", 0, "bitmap", 0, 0, r["mask"].data_ptr(),
                          r["row_offsets"].data_ptr())
            for r in self.records
        ]  # fmt: skip
        self.workspace = torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")

    def written(self, x: Any, count: int) -> None:
        """The other way for many tokens: dense in memory, then cuBLAS."""
        import torch

        from tamis.ops import cuda_spmm_grad

        for i in range(count):
            j = i % len(self.records)
            w = cuda_spmm_grad.unpack(self.masks[j], self.records[j]["values"])
            torch.nn.functional.linear(x, w)

    def calls(self, x: Any, y: Any, count: int) -> None:
        import torch

        stream = torch.cuda.current_stream().cuda_stream
        for i in range(count):
            self.matrices[i % len(self.matrices)].spmm(
                len(x), x.data_ptr(), x.shape[1], 0, y.data_ptr(), y.shape[1],
                self.workspace.data_ptr(), self.workspace.numel(), stream,
            )  # fmt: skip


def semi_structured(w: Any, x: Any, y: Any, count: int) -> dict[str, Callable[[], None]]:
    """torch's 2:4 path with the backends that take these shapes."""
    import torch
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    sides = {}
    for cutlass in (False, True):
        SparseSemiStructuredTensor._FORCE_CUTLASS = cutlass
        try:
            copies = [
                to_sparse_semi_structured(w.clone()) for _ in range(copies_of(w.numel() * 9 // 8))
            ]

            def run(copies: list[Any] = copies) -> None:
                for i in range(count):
                    torch.nn.functional.linear(x, copies[i % len(copies)])

            run()
            torch.cuda.synchronize()
            sides[f"semi {'cutlass' if cutlass else 'cusparselt'}"] = run
        except (RuntimeError, NotImplementedError, ValueError) as error:
            print(f"  semi-structured, cutlass {cutlass}, m {len(x)}: {str(error).splitlines()[0]}")
    return sides


def int_mm(shape: tuple[int, int], m: int, count: int) -> dict[str, Callable[[], None]]:
    """torch's dense product of bytes, which takes 17 tokens or more; x is in bytes already."""
    import torch

    rows, cols = shape
    w = torch.randint(-127, 128, (rows, cols), dtype=torch.int8, device="cuda")
    copies = [w] + [w.clone() for _ in range(copies_of(w.numel()) - 1)]
    x = torch.randint(-127, 128, (max(m, 32), cols), dtype=torch.int8, device="cuda")

    def run() -> None:
        for i in range(count):
            torch._int_mm(x, copies[i % len(copies)].t())

    return {"int_mm": run}


def one_case(
    sparse: Sparse, w: Any, weights: list[Any], m: int, semi: bool = False, bytes_too: bool = False
) -> dict[str, Any]:
    """Times and error of one weight with m tokens; ``weights`` are the dense copies."""
    import torch

    count = max(len(weights), len(sparse.matrices))
    x = torch.randn(m, w.shape[1], dtype=torch.bfloat16, device="cuda")
    y, y_dense = (x.new_empty(m, len(w)) for _ in range(2))
    y_turned = x.new_empty(len(w), m)

    def linear() -> None:
        for i in range(count):
            torch.mm(x, weights[i % len(weights)].t(), out=y_dense)

    def turned() -> None:
        for i in range(count):
            torch.mm(weights[i % len(weights)], x.t(), out=y_turned)

    sides = {"ours": lambda: sparse.calls(x, y, count), "linear": linear, "turned": turned}
    if hasattr(sparse, "masks"):
        sides["written"] = lambda: sparse.written(x, count)
    if semi:
        sides |= semi_structured(w, x, y, count)
    if bytes_too:
        sides |= int_mm((len(w), w.shape[1]), m, count)
    times = timed_in_turns(sides, count)
    wanted = x.float() @ w.float().t()
    error = ((y.float() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()
    best = min(times["linear"], times["turned"])
    semis = {
        name: 1e6 * t for name, t in times.items() if name.startswith(("semi", "int_mm", "written"))
    }
    return semis | {
        "tokens": m,
        "us": 1e6 * times["ours"],
        "dense_us": 1e6 * best,
        "speedup": best / times["ours"],
        "bytes": sparse.nbytes + 2 * x.numel() + 2 * y.numel(),
        "error": error,
        "plan": sparse.matrices[0].plan(m),
    }


def one_shape(name: str, rate: float) -> list[dict[str, Any]]:
    import torch

    rows, cols = SHAPES[name]
    found = []
    dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
    weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
    for density in DENSITIES:
        w = dense * (torch.rand_like(dense, dtype=torch.float32) < density)
        sparse = Sparse(w)
        for m in TOKENS[1:]:  # fewer are gap's
            row = {"shape": name, "density": density, **one_case(sparse, w, weights, m)}
            row["of_copy_rate"] = row["bytes"] / row["us"] * 1e-3 / rate
            found.append(row)
    return found


def one_shape_gap(name: str, rate: float) -> list[dict[str, Any]]:
    """The same weights as they are packed for few tokens."""
    import torch

    rows, cols = SHAPES[name]
    dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
    weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
    found = []
    for density in (*DENSITIES, 0.1):
        w = dense * (torch.rand_like(dense, dtype=torch.float32) < density)
        for form, tokens in FEW_TOKENS.items():
            sparse = Sparse(w, form=form)
            for m in tokens:
                case = one_case(sparse, w, weights, m)
                row = {"shape": name, "density": f"{form} {density}", **case}
                row["of_copy_rate"] = row["bytes"] / row["us"] * 1e-3 / rate
                found.append(row)
    return found


def one_shape_many(name: str, rate: float) -> list[dict[str, Any]]:
    """Unstructured weights as they are stored, for more tokens than packed forms take."""
    import torch

    rows, cols = SHAPES[name]
    dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
    weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
    found = []
    for density in (0.5, 0.3):
        w = dense * (torch.rand_like(dense, dtype=torch.float32) < density)
        sparse = Sparse(w, form="bitmap")
        for m in MANY_TOKENS:
            row = {"shape": name, "density": f"bitmap {density}"}
            row |= one_case(sparse, w, weights, m)
            row["of_copy_rate"] = row["bytes"] / row["us"] * 1e-3 / rate
            found.append(row)
    return found


def one_shape24(name: str, rate: float) -> list[dict[str, Any]]:
    """2:4 weights on sparse tensor cores."""
    import torch

    rows, cols = SHAPES[name]
    dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
    keep = torch.rand(rows, cols // 4, 4, device="cuda").argsort(-1).lt(2).view(rows, cols)
    w = dense * keep
    weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
    sparse = Sparse(w, keep)
    found = []
    for m in TOKENS24:
        if m > sparse.matrices[0].most_tokens:
            continue  # written out
        row = {"shape": name, "density": "2:4", **one_case(sparse, w, weights, m, semi=True)}
        row["of_copy_rate"] = row["bytes"] / row["us"] * 1e-3 / rate
        found.append(row)
    return found


def one_shape_g4(name: str, rate: float) -> list[dict[str, Any]]:
    """4-bit codes, groups of 16, half of them and all."""
    import torch

    rows, cols = SHAPES[name]
    dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
    weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
    found = []
    for density in (0.5, 1.0):
        kept = torch.rand(rows, cols // 16, 1, device="cuda") < density
        w = (dense.view(rows, -1, 16) * kept).view(rows, cols)
        forms = {form: Sparse(w, group_size=16, form=form) for form in ("sell4", "g4")}
        for form, m in [("sell4", m) for m in (1, 2, 4, 8)] + [("g4", m) for m in TOKENS[1:]]:
            sparse = forms[form]
            if m > sparse.matrices[0].most_tokens:
                continue  # columns of so many tokens do not fit in shared memory
            row = {"shape": name, "density": f"{form} {density}"}
            row |= one_case(sparse, sparse.exact, weights, m)
            row["of_copy_rate"] = row["bytes"] / row["us"] * 1e-3 / rate
            found.append(row)
    return found


def one_shape_i8(name: str, rate: float) -> list[dict[str, Any]]:
    """8-bit values: 2:4 on sparse tensor cores, with 4 bits in groups of 128, and unstructured."""
    import torch

    rows, cols = SHAPES[name]
    dense = torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda")
    weights = [dense] + [dense.clone() for _ in range(copies_of(2 * rows * cols) - 1)]
    keep = torch.rand(rows, cols // 4, 4, device="cuda").argsort(-1).lt(2).view(rows, cols)
    found = []
    for what in ("2:4 i8", "2:4 i4", "0.5 i8", "0.3 i8"):
        if what.startswith("2:4"):
            sparse = Sparse(dense, keep, dtype=what[4:], group_size=0 if what == "2:4 i8" else 128)
        else:
            kept = torch.rand_like(dense, dtype=torch.float32) < float(what[:3])
            sparse = Sparse(dense * kept, dtype="i8")
        for m in TOKENS:
            row = {"shape": name, "density": what}
            row |= one_case(sparse, sparse.exact, weights, m, bytes_too=True)
            row["of_copy_rate"] = row["bytes"] / row["us"] * 1e-3 / rate
            found.append(row)
    return found


def print_rows(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    print(
        f"{'shape':9} {'d':>4} {'m':>3} {'us':>8} {'dense':>8} {'speedup':>7} {'of copy':>7}  plan"
    )
    for r in rows:
        plan = r["plan"]
        print(
            f"{r['shape']:9} {r['density']:4} {r['tokens']:3} {r['us']:8.2f} {r['dense_us']:8.2f} "
            f"{r['speedup']:7.2f} {r['of_copy_rate']:7.0%}  {plan['warps_k']} warps x "
            f"{plan['splits']} over k, {plan['blocks']} blocks"
            + "".join(
                f", {k} {v:.1f} us"
                for k, v in r.items()
                if k.startswith(("semi", "int_mm", "written"))
            )
            + ("" if r["error"] < 1e-2 else f"  WRONG by {r['error']:.1e}")
        )


def run_sections(args: argparse.Namespace) -> dict[str, Any]:
    end = time.monotonic() + 60 * args.minutes
    done: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    sections: dict[str, Callable[[], Any]] = {
        "build": build,
        "conformance": conformance,
        "copy": copy_rate,
        "rates": rates,
        "host": host,
        "sanitizer": sanitizer,
    }
    products = {
        "spmm": one_shape,
        "gap": one_shape_gap,
        "many": one_shape_many,
        "m24": one_shape24,
        "g4": one_shape_g4,
        "i8": one_shape_i8,
    }
    for (kind, product), shape in itertools.product(products.items(), SHAPES):
        sections[f"{kind} {shape}"] = lambda product=product, shape=shape: product(
            shape, done["copy"]["gb_per_s"]
        )
    for batch in (1, 8):
        sections[f"kv {batch}"] = lambda batch=batch: kv(batch, done["copy"]["gb_per_s"])
    sections["shares"] = shares
    sections["merges"] = merges
    sections["tiers"] = tiers
    sections["prefill"] = prefill
    sections["gradients"] = gradients
    sections["spgemm"] = spgemm_section
    sections["activation"] = lambda: activation(done["copy"]["gb_per_s"])
    for name, section in sections.items():
        named = name in args.sections or name.split()[0] in args.sections
        if not named and (args.sections or name in done):
            continue
        if time.monotonic() > end - 30:
            print(f"LEFT {name}: no time; run again with the same --out")
            continue
        print(f"== {name}", flush=True)
        start = time.monotonic()
        done[name] = section()
        done.setdefault("seconds", {})[name] = time.monotonic() - start
        args.out.write_text(json.dumps(done, indent=1))
        print(f"   {done['seconds'][name]:.0f} s", flush=True)
    return done


def why_not() -> str:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--sections", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=9)
    args = parser.parse_args()
    if reason := why_not():
        print(f"SKIP gpu: {reason}")
        return 0
    sys.path.insert(0, str(ROOT / "python"))
    os.environ["PYTHONPATH"] = str(ROOT / "python")
    done = run_sections(args)
    print(f"sections took {sum(done.get('seconds', {}).values()):.0f} s in all")
    if "copy" in done:
        print(f"{done['copy']['device']}: copies {done['copy']['gb_per_s']:.0f} GB/s")
    print_prefill(done.get("prefill", []))
    print_gradients(done.get("gradients", []))
    print_spgemm(done.get("spgemm", []))
    print_activation(done.get("activation", []))
    print_shares(done.get("shares", []))
    print_kv([row for name in done if name.startswith("kv") for row in done[name]])
    print_rows(
        [
            row
            for name in done
            if name.startswith(("spmm", "gap", "many", "m24", "g4", "i8"))
            for row in done[name]
        ]
    )
    checks = (done.get(name, {"ok": True}) for name in ("conformance", "sanitizer"))
    return 0 if all(check["ok"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Sections of gpu.py that time one product, in every packed form, against torch's dense one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpu_timing import copies_of, timed_in_turns

SHAPES = {  # Llama-3-8B: rows, columns
    "q, o": (4096, 4096),
    "k, v": (1024, 4096),
    "gate, up": (14336, 4096),
    "down": (4096, 14336),
}
TOKENS = (1, 8, 16, 32, 64)
FEW_TOKENS = {"gap": (1, 2, 4), "p24": (1, 4, 8, 16, 24, 32, 40, 48, 64), "r24": (64, 128)}
MANY_TOKENS = (20, 32, 64, 128, 256, 512, 2048)  # of bitmap, which nobody packs
TOKENS24 = (*TOKENS, 128, 256, 512, 1024, 2048)
DENSITIES = (0.5, 0.3, 0.2)


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
        from tamis.ops.cuda_forms import packed_form
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
                if m > sparse.matrices[0].most_tokens:
                    continue  # x of a panel does not fit in shared memory
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


PRODUCTS: dict[str, Callable[[str, float], list[dict[str, Any]]]] = {
    "spmm": one_shape,
    "gap": one_shape_gap,
    "many": one_shape_many,
    "m24": one_shape24,
    "g4": one_shape_g4,
    "i8": one_shape_i8,
}


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

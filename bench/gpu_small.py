"""Small calls of every CUDA kernel, in parts, as compute-sanitizer is given them.

    compute-sanitizer --tool memcheck --kernel-name kernel_substring=tamis \
        python bench/gpu_small.py few m24

Inputs of all parts but "rest" come from the host, so that initcheck sees who wrote each byte of
theirs. Without torch's pool (PYTORCH_NO_CUDA_MEMORY_CACHING=1) a tensor's memory ends where it does.
"control" writes where no memory is: a memcheck that reports nothing there sees no kernels.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import torch
from torch import Tensor

import tamis
from tamis.ops import cuda
from tamis.ops import kv_select as op
from tamis.ops.attention import (
    DenseSegment,
    Lists,
    LowRankSegment,
    PageSegment,
    key_turns,
    sparse_attention,
)
from tamis.ops.chosen import Choice
from tamis.ops.cuda_forms import STORED
from tamis.ops.cuda_packed import Packed
from tamis.ops.cuda_spmm_grad import gather, mask_of, unpack
from tamis.ops.kv_edit import Similar, Tokens, compact_, gather_rows, merge_tokens
from tamis.ops.kv_fetch import Pool, kv_fetch
from tamis.ops.kv_quantize import kv_quantize, page_layout
from tamis.ops.tensors import REST

BF16 = torch.bfloat16
GROUPS = 128


def randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """Made on the host."""
    return torch.randn(shape).to(dtype).cuda()


def two_of_four(n: int, k: int) -> Tensor:
    return torch.rand(n, k // 4, 4).argsort(-1).lt(2).view(n, k)


def products(
    a: tamis.SparseMatrix, form: str, tokens: tuple[int, ...], dtype: torch.dtype = BF16
) -> Packed:
    """Calls of one form, some with a bias or x in unaligned rows, and the weight written out."""
    arrays = {name: t.cuda() for name, t in a.arrays.items()}
    rest = tuple(arrays.get(name) for name in REST)
    packed = Packed(a.layout, arrays["values"], rest, dtype, form, arrays["values"].device)
    if not packed.matrix.kernel.startswith(f"spmm_{form}_"):
        raise SystemExit(f"gpu_small: got {packed.matrix.kernel!r}, wanted a kernel of {form}")
    bias = randn(a.layout.rows, dtype=dtype)
    for m in tokens:
        if m <= packed.matrix.most_tokens:
            packed.run(randn(m, a.layout.cols + 3, dtype=dtype)[:, 3:], bias if m % 2 else None)
            packed.run(randn(m, a.layout.cols, dtype=dtype), bias)
    x = randn(1, a.layout.cols, dtype=dtype)
    if form != STORED or packed.mask is not None or dtype == torch.float32:
        packed.to_dense(arrays["values"], x)
    if form != STORED and packed.mask is not None:  # and from records, as where no mask is here
        packed.mask = None
        packed.to_dense(arrays["values"], x)
    torch.cuda.synchronize()
    return packed


SLICES = ((72, 904, 0.5), (33, 201, 0.02), (40, 2000, 0.5), (40, 2600, 0.3), (40, 4096, 0.5))


def halves(n: int, k: int, kept: float) -> tamis.SparseMatrix:
    keep = torch.rand(n, k) < kept
    return tamis.compress(torch.randn(n, k).to(BF16), keep=keep, format="bitmap")


def few() -> None:
    """gap, bitmap as stored and sell4: slices and parts that are full, half full and empty."""
    for n, k, kept in SLICES:
        bitmap = halves(n, k, kept)
        products(bitmap, "gap", (1, 2, 3, 4))
        if torch.cuda.get_device_capability()[0] == 9 and n % 8 == k % 8 == 0:
            products(bitmap, "bitmap", (1, 20, 33, 100, 300))
    for n, k in ((70, 1600), (33, 96)):
        w = torch.randn(n, k)
        w.view(n, -1, 16)[torch.rand(n, k // 16) < 0.5] = 0
        a = tamis.compress(w, format="groupq", dtype="u4", group_size=16)
        products(a, "sell4", (1, 2, 4, 7))


def f32() -> None:
    """bitmap as stored in 32 bits: rows that end within a word and a block, and one longer than warps."""
    for n, k, kept in (*SLICES, (9, 20000, 0.5)):
        keep = torch.rand(n, k) < kept
        wide = tamis.compress(torch.randn(n, k), keep=keep, format="bitmap")
        products(wide, "bitmap", (1, 2, 3, 7, 16), torch.float32)


def p24() -> None:
    """One panel, one whose last columns follow, two panels as a cluster, and halves of one."""
    for n, k, kept in SLICES:
        products(halves(n, k, kept), "p24", (1, 8, 9, 16, 17, 30, 40, 48, 50))


def r24() -> None:
    """Parts of k as clusters and through memory, residuals beyond what a slot holds, odd rows of x."""
    if torch.cuda.get_device_capability()[0] == 9:
        for n, k, kept in SLICES:
            products(halves(n, k, kept), "r24", (1, 33, 64, 65, 128))
        products(halves(50, 196, 0.9), "r24", (40, 100))


def tiles() -> None:
    """t16, g4 and m24 by warps, with rings that turn and without."""
    for n, k in ((50, 192), (130, 1120)):
        w, keep = torch.randn(n, k), torch.rand(n, k) < 0.5
        products(tamis.compress(w.to(BF16), keep=keep, format="bitmap"), "t16", (1, 9, 33))
        a = tamis.compress(w, format="groupq", dtype="u4", group_size=16)
        products(a, "g4", (1, 9, 33))
        a = tamis.compress(w.to(BF16), keep=two_of_four(n, k), format="nm", n_m=(2, 4))
        products(a, "m24", (1, 9, 33))


def m24() -> None:
    """m24 by warpgroups, few tokens and many: the fewest records that they take all of."""
    n, k = 1024, 8192
    a = tamis.compress(torch.randn(n, k).to(BF16), keep=two_of_four(n, k), format="nm", n_m=(2, 4))
    packed = products(a, "m24", (1, 16, 30, 64, 130, 300))
    if torch.cuda.get_device_capability() == (9, 0) and packed.matrix.plan(1)["layout"] < 0:
        raise SystemExit("gpu_small: m24: no warpgroups")


def codes() -> None:
    """m24i8, m24i4 and t16i8 with scales for rows and for groups; x rounded within and before."""
    for n, k in ((50, 192), (130, 1120)):
        for size in (0, GROUPS):
            for dtype in ("i8", "i4"):
                made = {"format": "nm", "n_m": (2, 4), "dtype": dtype, "group_size": size}
                a = tamis.compress(torch.randn(n, k), keep=two_of_four(n, k), **made)
                products(a, f"m24{dtype}", (1, 9, 33))
            keep = torch.rand(n, k) < 0.4
            made = {"format": "bitmap", "dtype": "i8", "group_size": size}
            products(tamis.compress(torch.randn(n, k), keep=keep, **made), "t16i8", (1, 9, 33))


def kv() -> None:
    """kv_mass in each number type, kv_choose by clusters, with attention and without, the rest of kv_*."""
    k, v = randn(1, 2, 600, 64), randn(1, 2, 600, 64)
    q = randn(1, 8, 1, 64)
    op.kv_mass(q, k)
    op.kv_mass(randn(1, 8, 90, 64), k)
    op.kv_mass(torch.randn(1, 8, 90, 64).cuda(), k)
    op.kv_mass(randn(1, 2, 70, 128).half(), randn(1, 2, 600, 128).half())
    channels = torch.randint(0, 64, (2, 32), dtype=torch.int32).cuda()
    size = op.label_bytes(32)
    records = torch.zeros(1, 2, 38, size, dtype=torch.uint8).cuda()
    op.append_labels(records, k, channels, 0)
    labels = op.Labels(records, channels, 600)
    op.kv_choose(q, labels, 40)
    op.kv_choose(q, labels, 40, recent=16)
    wide = [randn(1, 2, 600, 128) for _ in range(2)]
    op.append_labels(records, wide[0], channels, 0)
    for k_of, recent in ((200, 0), (40, 16), (600, 0)):
        chosen = Lists(choice=Choice(labels, k_of, recent=recent))
        sparse_attention(randn(1, 8, 1, 128), [DenseSegment(*wide, chosen)])
    scores = op.kv_estimate(q, labels)
    op.kv_select(scores, 40)
    op.kv_select(torch.rand(1, 2, 3000).cuda(), top_p=0.9)
    index = torch.arange(600, dtype=torch.int32).view(1, 1, -1).expand(1, 2, -1)
    kept, dropped = (Tokens(index[..., i::2].contiguous().cuda()) for i in range(2))
    for dtype in (torch.float32, torch.float16, BF16):
        pair = [torch.randn(1, 2, 600, 128).to(dtype).cuda() for _ in range(2)]
        merge_tokens(*pair, kept, dropped, Similar(0.01, merge_keys=True))
        merge_tokens(*pair, kept, dropped, Similar(0.01, values=False))
    gather_rows(k, kept)
    compact_(k.clone(), kept)
    pool = Pool(*(torch.zeros(1, 2, 64, 64).to(BF16).cuda() for _ in range(2)), 1)
    for first in (0, 30):
        index = torch.arange(first, first + 40).int().expand(1, 2, -1).contiguous().cuda()
        kv_fetch(pool, Lists(index=index, count=torch.full((1, 2), 40).int().cuda()), k, v)


def rest() -> None:
    """Everything else: pages, prompts, sparse activations, gradients."""
    from tamis.activation.layers import by_column
    from tamis.ops.prefill import Pattern, Subset, prefill_attention
    from tamis.ops.sparse_input import sparse_input
    from tamis.ops.sparse_mlp import sparse_mlp

    half = torch.arange(0, 150, 2, device="cuda").int().view(1, -1)
    prompt = [randn(1, 4, 150, 64) for _ in range(3)]
    prefill_attention(*prompt)
    prefill_attention(*prompt, Pattern(rows=Subset(half), columns=Subset(half)))
    # So many are packed before they are multiplied.
    long = torch.arange(0, 600, 2, device="cuda").int().view(1, -1)
    prompt = [randn(1, 4, 600, 128) for _ in range(3)]
    prefill_attention(*prompt, Pattern(rows=Subset(long), columns=Subset(long)))
    x, gate = randn(3, 72), randn(200, 72)
    down = by_column(randn(136, 200))
    for m in (1, 3):
        sparse_mlp(x[:m], gate, gate, down, torch.full((200,), 3.0, device="cuda"))
    sparse_input(x, by_column(gate), torch.full((72,), 0.7, device="cuda"))
    k, v, q = randn(1, 2, 200, 64), randn(1, 2, 200, 64), randn(1, 8, 1, 64)
    for method, budget in (("full", None), ("kivi4", None), ("quest", 64), ("double_sparsity", 64)):
        tamis.kv.store(method, k, v, budget=budget).attend(q)
    layout = page_layout(64, 4, 4, 64, 64)
    records = torch.zeros(1, 2, 3, layout.nbytes, dtype=torch.uint8).cuda()
    kv_quantize(k[:, :, :192], v[:, :, :192], layout, records)
    some = Lists(index=torch.arange(0, 200, 2).int().expand(1, 2, -1).contiguous().cuda())
    turns = key_turns(torch.rand(32), 200, q.device)
    low = LowRankSegment(randn(1, 200, 24), randn(1, 2, 24, 64), v, turns, some)
    sparse_attention(q, [PageSegment(records, layout), low])
    # Racecheck ends by a hardware exception in cuBLAS's products of gradients: what is ours of them.
    sampled = tamis.compress(gate.cpu(), keep=torch.rand(200, 72) < 0.3, format="bitmap")
    values, words, offsets = (sampled.arrays[s].cuda() for s in ("values", "mask", "row_offsets"))
    mask = mask_of(sampled.layout, values, words, offsets, BF16)
    if mask is None:
        raise SystemExit("gpu_small: wanted kernels for the gradients of a bitmap")
    gather(mask, unpack(mask, values))


def spgemm() -> None:
    """Rows for a warp, a block and global memory."""
    for wide, kept in ((70, 0.1), (900, 0.02)):
        sides = []
        for shape in ((wide, 6000), (6000, wide)):
            made = tamis.compress(torch.randn(shape) * (torch.rand(shape) < kept), format="csr")
            arrays = {name: t.cuda() for name, t in made.arrays.items()}
            sides.append(tamis.SparseMatrix(made.layout, arrays))
        (sides[0] @ sides[1]) @ sides[0]


def control() -> None:
    w = tamis.compress(
        torch.randn(50, 192).to(BF16), keep=torch.rand(50, 192) < 0.5, format="bitmap"
    )
    matrix = products(w, "t16", (1,)).matrix
    x, y = randn(2, 192), randn(1, 50)
    room = torch.zeros(1 << 20, dtype=torch.uint8).cuda()
    stream = torch.cuda.current_stream().cuda_stream
    far = 1 << 30  # elements between the tokens of y, which has one
    matrix.spmm(2, x.data_ptr(), 192, 0, y.data_ptr(), far, room.data_ptr(), room.numel(), stream)


PARTS = {f.__name__: f for f in (few, f32, p24, r24, tiles, m24, codes, kv, rest, spgemm, control)}


def main() -> int:
    if reason := cuda.why_off():
        raise SystemExit(f"gpu_small: {reason}")
    torch.manual_seed(1)
    start, failed = time.monotonic(), False
    for name in sys.argv[1:]:
        try:
            PARTS[name]()
            torch.cuda.synchronize()
        except Exception:
            traceback.print_exc()
            failed = True
        print(f"{name} {time.monotonic() - start:.1f} s", flush=True)
    print("failed" if failed else "finished")
    return failed


if __name__ == "__main__":
    sys.exit(main())

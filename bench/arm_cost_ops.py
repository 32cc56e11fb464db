"""Estimates of the NEON kernels of KV caches, 4-bit groups and activations, without hardware.

    make test-neon && python bench/arm_cost_ops.py          # needs llvm-19
    python bench/arm_cost_ops.py --counts                    # loop counts under qemu, no llvm

Runs each kernel once under qemu with a plugin that counts how often each straight piece of its code
runs, asks llvm-mca for the cycles of the pieces that matter, and adds up: all of a kernel's loops
and what it does between them. "ports" is what the execution ports allow, "simulated" what the
model's scheduler reaches. Time is the larger of cycles / frequency and bytes / bandwidth (CORES in
bench/arm_cost.py). Everything printed is an estimate; caches and mispredicted branches are not in
it. What stands beside is dense: for one token the loops of bench/arm_cost.py; where weights serve
several rows, the same products at 90 % of the core's peak; for pages and labels, our dense kernel.

--counts checks the multiplications that ran against what each operator's formula asks, within 5 %.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arm_cost import (
    CORES,
    MATRIX_CORES,
    Block,
    Core,
    Estimate,
    count_runs,
    cycles,
    dense_loop,
    functions,
    span,
    times,
)

TOKENS, D, ROWS = 512, 128, 4  # of attention
WIDE = 1024  # outputs and inputs of a layer
SIDE = 16  # of a plane
LEAST = 0.002  # of all instructions: pieces that run less are left out
DENSE_SHARE = 0.9  # of the peak
EXP = 8  # fmla of a vector of exponentials


@dataclass(frozen=True)
class Op:
    """A call of one kernel, and what it replaces.

    `row` and `numbers`: arguments of arm_count; `symbol`: functions that it spends its time in;
    `multiplied`: multiplications called `mark` that its formula asks. A figure is per unit, of
    which there are `units`. `dense`: "loop DTYPE", "peak MARK COUNT", "copy" or another op's name.
    `moved` and `dense_moved`: bytes from memory.
    """

    name: str
    row: str
    numbers: tuple[int, ...]
    symbol: str
    mark: str
    multiplied: float
    unit: str
    units: float
    dense: str
    moved: float
    dense_moved: float


def attention(storage: str, level: str, bits: int = 0) -> Op:
    """Four query rows over one KV head."""
    dots = level == "neon_bf16"
    size = {"f32": 4, "bf16": 2}.get(storage, bits / 8)
    scales = 4 * D / 32 + 4 * D / 32 if bits else 0  # of keys for 32 tokens, of values each
    products = TOKENS * D * 2 * ROWS / (8 if dots else 4)
    # Beside them an exponential a score, and a page's scales and minima for each row.
    beside = 0 if dots else EXP * TOKENS * ROWS / 4
    if bits and not dots:
        beside += (1 + ROWS) * (TOKENS / 32 * D / 4 + TOKENS / 4 * D / 32)
    mark = "bfdot" if dots else "fmla"
    dense = "bf16" if bits else f"{mark} {products}"
    return Op(
        f"attention {storage}{f' {bits} bits' if bits else ''} {level}",
        f"sparse_attention_{storage}_{'bf16' if dots and not bits else 'f32'}_{level}",
        (TOKENS, D, bits),
        "attend_pages" if bits else "attend_dense",
        mark,
        products + beside,
        "token",
        TOKENS,
        f"attention {dense} {level}" if bits else f"peak {dense}",
        TOKENS * (2 * D * size + scales),
        TOKENS * 2 * D * (2 if bits else size),
    )


def score(kind: str, level: str, width: int, mark: str, lanes: int) -> Op:
    """Four rows of q times labels, or rows of bf16."""
    labels = kind == "labels"
    products = TOKENS * width * ROWS / lanes
    rows = "score rows neon_bf16" if level == "neon_bf16" else "score rows neon"
    return Op(
        f"score {kind} {level}",
        f"kv_select_{'labels_f32' if labels else 'rows_bf16'}_"
        f"{'bf16' if level == 'neon_bf16' else 'f32'}_{level}",
        (TOKENS, width),
        "score_",
        mark,
        products,
        "token",
        TOKENS,
        rows if labels else f"peak {mark} {products}",
        TOKENS * (width / 2 + 4 if labels else 2 * width),
        TOKENS * 2 * D,
    )


def groups(form: str, level: str, m: int) -> Op:
    """m tokens times 4-bit groups of 16, half of them stored."""
    stored = WIDE * WIDE / 2
    lanes = form == "lanes"
    dense = "loop bf16" if m == 1 else f"peak fmla {WIDE * WIDE * m / 4}"
    return Op(
        f"groupq u4 {form} {level}, m = {m}",
        f"spmm_groupq_u4_f32_{level}_{form}",
        (m, WIDE, WIDE, 16, 32),
        "lanes_(row|pass)" if lanes else "groupq_pass",
        "sdot" if lanes else "fmla",
        stored * m / 16 if lanes else stored * (m + 1) / 4,  # each weight is an fmla, too
        "8 weights",
        WIDE * WIDE / 8,
        dense,
        stored / 16 * 12,
        WIDE * WIDE * 2,
    )


def sparse_input(dtype: str, keep: int) -> Op:
    """One token, keep of ten inputs."""
    size = {"f32": 4, "bf16": 2}[dtype]
    inputs = sum(i * 7 % 10 < keep for i in range(WIDE))
    return Op(
        f"sparse_input {dtype}, {100 - 10 * keep} % left out",
        f"sparse_input_{dtype}_neon",
        (WIDE, WIDE, keep, 10),
        "sum_tile|sparse_input",
        "fmla",
        WIDE * inputs / 4,
        "8 weights",
        WIDE * WIDE / 8,
        f"loop {dtype}",
        WIDE * inputs * size,
        WIDE * WIDE * size,
    )


def sparse_mlp(dtype: str, keep: int) -> Op:
    """One token, keep of ten neurons."""
    size = {"f32": 4, "bf16": 2}[dtype]
    neurons = sum(i * 7 % 10 < keep for i in range(WIDE))
    weights = WIDE * (WIDE + 2 * neurons)
    return Op(
        f"sparse_mlp {dtype}, {100 - 10 * keep} % left out",
        f"sparse_mlp_{dtype}_neon",
        (WIDE, WIDE, keep, 10),
        "sum_tile|mlp",
        "fmla",
        weights / 4,
        "8 weights",
        3 * WIDE * WIDE / 8,
        f"loop {dtype}",
        weights * size,
        3 * WIDE * WIDE * size,
    )


def conv2d(weight: str, tenths: int) -> Op:
    """A 1x1 layer of which so many tenths are kept; the multiplications of its strips."""
    outputs, inputs = 256, 256
    keeps = sum((c * 7 + o // 4 * 5) % 10 < tenths for o in range(outputs) for c in range(inputs))
    positions = SIDE * SIDE
    return Op(
        f"conv2d {weight}, {100 - 10 * tenths} % zeros",
        f"conv2d_{weight}_f32_neon",
        (outputs, inputs, SIDE, tenths, 10),
        "Strip|conv2d_",
        "fmla",
        keeps * positions / 4,
        "output",
        outputs * positions,
        f"peak fmla {outputs * inputs * positions / 4}",
        0,
        0,
    )


VALUES = 2 * TOKENS * D
SEEN = sum((i // 64 + 1) * 64 for i in range(TOKENS))  # scores, by whole tiles of 64 tokens
OPS = (
    attention("f32", "neon"),
    attention("bf16", "neon"),
    attention("bf16", "neon_bf16"),
    *(attention("pages", level, bits) for level in ("neon", "neon_bf16") for bits in (2, 4, 8)),
    Op("prefill neon", "prefill_attention_neon", (TOKENS, D), "prefill", "fmla", SEEN * (2 * D + EXP) / 4,
       "query", TOKENS, f"peak fmla {SEEN * 2 * D / 4}", 0, 0),
    score("rows", "neon", D, "fmla", 4),
    score("rows", "neon_bf16", D, "bfdot", 8),
    score("labels", "neon", 32, "smull", 16),
    score("labels", "neon_dot", 32, "sdot", 16),
    Op("sum of exponentials neon", "kv_select_reduce_neon", (4096,), "stats", "frintn", 1024,
       "score", 4096, "copy", 4096 * 4, 4096 * 4),
    *(Op(f"quantize bf16 {bits} bits", "kv_quantize_bf16_neon", (TOKENS // 32, D, bits),
         "quantize|kv_", "fcvtzs", VALUES / 4, "value", VALUES, "copy", VALUES * (2 + bits / 8),
         VALUES * 4) for bits in (2, 4, 8)),
    groups("groups", "neon", 1),
    groups("groups", "neon", 4),
    groups("lanes", "neon_dot", 1),
    groups("lanes", "neon_dot", 4),
    groups("lanes", "neon_dot", 8),
    *(sparse_input(dtype, keep) for dtype in ("f32", "bf16") for keep in (10, 5, 1)),
    *(sparse_mlp(dtype, keep) for dtype in ("f32", "bf16") for keep in (10, 5, 1)),
    conv2d("csr", 1),
    conv2d("block", 1),
    conv2d("block", 7),
)  # fmt: skip
BY_NAME = {op.name: op for op in OPS}


@cache
def pieces(program: Path, op: Op) -> list[tuple[Block, float]]:
    """Pieces of a kernel's functions that run, and how often."""
    found = [
        block
        for name, blocks in functions(program).items()
        if re.search(op.symbol, name)
        for block in blocks
    ]
    runs = count_runs(program, found, [op.row, *map(str, op.numbers)])
    return [(block, n) for block, n in zip(found, runs, strict=True) if n > 0]


def marked(program: Path, op: Op) -> float:
    """Multiplications that ran."""
    return sum(
        n * sum(line.split()[0].startswith(op.mark) for line in block[2])
        for block, n in pieces(program, op)
    )


@cache
def of_op(program: Path, op: Op, core: str) -> Estimate:
    """Cycles of a call."""
    found = pieces(program, op)
    least = LEAST * sum(n * len(block[2]) for block, n in found)
    ports = simulated = 0.0
    for block, n in found:
        if n * len(block[2]) < least:
            continue
        lines = (re.sub(r"^(adrp? x\d+), .*", r"\1, table", line) for line in block[2])
        one = cycles("\n".join(lines), core)
        ports += n * one.ports
        simulated += n * one.simulated
    return Estimate(ports, simulated)


@cache
def peak(mark: str, core: str) -> float:
    """Multiplications that a core starts in a cycle."""
    last = "v31.s[0]" if mark == "fmla" else "v31.8h"
    sources = "v30.4s" if mark == "fmla" else "v30.8h"
    loop = "\n".join(f"{mark} v{i}.4s, {sources}, {last}" for i in range(24))
    return 24 / cycles(loop, core).ports


def dense_of(program: Path, op: Op, core: str) -> Estimate:
    """Cycles of what the op replaces."""
    kind, *rest = op.dense.split()
    if kind == "peak":
        took = float(rest[1]) / peak(rest[0], core) / DENSE_SHARE
        return Estimate(took, took)
    if kind == "loop":
        loop, weights = dense_loop(rest[0])
        return cycles(loop, core).per(weights / 8 / op.units)
    if kind == "copy":
        loop = "\n".join(["ldp q0, q1, [x1], #32", "stp q0, q1, [x2], #32"] * 4)
        return cycles(loop, core).per(128 / op.dense_moved * 2)
    return of_op(program, BY_NAME[op.dense], core)


def cores_of(op: Op) -> list[Core]:
    """Cores that have the op's instructions."""
    if "bf16" in op.row.rsplit("neon", 1)[-1]:
        return [core for core in CORES if core.name in MATRIX_CORES]
    return list(CORES)


def print_op(program: Path, op: Op) -> None:
    """One line per core."""
    for core in cores_of(op):
        ours, dense = of_op(program, op, core.name), dense_of(program, op, core.name)
        slow, fast = times(core, dense, op.dense_moved), times(core, ours, op.moved)
        each = ours.per(op.units)
        print(
            f"{op.name} | {core.name} | {span(each.ports, each.simulated)} a {op.unit} | "
            f"{span(dense.ports / ours.ports, dense.simulated / ours.simulated)} | "
            f"{span(slow[0] / fast[0], slow[1] / fast[1])}"
        )


def main() -> None:
    """Print estimates, or compare counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=Path("build-neon/bench/arm_count"))
    parser.add_argument("--counts", action="store_true", help="run under qemu and compare")
    parser.add_argument("--only", default="", help="part of a name")
    a = parser.parse_args()
    wanted = [op for op in OPS if a.only in op.name]
    if a.counts:
        good = True
        for op in wanted:
            ratio = marked(a.program, op) / op.multiplied
            good &= abs(ratio - 1) <= 0.05
            print(f"{op.name:36} {op.mark:6} {op.multiplied:9.0f}: {ratio:.3f}")
        sys.exit(not good)
    print("estimated; ranges: what ports allow to simulated")
    print("kernel | core | cycles | x dense from cache | x dense from memory")
    for op in wanted:
        print_op(a.program, op)


if __name__ == "__main__":
    main()

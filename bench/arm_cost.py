"""Estimates of NEON kernels without hardware: cycles of hot loops by llvm-mca, next to dense ones.

    make test-neon && python bench/arm_cost.py            # needs llvm-19
    python bench/arm_cost.py --counts                      # loop counts under qemu, no llvm

Takes the compiled hot block of each kernel, the straight piece with most of its characteristic
instruction, and asks llvm-mca how many cycles it takes on each core: "ports" is what the execution
ports allow, "simulated" what its scheduler reaches, in-order cores included. Dense kernels of the
same dtypes stand beside them: dot products written here, with as many rows and sums in flight; for
many tokens, f32 at 90 % of the FMA peak, and the matrix product without the expansion. Time is the
larger of cycles / frequency and bytes / bandwidth. Everything printed is an estimate; the models
err by 30 % and more, and caches are not in them. Frequency and bandwidth of a core are
assumptions, written in CORES. apple-m1 has the model of an older core.

--counts runs each kernel once under qemu with a plugin that counts the instructions of its hot
block, and fails if that is not within 5 % of what the estimates assume.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Block = tuple[int, int, tuple[str, ...]]  # first address, the one after the last, instructions


@dataclass(frozen=True)
class Core:
    """A core of llvm-mca, with what is assumed of it: GHz, and GB/s that one core reads."""

    name: str
    ghz: float
    bandwidth: float


@dataclass(frozen=True)
class Kernel:
    """A loop: of which row of kernels.def, in which function, known by which instruction.

    `weights`: of all columns, zeros counted, that one such instruction stands for (few tokens);
    `value_bytes` and `dense`: bytes of a stored value, and the loop of DENSE to compare with.
    """

    name: str
    row: str
    symbol: str
    mark: str
    weights: float
    value_bytes: int
    dense: str = ""


@dataclass(frozen=True)
class Estimate:
    """Cycles of something: as the ports allow, and simulated."""

    ports: float
    simulated: float

    def per(self, units: float) -> Estimate:
        """Cycles per unit."""
        return Estimate(self.ports / units, self.simulated / units)


CORES = (
    Core("cortex-a55", 1.8, 4.0),
    Core("neoverse-n1", 2.6, 12.0),
    Core("neoverse-v1", 2.6, 20.0),
    Core("neoverse-v2", 3.0, 25.0),
    Core("apple-m1", 3.2, 50.0),
)
MATRIX_CORES = ("neoverse-v1", "neoverse-v2")  # that have BF16 and I8MM
ONE = "pass<.*{}, 1>"
CODES = "codes_steps<.*{}.*, 1, 2>"
FEW = (
    Kernel("bitmap f32", "nm_f32_f32_neon", ONE.format("F32Columns<float>"), "tbl", 4, 4, "f32"),
    Kernel(
        "bitmap bf16",
        "nm_bf16_bf16_neon",
        ONE.format("HalfColumns<.*::BF16, .*::BF16>"),
        "tbl",
        4,
        2,
        "bf16",
    ),
    Kernel(
        "bitmap f16",
        "nm_f16_f16_neon",
        ONE.format("HalfColumns<.*::F16, .*::F16>"),
        "tbl",
        8,
        2,
        "f16",
    ),
    Kernel("bitmap i8", "nm_i8_f32_neon_codes", CODES.format("LongProducts"), "tbl", 8, 1, "i8"),
    Kernel(
        "i8, sdot", "nm_i8_f32_neon_dot_codes", CODES.format("DotProducts"), "tbl", 8, 1, "i8 dot"
    ),
    Kernel("f16, fmlal", "nm_f16_f16_neon_fhm", ONE.format("ExpandLong"), "tbl", 8, 2, "f16 long"),
    Kernel(
        "bf16, bfdot", "nm_bf16_bf16_neon_bf16", ONE.format("ExpandDot"), "tbl", 8, 2, "bf16 dot"
    ),
)
# Rows that share an entry, with the tokens that an entry meets.
ENTRIES = "multiply_entries<{}>"
WIDE = (
    (Kernel("skip, 1 row", "nm_f32_f32_neon_skip", ENTRIES.format("1, 8"), "fmla", 0, 4), 1, 32),
    (
        Kernel("skip, 4 rows", "block_f32_f32_neon_skip", ENTRIES.format("4, 4"), "fmla", 0, 4),
        4,
        16,
    ),
)
LIST = Kernel("list", "nm_f32_f32_neon_skip", "skip_rows<float, float>", "ushll", 0, 4)
PAIRS = "multiply_pairs<.*{}, 4>"
EXPAND = "pair_block<.*{}"
MATRIX = (
    (
        Kernel(
            "bf16, bfmmla",
            "nm_bf16_bf16_neon_bf16_pairs",
            PAIRS.format("Bf16Matrix"),
            "bfmmla",
            0,
            2,
        ),
        Kernel("", "", EXPAND.format("Bf16Matrix"), "tbl", 8, 2),
        4,
    ),
    (
        Kernel(
            "i8, smmla", "nm_i8_f32_neon_bf16_codepairs", PAIRS.format("I8Matrix"), "smmla", 0, 1
        ),
        Kernel("", "", EXPAND.format("I8Matrix, float"), "tbl", 8, 1),
        8,
    ),
)

# Four rows of weights times one x: one load of x serves four of weights, four sums in flight, loads
# first, as in-order cores want it. Bytes of a weight, what widens x and each row, what multiplies.
WIDEN_BF16 = "shll2 v{high}.4s, v{low}.8h, #16\nshll v{low}.4s, v{low}.4h, #16"
WIDEN_F16 = "fcvtl2 v{high}.4s, v{low}.8h\nfcvtl v{low}.4s, v{low}.4h"
TWO_FMAS = "fmla v{sum}.4s, v{low}.4s, v24.4s\nfmla v{sum}.4s, v{high}.4s, v25.4s"
I8_PAIRS = "smull v{high}.8h, v{low}.8b, v24.8b\nsmlal2 v{high}.8h, v{low}.16b, v24.16b"
DENSE = {
    "f32": (4, "", "fmla v{sum}.4s, v{low}.4s, v24.4s"),
    "bf16": (2, WIDEN_BF16, TWO_FMAS),
    "f16": (2, WIDEN_F16, TWO_FMAS),
    "i8": (1, "", I8_PAIRS + "\nsadalp v{sum}.4s, v{high}.8h"),
    "i8 dot": (1, "", "sdot v{sum}.4s, v{low}.16b, v24.16b"),
    "f16 long": (2, "", "fmlal v{sum}.4s, v{low}.4h, v24.4h\nfmlal2 v{sum}.4s, v{low}.4h, v24.4h"),
    "bf16 dot": (2, "", "bfdot v{sum}.4s, v{low}.8h, v24.8h"),
}


def dense_loop(dtype: str) -> tuple[str, int]:
    """A dense dot product loop, and the weights of a turn."""
    size, widen, multiply = DENSE[dtype]
    rows = [{"low": 8 + r, "high": 12 + r, "sum": 16 + r} for r in range(4)]
    turn = [f"ldr q{r['low']}, [x{2 + i}], #16" for i, r in enumerate(rows)]
    turn += ["ldr q24, [x1], #16", widen.format(low=24, high=25)]
    for work in (widen, *multiply.splitlines()):
        turn += [work.format(**r) for r in rows]
    lines = [line for line in turn if line] * 2
    return "\n".join([*lines, "subs x0, x0, #1"]), 2 * 4 * 16 // size


@cache
def functions(program: Path) -> dict[str, list[Block]]:
    """Straight pieces of code of every function of tamis in a program, by its name."""
    command = ["aarch64-linux-gnu-objdump", "-d", "-C", "--no-show-raw-insn", str(program)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    jump = r"(?:b|b\.\w+|cbn?z|tbn?z)"
    targets = {int(t, 16) for t in re.findall(rf"\s{jump}\s.*?([0-9a-f]+) <", text)}
    found: dict[str, list[Block]] = {}
    for part in re.split(r"\n(?=[0-9a-f]+ <)", text):
        head = re.match(r"[0-9a-f]+ <(.*)>:\n", part)
        if head is None or "tamis::" not in head[1]:
            continue
        pieces: list[Block] = []
        begin, lines = 0, list[str]()
        for line in [*part.splitlines()[1:], "  0:\tret"]:
            instruction = re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*([^<]*)", line)
            if instruction is None:
                continue
            address, name, operands = instruction.groups()
            ends = re.fullmatch(jump + r"|ret|bl|blr", name) is not None
            if ends or int(address, 16) in targets:
                if lines:
                    pieces.append((begin, begin + 4 * len(lines), tuple(lines)))
                lines = []
            if not ends:
                begin = begin if lines else int(address, 16)
                lines.append(f"{name} {operands.split('//')[0].strip()}")
        found.setdefault(head[1], []).extend(pieces)
    return found


def marks(block: Block, mark: str) -> int:
    """How many instructions of a block are called `mark`."""
    return sum(line.split()[0] == mark for line in block[2])


def hot_blocks(program: Path, kernel: Kernel) -> list[Block]:
    """Blocks of a kernel with most of its instruction: copies of one loop."""
    blocks = [
        block
        for name, pieces in functions(program).items()
        if re.search(kernel.symbol, name)
        for block in pieces
    ]
    most = max((marks(block, kernel.mark) for block in blocks), default=0)
    if most == 0:
        raise SystemExit(
            f"arm_cost: {program}: no {kernel.mark} in {kernel.symbol}; build with make test-neon"
        )
    return [block for block in blocks if marks(block, kernel.mark) == most]


@cache
def cycles(assembly: str, core: str) -> Estimate:
    """Cycles of one turn of a loop."""
    turns = 200
    command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={turns}"]
    command.append("-mattr=+dotprod,+fullfp16,+fp16fml,+bf16,+i8mm")
    done = subprocess.run(command, input=assembly, capture_output=True, text=True, check=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    bound = re.search(r"Block RThroughput:\s+([\d.]+)", done.stdout)
    if total is None or bound is None:
        raise SystemExit(f"arm_cost: llvm-mca-19 gave no cycles for {core}")
    return Estimate(float(bound[1]), int(total[1]) / turns)


def of_block(program: Path, kernel: Kernel, core: str) -> tuple[Estimate, int]:
    """Cycles of a kernel's hot block, the copy with fewest, and its marks."""
    blocks = hot_blocks(program, kernel)
    best = min((cycles("\n".join(b[2]), core) for b in blocks), key=lambda e: e.simulated)
    return best, marks(blocks[0], kernel.mark)


def span(low: float, high: float) -> str:
    """A range."""
    low, high = sorted((low, high))
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def times(core: Core, cost: Estimate, moved: float) -> tuple[float, float]:
    """ns of what takes such cycles and moves such bytes from memory."""
    memory = moved / core.bandwidth
    return max(cost.ports / core.ghz, memory), max(cost.simulated / core.ghz, memory)


def print_few(program: Path, kept: float) -> None:
    """One line per kernel and core, for one token."""
    print(f"\none token, {1 - kept:.0%} zeros, cycles per 8 weights with zeros counted")
    print("kernel | core | sparse | dense of that dtype | x from cache | x from memory")
    for kernel in FEW:
        for core in CORES:
            ours, count = of_block(program, kernel, core.name)
            ours = ours.per(count * kernel.weights / 8)
            loop, weights = dense_loop(kernel.dense)
            dense = cycles(loop, core.name).per(weights / 8)
            bytes_dense = 8 * DENSE[kernel.dense][0]
            slow, fast = (
                times(core, dense, bytes_dense),
                times(core, ours, 8 * kept * kernel.value_bytes + 1),
            )
            print(
                f"{kernel.name} | {core.name} | {span(ours.ports, ours.simulated)} | "
                f"{span(dense.ports, dense.simulated)} | "
                f"{span(dense.ports / ours.ports, dense.simulated / ours.simulated)} | "
                f"{span(slow[0] / fast[0], slow[1] / fast[1])}"
            )


def fma_peak(core: str) -> float:
    """f32 FMAs of 4 lanes that a core starts in a cycle."""
    loop = "\n".join(f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(24))
    return 24 / cycles(loop, core).ports


def print_wide(program: Path, kept: float, tokens: int) -> None:
    """One line per kernel and core, for many tokens, f32."""
    print(
        f"\n{tokens} tokens, {1 - kept:.0%} zeros, f32, against dense f32 at 90 % of the FMA peak"
    )
    print("kernel | core | share of the FMA peak | x dense, loop alone | with listing entries")
    for kernel, rows, strip in WIDE:
        for core in CORES:
            loop, fmas = of_block(program, kernel, core.name)
            peak = fma_peak(core.name)
            entries = fmas / (rows * strip / 4)
            dense = rows / kept * strip / 4 / peak / 0.9  # of what an entry stands for
            ours = loop.per(entries)
            # Listing: a word of a row for all strips; blocks list once for four rows and more.
            listing, _ = of_block(program, LIST, core.name)
            each = listing.per(64 * kept * tokens / strip) if rows == 1 else Estimate(0, 0)
            print(
                f"{kernel.name} | {core.name} | "
                f"{span(fmas / peak / loop.ports, fmas / peak / loop.simulated)} | "
                f"{span(dense / ours.ports, dense / ours.simulated)} | "
                f"{span(dense / (ours.ports + each.ports), dense / (ours.simulated + each.simulated))}"
            )


def print_matrix(program: Path, kept: float, tokens: int) -> None:
    """One line per kernel and core that has matrix products."""
    print(f"\n{tokens} tokens, {1 - kept:.0%} zeros, cycles per 8 weights and 8 tokens")
    print("kernel | core | product | expansion | x dense from cache | x dense from memory")
    for kernel, expansion, columns in MATRIX:
        for core in (c for c in CORES if c.name in MATRIX_CORES):
            loop, _ = of_block(program, kernel, core.name)
            product = loop.per(columns)  # 8 rows times `columns` columns are as many eights
            expand, count = of_block(program, expansion, core.name)
            expand = expand.per(count)
            eights = tokens / 8
            dense = Estimate(product.ports * eights, product.simulated * eights)
            ours = Estimate(dense.ports + expand.ports, dense.simulated + expand.simulated)
            slow = times(core, dense, 8 * kernel.value_bytes)
            fast = times(core, ours, 8 * kept * kernel.value_bytes + 1)
            print(
                f"{kernel.name} | {core.name} | {span(product.ports, product.simulated)} | "
                f"{span(expand.ports, expand.simulated)} | "
                f"{span(dense.ports / ours.ports, dense.simulated / ours.simulated)} | "
                f"{span(slow[0] / fast[0], slow[1] / fast[1])}"
            )


def count_runs(program: Path, blocks: list[Block], arguments: list[str]) -> list[float]:
    """How often each straight piece runs in one call of arm_count under qemu."""
    ranges = ":".join(f"{begin:#x}-{end:#x}" for begin, end, _ in blocks)
    plugin = program.parent / "libcount_plugin.so"
    command = ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", "-d", "plugin"]
    command += ["-plugin", f"{plugin},ranges={ranges}", str(program), *arguments]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads would race for the plugin's counters
    done = subprocess.run(command, capture_output=True, text=True, env=one)
    if done.returncode:
        raise SystemExit(f"arm_cost: {' '.join(arguments)}: {done.stderr.strip()[:200]}")
    counts = [int(n) for n in done.stderr.split()]
    return [n / len(block[2]) for n, block in zip(counts, blocks, strict=True)]


def counted(program: Path, kernel: Kernel, arguments: list[int]) -> tuple[float, int]:
    """How often qemu runs a kernel's hot block in one call, and marks of the block."""
    blocks = hot_blocks(program, kernel)
    runs = count_runs(program, blocks, [f"spmm_{kernel.row}", *map(str, arguments)])
    return sum(runs), marks(blocks[0], kernel.mark)


def check_counts(program: Path) -> bool:
    """Compare how often hot blocks run with what the estimates assume."""
    n, k, wanted = 256, 1024, list[tuple[Kernel, list[int], float]]()
    for kernel in FEW:
        wanted.append((kernel, [1, n, k, 16, 32], n * k / kernel.weights))  # marks in all
    for kernel, rows, _ in WIDE:
        # 96 of 1024 weights are kept; each meets 32 tokens, 8 vectors. Blocks: 4 of 32 columns.
        of, keep = 32, 3 if rows == 1 else 4
        wanted.append((kernel, [32, n, k, keep, of], n * k * keep / of * 8))
    for kernel, _, columns in MATRIX:
        wanted.append((kernel, [16, n, k, 16, 32], n / 8 * k / columns * 2 * 16))
    good = True
    for kernel, arguments, expected in wanted:
        turns, count = counted(program, kernel, arguments)
        ratio = turns * count / expected
        good &= abs(ratio - 1) <= 0.05
        print(
            f"{kernel.name:14} {kernel.mark:7} {turns * count:9.0f} of {expected:9.0f}: {ratio:.3f}"
        )
    return good


def main() -> None:
    """Print estimates, or compare counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=Path("build-neon/bench/arm_count"))
    parser.add_argument("--counts", action="store_true", help="run under qemu and compare")
    arguments = parser.parse_args()
    if arguments.counts:
        sys.exit(not check_counts(arguments.program))
    print("estimated; ranges: what ports allow to simulated")
    print_few(arguments.program, 0.5)
    print_wide(arguments.program, 0.1, 256)
    print_wide(arguments.program, 0.7, 256)
    print_matrix(arguments.program, 0.5, 16)
    print_matrix(arguments.program, 0.5, 128)


if __name__ == "__main__":
    main()

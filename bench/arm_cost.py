"""Estimates of NEON kernels without hardware: cycles of hot loops by llvm-mca, next to dense ones.

    make test-neon && python bench/arm_cost.py [--build build-neon] [--sparsity 0.5]

Takes the compiled hot block of each kernel for one token, the one with most tbl, and asks llvm-mca
how many cycles it takes on each core: "bound" is what the execution ports allow, "simulated" what
its scheduler reaches, in-order cores included. The dense kernel is a plain f32 dot product, written
here. Time of a weight is the larger of cycles / frequency and bytes / bandwidth. Everything printed
is an estimate; the models err by 30 % and more, and caches are not in them. Frequency and
bandwidth of a core are assumptions, written in CORES. apple-m1 has the model of an older core.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Core:
    """A core of llvm-mca, with what is assumed of it: GHz, and GB/s that one core reads."""

    name: str
    ghz: float
    bandwidth: float


@dataclass(frozen=True)
class Kernel:
    """Where a loop is, the weights that one tbl of it expands, and the bytes of a value."""

    name: str
    source: str
    symbol: str
    weights_of_tbl: int
    value_bytes: int


CORES = (
    Core("cortex-a55", 1.8, 4.0),
    Core("neoverse-n1", 2.6, 12.0),
    Core("neoverse-v2", 3.0, 25.0),
    Core("apple-m1", 3.2, 50.0),
)
SPMM = "tamis_spmm_{level}.dir/csrc/ops/spmm/{file}.cc.o"
MASKED = SPMM.format(level="neon", file="bitmap_neon")
LONG = SPMM.format(level="neon", file="int8_neon")
DOT = SPMM.format(level="neon_dot", file="int8_neon_dot")
KERNELS = (
    Kernel("bitmap f32", MASKED, r"pass<.*ExpandF32<float, float>, 1>", 4, 4),
    Kernel("bitmap bf16", MASKED, r"pass<.*ExpandF32<tamis::BF16, tamis::BF16>, 1>", 4, 2),
    Kernel("bitmap f16", MASKED, r"pass<.*ExpandF32<tamis::F16, tamis::F16>, 1>", 8, 2),
    Kernel("bitmap i8", LONG, r"codes_steps<.*ExpandBytes<.*>, 1, 2>", 8, 1),
    Kernel("bitmap i8 dot", DOT, r"codes_steps<.*ExpandBytes<.*>, 1, 2>", 8, 1),
)
# 32 weights against x, four sums in flight.
DENSE = "\n".join(
    f"ldp q{8 * i}, q{8 * i + 1}, [x0, #{32 * i}]\nldp q{8 * i + 2}, q{8 * i + 3}, [x1, #{32 * i}]\n"
    f"fmla v{8 * i + 4}.4s, v{8 * i}.4s, v{8 * i + 2}.4s\n"
    f"fmla v{8 * i + 5}.4s, v{8 * i + 1}.4s, v{8 * i + 3}.4s"
    for i in range(4)
)
DENSE += "\nadd x0, x0, #128\nadd x1, x1, #128\nsubs x2, x2, #1"


def hot_block(path: Path, symbol: str) -> list[str]:
    """Instructions of the straight piece of `symbol` that has most tbl."""
    command = ["aarch64-linux-gnu-objdump", "-d", "-C", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    best: list[str] = []
    block: list[str] = []
    inside = False
    targets = set(re.findall(r"\s(?:b|b\.\w+|cbn?z|tbn?z)\s.*?([0-9a-f]+) <", text))
    for line in text.splitlines():
        head = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if head:
            inside = re.search(symbol, head[1]) is not None
            block = []
        found = re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*([^<]*)", line)
        if not (inside and found):
            continue
        address, name, operands = found.groups()
        if address in targets:
            block = []
        if re.match(r"(b|b\.\w+|cbn?z|tbn?z|ret|bl)$", name):
            block = []
            continue
        block.append(f"{name} {operands.split('//')[0].strip()}")
        if tbls(block) > tbls(best):
            best = block  # the list that goes on growing
    if not best:
        raise SystemExit(
            f"arm_cost: {path}: no loop with tbl in {symbol}; build with make test-neon"
        )
    return best


def tbls(block: list[str]) -> int:
    """How many tbl there are."""
    return sum(line.startswith("tbl ") for line in block)


def cycles(assembly: str, core: str) -> tuple[float, float]:
    """Cycles of one turn of a loop: what ports allow, and what is simulated."""
    command = [
        "llvm-mca-19",
        "-mtriple=aarch64",
        f"-mcpu={core}",
        "-mattr=+dotprod,+fullfp16,+bf16",
    ]
    turns = 200
    text = subprocess.run(
        [*command, f"-iterations={turns}"],
        input=assembly,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    total = re.search(r"Total Cycles:\s+(\d+)", text)
    bound = re.search(r"Block RThroughput:\s+([\d.]+)", text)
    if total is None or bound is None:
        raise SystemExit(f"arm_cost: llvm-mca-19 gave no cycles for {core}")
    return float(bound[1]), int(total[1]) / turns


def main() -> None:
    """Print one line per kernel and core."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build-neon"))
    parser.add_argument("--sparsity", type=float, default=0.5)
    arguments = parser.parse_args()
    kept = 1 - arguments.sparsity
    print(
        f"estimated, one token, {arguments.sparsity:.0%} zeros; cycles per 8 weights, zeros counted"
    )
    print(
        f"{'kernel':14} {'core':12} {'bound':>6} {'simulated':>9}  in cache  from memory (x dense f32)"
    )
    for core in CORES:
        dense = tuple(c / 4 for c in cycles(DENSE, core.name))
        print(f"{'dense f32':14} {core.name:12} {dense[0]:6.2f} {dense[1]:9.2f}")
        for kernel in KERNELS:
            block = hot_block(arguments.build / "CMakeFiles" / kernel.source, kernel.symbol)
            groups = tbls(block) * kernel.weights_of_tbl / 8
            ours = tuple(c / groups for c in cycles("\n".join(block), core.name))
            cached = sorted((dense[0] / ours[0], dense[1] / ours[1]))
            memory = sorted(
                max(d / core.ghz, 32 / core.bandwidth)
                / max(o / core.ghz, (8 * kept * kernel.value_bytes + 1) / core.bandwidth)
                for d, o in zip(dense, ours, strict=True)
            )
            print(
                f"{kernel.name:14} {core.name:12} {ours[0]:6.2f} {ours[1]:9.2f}  "
                f"{cached[0]:.2f}-{cached[1]:.2f}  {memory[0]:.2f}-{memory[1]:.2f}"
            )


if __name__ == "__main__":
    main()

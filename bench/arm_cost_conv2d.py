"""Estimates of the NEON convolution without hardware: cycles of its loops by llvm-mca.

    make test-neon && python bench/arm_cost_conv2d.py [--build build-neon] [--sparsity 0.9]

Finds the compiled loops over entries of a 1x1 layer by their number of fmla, asks llvm-mca for
their cycles, and compares them with what the same fmla would take alone, the peak of a core. A
dense kernel is taken to reach 90 % of that peak on all weights, whatever its blocks. "layer" adds
what a row of 256 inputs pays besides its entries: a mispredicted end of the loop, and its bias,
clamp and stores. Everything printed is an estimate; caches are not in it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

from arm_cost import CORES

OBJECT = "tamis_conv2d_neon.dir/csrc/ops/conv2d/conv2d_neon.cc.o"
# Outputs that share their inputs: positions of a strip, and entries that a turn of the loop takes.
STRIPS = {1: (40, 4), 2: (32, 1), 4: (16, 1)}
DENSE_SHARE = 0.9  # of the peak
INPUTS = 256
MISPREDICT = 14  # cycles, about what each of these cores takes


def loops(path: Path) -> list[list[str]]:
    """Bodies of all loops that have no loop inside, branch included."""
    command = ["aarch64-linux-gnu-objdump", "-d", "-C", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [
        (int(found[1], 16), found[2].split("//")[0].split("<")[0].strip())
        for found in re.finditer(r"^\s+([0-9a-f]+):\s+(.*)$", text, re.MULTILINE)
    ]
    at = {address: i for i, (address, _) in enumerate(lines)}
    found = []
    for i, (address, line) in enumerate(lines):
        branch = re.match(r"b\.\w+\s+([0-9a-f]+)$", line)
        begin = at.get(int(branch[1], 16), i) if branch and int(branch[1], 16) < address else i
        body = [text for _, text in lines[begin:i]]
        if body and not any(re.match(r"(b|b\.\w+|cbn?z|tbn?z|ret|bl)\b", text) for text in body):
            found.append(body)
    return found


def entry_loop(all_loops: list[list[str]], height: int, entries: int, fmla: int) -> list[str]:
    """The shortest loop of a block height and no table of offsets: a 1x1 layer's, whole strips."""
    lanes = {f"s[{i}]" for i in range(height * entries)}
    with_ids = [
        body
        for body in all_loops
        if sum(line.startswith("fmla") for line in body) == fmla
        and {line.split(".")[-1].strip() for line in body if line.startswith("fmla")} == lanes
        and any(line.startswith("ldrsw") or line.startswith("ldpsw") for line in body)
        and not any(re.match(r"ldr\s+x\d+, .*lsl #3", line) for line in body)
    ]
    if not with_ids:
        raise SystemExit(f"arm_cost_conv2d: no loop with {fmla} fmla; build with make test-neon")
    return min(with_ids, key=len)


def cycles(assembly: str, core: str) -> tuple[float, float]:
    """Cycles of one turn of a loop: what ports allow, and what is simulated."""
    turns = 200
    command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={turns}"]
    done = subprocess.run(command, input=assembly, capture_output=True, text=True, check=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    bound = re.search(r"Block RThroughput:\s+([\d.]+)", done.stdout)
    if total is None or bound is None:
        raise SystemExit(f"arm_cost_conv2d: llvm-mca-19 gave no cycles for {core}")
    return float(bound[1]), int(total[1]) / turns


def main() -> None:
    """Print one line per block height and core."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build-neon"))
    parser.add_argument("--sparsity", type=float, default=0.9)
    arguments = parser.parse_args()
    density = 1 - arguments.sparsity
    found = loops(arguments.build / "CMakeFiles" / OBJECT)
    print(f"estimated; {arguments.sparsity:.0%} zeros, in blocks of g x 1; dense at 90 % of peak")
    print("strip   core          cycles of an entry  share of peak      x dense, loop      layer")
    for core in CORES:
        for height, (positions, entries) in STRIPS.items():
            fmla = height * positions // 4
            peak = cycles(
                "\n".join(f"fmla v{i}.4s, v28.4s, v29.s[0]" for i in range(16)), core.name
            )
            least = max(peak) / 16 * fmla
            loop = "\n".join(entry_loop(found, height, entries, fmla * entries))
            took = [turn / entries for turn in cycles(loop, core.name)]
            dense = least / DENSE_SHARE
            kept = INPUTS * density
            # bias, clamp with a comparison and a selection for each bound, store
            end = MISPREDICT + least / fmla * 6 * fmla
            gain = [dense / (density * c) for c in took]
            layer = [INPUTS * dense / (kept * c + end) for c in took]
            print(
                f"{positions}x{height:<4} {core.name:12} {min(took):8.1f} to {max(took):<8.1f} "
                f"{least / max(took):6.0%} to {least / min(took):<6.0%} "
                f"{min(gain):8.2f} to {max(gain):<6.2f} {min(layer):6.2f} to {max(layer):.2f}"
            )


if __name__ == "__main__":
    main()

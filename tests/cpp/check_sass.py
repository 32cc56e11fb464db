"""Reads the machine code of the CUDA library: what a GPU would show, as far as counts can tell.

    python check_sass.py libtamis_cuda.so

Every kernel: no loads or stores to local memory, at most 128 registers. Every product: tensor cores
in its loop. The loop of sm_90 for up to 8 tokens: its budget per 16 x 64 tile. Prints the counts.
Exit code 77 (skipped) where cuobjdump is missing; the wheel nvidia-cuda-cuobjdump has it, with
nvidia-cuda-nvdisasm beside it.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

SKIPPED = 77
MAX_REGISTERS = 128  # two blocks of 256 threads on an SM
MAX_INSTRUCTIONS, MAX_POPC = 240, 0  # sm_90a, one tile of 8 tokens


def find_cuobjdump() -> str | None:
    """cuobjdump on PATH, of the CUDA toolkit, or of NVIDIA's wheels."""
    roots = [Path("/usr/local/cuda/bin")]
    spec = importlib.util.find_spec("nvidia")
    roots += [
        tool.parent
        for place in (spec.submodule_search_locations if spec else None) or []
        for tool in Path(place).glob("*/bin/cuobjdump")
    ]
    for root in roots:
        if (root / "cuobjdump").exists():
            os.environ["PATH"] = f"{root}{os.pathsep}{os.environ['PATH']}"  # nvdisasm too
    return shutil.which("cuobjdump")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def functions(sass: str) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """Instructions (address, text) of each (architecture, mangled name)."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    arch, code = "", []
    for line in sass.splitlines():
        if match := re.match(r"arch = (\S+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            code = found.setdefault((arch, match[1]), [])
        elif match := re.match(r"\s+/\*([0-9a-f]+)\*/\s+(.*?);", line):
            code.append((int(match[1], 16), match[2]))
    return found


def opcode(text: str) -> str:
    return re.sub(r"^@!?U?P\w+ +", "", text).split()[0].split(".")[0]


def main_loop(code: list[tuple[int, str]]) -> Counter[str]:
    """Opcodes of the shortest backward jump's body that has tensor core instructions."""
    best: list[str] = []
    for address, text in code:
        match = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if match and int(match[1], 16) < address:
            body = [opcode(t) for a, t in code if int(match[1], 16) <= a <= address]
            if "HMMA" in body and (not best or len(body) < len(best)):
                best = body
    return Counter(best)


def registers(usage: str) -> dict[tuple[str, str], int]:
    found, arch, name = {}, "", ""
    for line in usage.splitlines():
        if match := re.match(r"arch = (\S+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\S+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+)", line):
            found[arch, name] = int(match[1])
    return found


def label(arch: str, name: str) -> str:
    if match := re.search(r"spmm_t16.*DTypeE(\d)ELi(\d)", name):
        return f"spmm_t16 {'f16' if match[1] == '1' else 'bf16'} {8 * int(match[2])} tokens {arch}"
    return f"{'expand_t16' if 'expand_t16' in name else name} {arch}"


def problems(arch: str, name: str, code: list[tuple[int, str]], used: int) -> list[str]:
    everything = Counter(opcode(text) for _, text in code)
    loop = main_loop(code)
    size = sum(loop.values())
    wrong = []
    if everything["LDL"] or everything["STL"]:
        wrong.append(f"local memory: {everything['LDL']} loads, {everything['STL']} stores")
    if used > MAX_REGISTERS:
        wrong.append(f"{used} registers, wanted at most {MAX_REGISTERS}")
    if "spmm_t16" in name:
        if not loop["HMMA"]:
            wrong.append("no tensor core instruction in a loop")
        one_tile = re.search(r"ELi1E", name) is not None
        if arch == "sm_90a" and one_tile and (size > MAX_INSTRUCTIONS or loop["POPC"] > MAX_POPC):
            wrong.append(f"{size} instructions and {loop['POPC']} POPC in the loop")
    counts = ", ".join(f"{loop[op]} {op}" for op in ("LDS", "SHFL", "POPC", "HMMA", "LDGSTS"))
    sys.stdout.write(
        f"{label(arch, name):40} {used:4} registers  loop {size:4}: {counts}\n"
        if loop
        else f"{label(arch, name):40} {used:4} registers\n"
    )
    return [f"{label(arch, name)}: {what}" for what in wrong]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    library = parser.parse_args().library
    tool = find_cuobjdump()
    if tool is None:
        sys.stdout.write("SKIP check_sass: no cuobjdump on PATH, in the toolkit or as a wheel\n")
        return SKIPPED
    used = registers(run(tool, "--dump-resource-usage", library))
    found = functions(run(tool, "--dump-sass", library))
    # Three architectures: four token tiles in two dtypes each, and the expansion on two of them.
    wrong = [] if len(found) == 26 else [f"got {len(found)} kernels, wanted 26"]
    for (arch, name), code in sorted(found.items()):
        wrong += problems(arch, name, code, used[arch, name])
    sys.stdout.write("".join(f"FAILED {line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Reads the machine code of the CUDA library: what a GPU would show, as far as counts can tell.

    python check_sass.py libtamis_cuda.so

Every kernel: no loads or stores to local memory, at most 128 registers (168 where three blocks of
128 threads share an SM). Every product and every attention: tensor cores in its loop. Loops on sm_90:
their budgets per tile of weights, page of 32 tokens or 16 tokens. Prints the counts.
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
MAX_ALONE_REGISTERS = 176  # one
MAX_PAGE_REGISTERS = 192  # of 4 bits, one, beside which nothing begins
# Words that the warps which load for three warpgroups, with 32 registers, keep behind tiles on their way.
MAX_PREFILL_SPILLED = 46
# Loads and stores of what chooses by eight rows, outside loops; attends too, d = 128, 16-bit scores.
MAX_EIGHT_SPILLED, MAX_EIGHT_HALVES_SPILLED = 6, 35
# Instructions for a record of the product at 8 tokens, where the loop takes several on average, and the
# level that they are pinned on.
MAX_RECORD = {
    "t16": ("sm_90a", 240),
    "m24": ("sm_90a", 30),
    "g4": ("sm_90a", 170),
    "m24i8": ("sm_90", 28),
    "t16i8": ("sm_90", 142),
    "m24i4": ("sm_90", 34),
}
MAX_GROUPED = {"m24i8": 38, "t16i8": 155, "m24i4": 46}  # with scales for groups of columns
FORMATS = ("t16", "m24", "g4", "gap", "p24", "r24", "sell4", "m24i8", "t16i8", "m24i4")
PREFILL_GROUPS = ("PrefillGroupConfig", "PrefillShortConfig")
ANY_DTYPE = ("any", "f16", "bf16")  # of kernels that also take others than 16 bits
MAX_POPC = 0
MAX_SELL4 = {1: 47, 2: 62, 4: 92, 8: 152}  # sm_90, one step of sell4 (32 groups), by tokens
MAX_GAP = {1: 60, 2: 80, 4: 112}  # sm_90, one step of gap (256 entries), by tokens
# sm_90, a record of p24 by products of 8 tokens: of two of four columns (1024 weights), of one of
# three (1536).
MAX_P24 = {
    False: {1: 28, 2: 32, 3: 36, 4: 41, 5: 47, 6: 55, 8: 69},
    True: {1: 60, 2: 66, 3: 78, 4: 90, 5: 104, 6: 118, 8: 156},
}
MAX_F32 = {1: 245, 2: 295, 4: 390, 8: 660, 16: 980}  # sm_90, 1024 weights in 32 bits, by tokens
MAX_R24 = 80  # sm_90a, a stage of r24 as warpgroups multiply it, records that others expand
# The same of 16 x 64 of a bitmap, with all that is rarely taken; registers of its blocks alone on an SM.
MAX_GROUP, MAX_GROUP_REGISTERS = 600, 255
MAX_GROUP24 = 150  # sm_90a, a record of m24 by warpgroups with any tokens, copying its part of x
# The same where another warp copies for them, and registers at launch, which warpgroups trade.
MAX_MANY24, MAX_MANY_REGISTERS = 56, 168
MAX_DOTS, MAX_ROW_SUMS = 102, 200  # sm_90, 1024 weights of sparse_mlp's rows, of listed rows
# Prompts: registers of two blocks of 128 threads on an SM, and instructions of a tile on sm_90 with all
# its rarely taken branches (softcap, masks, lists), for one and two row tiles a warp.
MAX_PREFILL_REGISTERS, MAX_PREFILL = 255, {1: 2150, 2: 3600}
# The same by warpgroups on sm_90a, 64 queries and 128 tokens of each, without softcap.
MAX_PREFILL_GROUP = 1400
MAX_PREFILL_SHORT = 560  # of 64 tokens, of short prompts
# kv_mass on sm_90, 16 channels of 64 streamed rows, for one and two row tiles a warp: the pass over
# rows of q and the one over tokens.
MAX_MASS_ROWS, MAX_MASS_COLUMNS = {1: 30, 2: 42}, {1: 50, 2: 64}
MAX_MERGE = 30  # the same of kv_merge, sm_90
MAX_REBUILD = 320  # sm_90, 64 columns of the rank of 16 tokens a warp: 64 products at d = 128
# Attention on sm_90: registers, and instructions of a page or tile with all its rarely taken branches
# (softcap, masks, a new largest score: some 300). DRAM of an H100 leaves 4 * 353 issue slots a page
# of 4 bits at d = 128, 4 * 212 at 2 bits, 4 * 565 for 16 tokens of bf16.
MAX_ATTENTION_REGISTERS, MAX_PAGE, MAX_ROWS = 168, 1000, 700


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
    whole = re.sub(r"^@!?U?P\w+ +", "", text).split()[0]
    return "HGMMA.SP" if whole.startswith("HGMMA.SP") else whole.split(".")[0]


def main_loop(code: list[tuple[int, str]], product: str = "HMMA") -> Counter[str]:
    """Opcodes of the shortest backward jump's body that has such instructions: tensor cores'."""
    least = 30 if product == "HFMA2" else 1  # others are constants
    best: list[str] = []
    for address, text in code:
        match = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if match and int(match[1], 16) < address:
            body = [opcode(t) for a, t in code if int(match[1], 16) <= a <= address]
            if (body.count(product) >= least or "IMMA" in body) and (
                not best or len(body) < len(best)
            ):
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


def gap_tokens(name: str) -> int:
    """Tokens of a gap kernel; 0 of others."""
    match = re.search(r"spmm_gap.*DTypeE\dELi(\d)E", name)
    return int(match[1]) if match else 0


def p24_kind(name: str) -> tuple[int, bool] | None:
    """Products of 8 tokens of a p24 kernel, and whether groups are of three; None of others."""
    match = re.search(r"P24ConfigI\w*DTypeE\dELi(\d)ELb(\d)E", name)
    return (int(match[1]), match[2] == "1") if match else None


def sell4_tokens(name: str) -> int:
    """Tokens of a sell4 kernel; 0 of others."""
    match = re.search(r"spmm_sell4.*DTypeE\dELi(\d)E", name)
    return int(match[1]) if match else 0


def f32_tokens(name: str) -> int:
    """Tokens of a product of 32-bit weights; 0 of other kernels."""
    match = re.search(r"BitmapF32ConfigILi(\d+)E", name)
    return int(match[1]) if match else 0


def product_of(name: str) -> str:
    """What a kernel's main loop multiplies with."""
    if "M24GroupConfig" in name or "M24ManyConfig" in name:
        return "HGMMA.SP"
    if any(config in name for config in (*PREFILL_GROUPS, "BitmapGroupConfig", "R24Config")):
        return "HGMMA"
    if f32_tokens(name):
        return "FFMA"
    return "IDP" if gap_tokens(name) else "HFMA2" if sell4_tokens(name) else "HMMA"


def product_label(name: str) -> str:
    """What a product's kernel is; empty for other kernels."""
    dtype = "f16" if "DTypeE1" in name else "bf16"
    if match := re.search(r"spmm_(?:t16|i8).*PackedFormatE(\d)E.*DTypeE\dELi(\d)", name):
        form = FORMATS[int(match[1])] + (" groups" if grouped(name) else "")
        return f"spmm_{form} {dtype} {8 * int(match[2])} tokens"
    if match := re.search(r"M24GroupConfigI\w*?DTypeE\dELi(\d+)ELi(\d)E", name):
        return f"spmm_m24 {dtype} {match[1]} tokens {64 * int(match[2])} rows"
    if match := re.search(r"M24ManyConfigI\w*?DTypeE\dELi(\d+)ELi(\d)ELi(\d)ELi(\d)E", name):
        blocks = f", {match[4]} blocks" if match[4] != "1" else ""
        return f"spmm_m24_many {dtype} {match[1]} x {64 * int(match[2])}, {match[3]} slots{blocks}"
    if match := re.search(r"BitmapGroupConfigI\w*?DTypeE\dELi(\d+)ELi(\d)E", name):
        return f"spmm_bitmap {dtype} {match[1]} tokens {64 * int(match[2])} rows"
    if kind := p24_kind(name):
        return f"spmm_p24 {dtype} {8 * kind[0]} tokens {'triples' if kind[1] else 'pairs'}"
    if match := re.search(r"R24ConfigI\w*?DTypeE\dELi(\d)ELi(\d)E", name):
        return f"spmm_r24 {dtype} {64 * int(match[2])} tokens {16 * int(match[1])} rows"
    if tokens := gap_tokens(name) or sell4_tokens(name) or f32_tokens(name):
        kind = {"IDP": "gap " + dtype, "HFMA2": "sell4 " + dtype, "FFMA": "bitmap f32"}
        single = ", single columns" if f32_tokens(name) and "ELb0E" in name else ""
        return f"spmm_{kind[product_of(name)]} {tokens} tokens{single}"
    return ""


def rows_label(name: str) -> str:
    """What a kernel that compares or moves a cache's rows is; empty for others."""
    if match := re.search(r"kv_mass_(rows|columns)\w*DTypeE(\d)ELi(\d)E", name):
        dtype = ANY_DTYPE[int(match[2])]
        return f"kv_mass {match[1]} {dtype} r {64 * int(match[3])}"
    if match := re.search(r"kv_merge_nearest\w*DTypeE(\d)E", name):
        return f"kv_merge nearest {ANY_DTYPE[int(match[1])]}"
    if match := re.search(r"kv_gather_piecesI(\w+?)Lb(\d)E", name):
        return f"kv_gather {match[1]} {'in place' if match[2] == '1' else 'apart'}"
    return ""


def prompts_label(name: str) -> str:
    """What a kernel of prompts is; empty for others."""
    match = re.search(r"Prefill(Group|Short|)ConfigI\w*DTypeE(\d)ELi(\d+)ELi(\d)E", name)
    if match is None:
        return ""
    dtype, count = ANY_DTYPE[int(match[2])], int(match[4])
    kind = {"": f"q {64 * count}", "Group": f"{count} groups", "Short": f"short, {count} tiles"}
    return f"prefill_attention {dtype} d {match[3]} {kind[match[1]]}"


def label(arch: str, name: str) -> str:
    if product := product_label(name):
        return f"{product} {arch}"
    if match := re.search(r"PageConfigILi(\d)ELi(\d+)ELi(\d+)ELi(\d+)E", name):
        page = f"x{match[3]} by {match[4]}{' tail' if 'EELb1E' in name else ''}"
        return f"sparse_attention {match[1]} bits d {match[2]} {page} {arch}"
    if prompts := prompts_label(name):
        return f"{prompts} {arch}"
    if match := re.search(r"RowConfigILNS_\dDTypeE(\d)ELi(\d+)E", name):
        return f"sparse_attention {'f16' if match[1] == '1' else 'bf16'} d {match[2]} {arch}"
    if rows := rows_label(name):
        return f"{rows} {arch}"
    if match := re.search(
        r"(sparse_input|sparse_mlp_(?:gate|up|down|pass_sum|pass))\w*DTypeE(\d)E(?:Li(\d)E)?", name
    ):
        parts = f" x{match[3]}" if match[3] else ""
        return f"{match[1]} {'f16' if match[2] == '1' else 'bf16'}{parts} {arch}"
    known = ("quantize_x", "expand_t16i8", "expand_m24i8", "expand_m24i4", "expand_t16", "expand_sell4", "expand_m24", "expand_r24", "expand_g4", "expand_bitmap_f32", "kv_quantize", "kv_estimate", "kv_select_share", "kv_select_rows", "kv_select", "kv_mass_merge",
             "kv_merge_scales", "kv_merge_join", "kv_rebuild", "prefill_attention_pack",
             "kv_choose", "chosen_attention", "kv_append_labels", "kv_fetch_maps", "kv_fetch_units", "unpack_mask", "gather_mask", "spgemm_start", "spgemm_bound",
             "spgemm_warps", "spgemm_blocks", "spgemm_dense")  # fmt: skip
    return f"{next((k for k in known if k in name), name)} {arch}"


def activation(name: str) -> bool:
    return "sparse_input" in name or ("sparse_mlp" in name and "pass_sum" not in name)


def format_of(name: str) -> str:
    """The packed form of a product's weights; "" of other kernels."""
    match = re.search(r"spmm_(?:t16|i8).*PackedFormatE(\d)E", name)
    return FORMATS[int(match[1])] if match else ""


def grouped(name: str) -> bool:
    """Whether a product of bytes takes a scale for each group of columns."""
    return "spmm_i8" in name and re.search(r"DTypeE\dELi\dELb1E", name) is not None


def three_groups(name: str) -> bool:
    """Whether three warpgroups multiply a prompt."""
    return bool(re.search(r"PrefillGroupConfigI\w*DTypeE\dELi\d+ELi3E", name))


def budget(arch: str, name: str) -> int | None:
    """Most instructions of the main loop; None where none is pinned."""
    if "sparse_attention" in name:
        page = 2 * MAX_PAGE if re.search(r"PageConfigILi4ELi\d+ELi64E", name) else MAX_PAGE
        return (page if "PageConfig" in name else MAX_ROWS) if arch == "sm_90" else None
    if match := re.search(r"PrefillConfigI\w*ELi\d+ELi(\d)E", name):
        return MAX_PREFILL[int(match[1])] if arch == "sm_90" else None
    if match := re.search(r"kv_mass_(rows|columns)\w*ELi(\d)E", name):
        most = MAX_MASS_ROWS if match[1] == "rows" else MAX_MASS_COLUMNS
        return most[int(match[2])] if arch == "sm_90" else None
    if "kv_merge_nearest" in name or "kv_rebuild" in name:
        most = MAX_MERGE if "kv_merge" in name else MAX_REBUILD
        return most if arch == "sm_90" else None
    if activation(name):
        sums = "sparse_input" in name or "sparse_mlp_down" in name
        return (MAX_ROW_SUMS if sums else MAX_DOTS) if arch == "sm_90" else None
    return product_budget(arch, name)


def product_budget(arch: str, name: str) -> int | None:
    if tokens := gap_tokens(name):
        return MAX_GAP[tokens] if arch == "sm_90" else None
    if tokens := f32_tokens(name):
        return MAX_F32[tokens] if arch == "sm_90" and "ELb1E" in name else None
    if tokens := sell4_tokens(name):
        return MAX_SELL4[tokens] if arch == "sm_90" else None
    if kind := p24_kind(name):
        return MAX_P24[kind[1]][kind[0]] if arch == "sm_90" else None
    level, most = MAX_RECORD.get(format_of(name), ("", 0))
    if grouped(name):
        most = MAX_GROUPED[format_of(name)]
    return most if arch == level and "ELi1E" in name else None


def record_products(name: str) -> int:
    """Products that a record takes, where loops take several; at 8 tokens but for p24 and f32."""
    if tokens := f32_tokens(name):
        return 32 * tokens
    if kind := p24_kind(name):
        return kind[0] * (4 if kind[1] else 2)
    products = {"m24": 2, "g4": 4, "m24i8": 1, "m24i4": 1, "t16i8": 2}
    return products.get(format_of(name), 0)


def loop_problems(arch: str, name: str, loop: Counter[str]) -> list[str]:
    wrong = []
    product = product_of(name)
    if not loop[product] + (loop["IMMA"] if product == "HMMA" else 0):
        wrong.append(f"no {product} in a loop")
    most, size = budget(arch, name), sum(loop.values())
    if gap_tokens(name):  # of one of the loop's steps, of eight entries a lane
        size = size * 8 // loop["IDP"] if loop["IDP"] else 10**9
    if tokens := sell4_tokens(name):  # of one of the loop's steps
        size = size * 2 * tokens // max(loop["LDS"], 1)
    if products := record_products(name):  # of one of the loop's records
        size = size * products // max(loop["HMMA"] + loop["IMMA"] + loop["FFMA"], products)
    if activation(name):  # of 1024 weights: two products for each with factors in two parts
        size = size * (8 if "sparse_mlp_down" in name else 4) // max(loop["HMMA"], 1)
    if most is not None and size > most:
        wrong.append(f"{size} instructions in the loop, wanted at most {most}")
    if loop["POPC"] > MAX_POPC and format_of(name).startswith("t16"):
        wrong.append(f"{loop['POPC']} POPC in the loop")
    return wrong


def group_problems(name: str, loop: Counter[str]) -> list[str]:
    """Of a loop of products by warpgroups: two of m24 a record, four dense ones of as many weights."""
    product = product_of(name)
    if not loop[product]:
        return [f"no {product} in a loop"]
    if any(config in name for config in PREFILL_GROUPS):
        size = sum(loop.values())
        most = MAX_PREFILL_GROUP if "PrefillGroupConfig" in name else MAX_PREFILL_SHORT
        return [f"{size} instructions in the loop, wanted at most {most}"] if size > most else []
    if product == "HGMMA.SP":
        of_record, most = 2, MAX_MANY24 if "M24ManyConfig" in name else MAX_GROUP24
    else:
        of_record, most = 4, MAX_R24 if "R24Config" in name else MAX_GROUP
    size = sum(loop.values()) * of_record // loop[product]
    return [f"{size} instructions a record, wanted at most {most}"] if size > most else []


def problems(arch: str, name: str, code: list[tuple[int, str]], used: int) -> list[str]:
    everything = Counter(opcode(text) for _, text in code)
    loop = main_loop(code, product_of(name))
    size = sum(loop.values())
    attention = "sparse_attention" in name
    wrong = []
    local = [(c["LDL"], c["STL"]) for c in (everything, loop)]
    spilled = MAX_PREFILL_SPILLED if "PrefillGroupConfig" in name and three_groups(name) else 0
    if re.search(r"(ChosenConfig|kv_choose)\w*Lb[01]ELi8E", name):
        halves = re.search(r"ChosenConfig\w*ELi128ELb0ELi8E", name)
        spilled = MAX_EIGHT_HALVES_SPILLED if halves else MAX_EIGHT_SPILLED
    if sum(local[0]) > spilled or any(local[1]):
        wrong.append(f"local memory: {local[0][0]} loads, {local[0][1]} stores")
    # For 64 tokens a block an SM.
    alone = "ELi8E" in name and (format_of(name) in ("g4", "t16i8") or grouped(name))
    three_blocks = attention or "kv_rebuild" in name  # of 128 threads, or one of 256 and one
    most = MAX_ATTENTION_REGISTERS if three_blocks else MAX_REGISTERS
    most = MAX_ALONE_REGISTERS if alone else most
    if "PageConfigILi4E" in name and arch != "sm_90":
        most = MAX_PAGE_REGISTERS
    prefill = "prefill_attention" in name and "prefill_attention_pack" not in name
    most = MAX_PREFILL_REGISTERS if prefill else most
    trade = "M24ManyConfig" in name or "PrefillGroupConfig" in name
    most = MAX_MANY_REGISTERS if trade else most
    # Of 128 tokens and more a block an SM.
    most = MAX_GROUP_REGISTERS if re.search(r"BitmapGroup.*ELi(128|256)E", name) else most
    most = MAX_GROUP_REGISTERS if f32_tokens(name) == 16 else most  # a block an SM too
    sparse = any("IMMA.SP" in text for _, text in code)
    if format_of(name) in ("m24i8", "m24i4") and not sparse:
        wrong.append("no sparse tensor core instruction")
    if used > most:
        wrong.append(f"{used} registers, wanted at most {most}")
    rows = any(
        k in name for k in ("kv_mass_rows", "kv_mass_columns", "kv_merge_nearest", "kv_rebuild")
    )
    product = bool(format_of(name) or p24_kind(name)) or product_of(name) != "HMMA"
    groups = product_of(name).startswith("HGMMA")
    if groups:
        wrong += group_problems(name, loop)
    elif attention or prefill or rows or activation(name) or product:
        wrong += loop_problems(arch, name, loop)
    tensor = (product_of(name),) if groups else ("HMMA", "IMMA")
    counts = ", ".join(f"{loop[op]} {op}" for op in ("LDS", "SHFL", "POPC", *tensor, "LDGSTS"))
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
    # On three architectures: bitmap in 32 bits with five numbers of tokens, of pairs or single columns,
    # and its expansion, six formats with four token tiles in two dtypes, three of
    # them with scales for groups as well, two roundings of x and three expansions of codes, gap with three numbers of
    # tokens in two and its expansion, p24 with seven in two and its expansion, of two kinds of groups, sell4 with four, eighteen attentions and six with a tail, eighteen for the rest of a KV cache, two passes of five
    # for kv_mass and what joins them, seven of kv_merge, rows moved in five pieces in two ways, keys rebuilt in two dtypes and sizes, eight of activations in two dtypes, eight of prompts,
    # the ways to and from dense of gradients, eight of spgemm; the expansions on two, the choice of
    # tokens on one, alone and with attention in two dtypes and sizes, of two numbers of rows by
    # scores of two kinds.
    wanted = (
        3 * (11 + 48 + 24 + 5 + 7 + 30 + 9 + 24 + 18 + 11 + 17 + 4 + 16 + 8 + 2 + 8) + 3 * 2 + 20
    )
    wanted += 2 * (
        5 + 4 + 4
    )  # by warpgroups on sm_90a, in two dtypes: m24 for few, for many, bitmap
    # Prompts by warpgroups, in two dtypes and sizes, one by two and three, and what packs for them; short
    # ones, of one size by one and two tiles.
    wanted += 2 * 3 + 1 + 2 * 3
    wanted += 2 * 10 + 1  # r24 there, ten layouts in two dtypes, and its expansion
    wrong = [] if len(found) == wanted else [f"got {len(found)} kernels, wanted {wanted}"]
    for (arch, name), code in sorted(found.items()):
        wrong += problems(arch, name, code, used[arch, name])
    sys.stdout.write("".join(f"FAILED {line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

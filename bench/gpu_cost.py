"""Expected ratios over dense bf16 per GPU, calculated: machine code of the CUDA library and bytes.

    python bench/gpu_cost.py build/libtamis_cuda.so

Reads the main loops with cuobjdump (see tests/cpp/check_sass.py) and sets each against DRAM: the time
of a tile is the larger of its bytes at 90 % of the vendor's DRAM rate, its instructions at four a
clock, and what its loads take of shared memory at 128 bytes a clock. Dense bf16 streams at 90 % too.
Rarely taken branches are counted, launches and ramps are not: a ceiling for large operands, not a
prediction for small ones. kv_merge and kv_rebuild are set against cuBLAS at 80 % of the vendor's rate
of products instead, by their products alone: what else they save, a matrix of similarities in memory
and copies of keys, is not counted. Nothing here is measured. Left out are kv_mass, prefill_attention,
spmm_t and sddmm (tensor cores as well), kv_fetch (PCIe), spgemm and choices of tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cpp"))
import check_sass


@dataclass(frozen=True)
class Gpu:
    sms: int
    ghz: float  # under load
    tb_s: float
    macs: int  # bf16 products with f32 sums, of an SM and clock
    arch: str  # the machine code that such a GPU runs
    mma_sync: float = 1.0  # of `macs` that instructions of a warp reach


GPUS = {
    "A100 80GB": Gpu(108, 1.41, 2.04, 1024, "sm_80"),
    "H100 SXM": Gpu(132, 1.755, 3.35, 2048, "sm_90", 0.62),
    "H200": Gpu(132, 1.755, 4.8, 2048, "sm_90", 0.62),
    "L40S": Gpu(142, 2.52, 0.864, 512, "sm_89"),
    "RTX 4090": Gpu(128, 2.52, 1.008, 256, "sm_89"),
}
STREAMED = 0.9  # of the DRAM rate
MULTIPLIED = 0.8  # of the rate of products
PRODUCT_MACS = 16 * 8 * 16  # of an instruction


@dataclass(frozen=True)
class Tile:
    """One turn of a main loop, by one warp."""

    what: str
    name: str  # pieces of the mangled name, in order
    dense_bytes: float  # of what bf16 would read instead
    nbytes: float
    wavefronts: float  # of shared memory
    products: int  # tensor core instructions of one tile: loops may be unrolled
    product: str = "HMMA"


def form(name: str) -> str:
    return f"PackedFormatE{check_sass.FORMATS.index(name)}"


def tiles() -> list[Tile]:
    """t16: bytes and wavefronts as counted over random records (bench/results/gpu.md)."""
    found = []
    for density, waves in ((0.5, 62), (0.3, 55), (0.2, 55)):
        found.append(
            Tile(f"t16 {density}, 8 tokens", f"{form('t16')} DTypeE2ELi1E", 2048,
                 2048 * density + 152, waves, 4)
        )  # fmt: skip
    # gap: wavefronts of a load of x by tokens, counted over random rows of 4096 columns.
    for density, loads in ((0.5, (2.3, 2.9, 5.5)), (0.3, (2.6, 3.1, 5.7)), (0.1, (3.0, 3.3, 6.0))):
        for tokens, waves in zip((1, 2, 4), loads, strict=True):
            found.append(
                Tile(f"gap {density}, {tokens} tokens", f"spmm_gap DTypeE2ELi{tokens}E", 512 / density,
                     640 / (1 - (1 - density) ** 15), 5 + 8 * waves, 8, "IDP")
            )  # fmt: skip
    for tokens in (8, 32):
        # 9 wavefronts of the record, 4 for each of two loads of x a tile of 8 tokens.
        found.append(
            Tile(f"m24, {tokens} tokens", f"{form('m24')} DTypeE2ELi{tokens // 8}E", 2048, 1152,
                 9 + tokens, tokens // 4)
        )  # fmt: skip
    found += p24_tiles()
    found += group_tiles()
    found += byte_tiles()
    for density in (0.5, 1.0):
        # 8 wavefronts of x; codes, scales and the mask; half of the units in g4.
        nbytes = 16 + 768 * density + 8
        found.append(
            Tile(f"g4 {density}, 8 tokens", f"{form('g4')} DTypeE2ELi1E", 2048, nbytes,
                 8 + 8 * density, 4)
        )  # fmt: skip
    for tokens in (1, 2, 4, 8):
        # 32 groups of half of the groups: 512 weights, 2 % fillers; x by conflict-free reads, nearly.
        found.append(
            Tile(f"sell4 0.5, {tokens} tokens", f"spmm_sell4 DTypeE2ELi{tokens}E", 2048, 1.02 * 384,
                 8.2 * tokens, 2 * tokens, "LDS")
        )  # fmt: skip
    for bits in (8, 4, 2):
        record = 32 * 128 * bits / 4 + 1024  # codes of keys and values, scales and minima
        # Codes once (keys in 16 bytes meet in banks by two), 16 loads of key scales, 8 of values'.
        waves = 32 * 128 * bits / 8 / 128 * 3 + 32
        found.append(Tile(f"attention, {bits} bits, d 128", f"PageConfigILi{bits}ELi128ELi32E",
                          32 * 512, record, waves, 48))  # fmt: skip
    # 1024 weights that are read, of a token: how far from DRAM's rate the rest keeps them.
    found.append(Tile("sparse_mlp, rows", "sparse_mlp_gate DTypeE2", 2048, 2048, 8, 4))
    found.append(Tile("sparse_mlp, one token", "sparse_mlp_pass DTypeE2ELi2E", 2048, 2048, 8, 4))
    found.append(Tile("sparse_mlp, listed rows", "sparse_mlp_down DTypeE2", 2048, 2048, 0, 8))
    found.append(Tile("sparse_input", "sparse_input_kernel DTypeE2", 2048, 2048, 3, 4))
    found.append(Tile("attention, bf16, d 128", "RowConfig DTypeE2ELi128E", 8192, 8192, 2 * 64, 16))
    return found


def p24_tiles() -> list[Tile]:
    found = []
    for tokens in (8, 16):
        # 1024 weights as two of four columns, 1.6 % fillers; 1536 as one of three. The 32 columns of
        # a step, 16 bytes each for 8 tokens, nearly never meet in a bank.
        for density, weights, nbytes in ((0.5, 1024 / 1.016, 1280), (0.3, 1536, 1344)):
            steps = 2 if density == 0.5 else 4
            found.append(
                Tile(f"p24 {density}, {tokens} tokens",
                     f"spmm_p24 DTypeE2ELi{tokens // 8}ELb{int(steps == 4)}E", 2 * weights, nbytes,
                     nbytes / 128 + 4 * steps * tokens / 8, steps * tokens // 8)
            )  # fmt: skip
    return found


def group_tiles() -> list[Tile]:
    """m24 by warpgroups: four records read 128 bytes of x a token, written once for 8 or 16."""
    return [
        Tile(f"m24, warpgroups, {tokens} tokens", f"M24Group DTypeE2ELi{tokens}E", 2048, 1152,
             tokens / 4 + tokens / records, 2, "HGMMA.SP")
        for tokens, records in ((32, 8), (128, 16))
    ]  # fmt: skip


def product_tiles() -> list[Tile]:
    """Those that tensor cores bound, beside cuBLAS with the same products; no bytes."""
    # 16 rows a warp: 16 channels of 64 kept tokens; 64 columns of the rank, and what copies write.
    found = [Tile("kv_merge, d 128", "kv_merge_nearest DTypeE2", 0, 0, 4 + 16, 8)]
    for d in (64, 128):
        copied = (64 * 128 + 64 * 2 * d) / 4 / 128  # by each of four warps
        found.append(
            Tile(f"kv_rebuild, d {d}", f"kv_rebuild DTypeE2ELi{d}E", 0, 0, 16 + d + copied, d // 2)
        )
    return found


def byte_tiles() -> list[Tile]:
    """Products of codes of 8 and 4 bits."""
    found = []
    for bits, nbytes in ((8, 640), (4, 384)):
        # The record's wavefronts, 4 of x.
        found.append(
            Tile(f"m24i{bits}, 8 tokens", f"spmm_i8 {form(f'm24i{bits}')} DTypeE2ELi1ELb0E", 2048,
                 nbytes, nbytes / 128 + 4, 1, "IMMA")
        )  # fmt: skip
    for density in (0.5, 0.3):
        # 3 loads for each of four runs, 3 of the header, 4 of x, the copy into the ring.
        nbytes = 1024 * density + 280
        found.append(
            Tile(f"t16i8 {density}, 8 tokens", f"spmm_i8 {form('t16i8')} DTypeE2ELi1ELb0E", 2048,
                 nbytes, 12 + 3 + 4 + nbytes / 128, 2, "IMMA")
        )  # fmt: skip
    return found


def fits(name: str, pieces: str) -> bool:
    at = 0
    for piece in pieces.split():
        at = name.find(piece, at)
        if at < 0:
            return False
    return True


def expected(tile: Tile, gpu: Gpu, loops: dict[tuple[str, str], Counter[str]]) -> str:
    sizes = [
        sum(loop.values()) * tile.products / loop[tile.product]
        for (built, name), loop in loops.items()
        if built.rstrip("a") == gpu.arch and fits(name, tile.name)
    ]
    if not sizes:
        return "no kernel"
    clocks = {"issue": min(sizes) / 4, "shared": tile.wavefronts}
    if tile.nbytes:
        base, per_clock = "DRAM", STREAMED * gpu.tb_s * 1e3 / gpu.sms / gpu.ghz  # bytes of an SM
        dense = tile.dense_bytes / per_clock
        clocks[base] = tile.nbytes / per_clock
    else:
        base, macs = "tensor", tile.products * PRODUCT_MACS
        dense = macs / (MULTIPLIED * gpu.macs)
        clocks[base] = dense / gpu.mma_sync
    bound = max(clocks, key=lambda n: clocks[n])
    share = clocks[base] / clocks[bound]
    return f"{dense / clocks[bound]:5.2f} {bound:>6} {share:4.0%} {base}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    library = parser.parse_args().library
    tool = check_sass.find_cuobjdump()
    if tool is None:
        print("SKIP gpu_cost: no cuobjdump on PATH, in the toolkit or as a wheel")
        return 0
    code = check_sass.functions(check_sass.run(tool, "--dump-sass", library))
    loops: dict[tuple[str, str], Counter[str]] = {
        key: check_sass.main_loop(body, check_sass.product_of(key[1])) for key, body in code.items()
    }
    print(f"calculated, not measured; dense bf16 at {STREAMED:.0%} of DRAM")
    print(f"{'tile':28} {'bytes ratio':>11}  " + "  ".join(f"{gpu:>22}" for gpu in GPUS))
    missing = 0  # tiles whose kernel no GPU has
    for tile in tiles() + product_tiles():
        bytes_ratio = f"{tile.dense_bytes / tile.nbytes:.2f}" if tile.nbytes else ""
        print(
            f"{tile.what:28} {bytes_ratio:>11}  "
            + "  ".join(f"{expected(tile, gpu, loops):>22}" for gpu in GPUS.values())
        )
        missing += not any(fits(name, tile.name) for _, name in loops)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

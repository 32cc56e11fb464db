"""Whether a cache's bytes are the process's: growth of resident memory against ``nbytes()``.

`python bench/kv_memory.py` fills caches of SmolLM2's shape with random tokens, 256 at a time, each
in a process of its own, and prints both beside a plain 16-bit cache.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig

from tamis import kv
from tamis.kv.methods import recipe_of

CHUNK = 256
KV = torch.randn(2, 1, 3, CHUNK, 64).to(torch.bfloat16)
Q = torch.randn(1, 9, CHUNK, 64).to(torch.bfloat16)
CASES = ("full", "kivi8", "kivi4", "kivi2", "snapkv", "quest", "double_sparsity", "tiers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--methods", nargs="*", default=CASES)
    parser.add_argument("--json", action="store_true", help="one line a method")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.inside:
        print(json.dumps(measure(a.methods[0], a.tokens)))
        return
    if not a.json:
        print(
            f"{a.tokens} tokens, MB\nmethod            nbytes()  grown  grown/nbytes  nbytes/16 bit"
        )
    for method in a.methods:
        command = [sys.executable, __file__, "--inside", "--tokens", str(a.tokens)]
        found = json.loads(
            subprocess.run(
                [*command, "--methods", method], capture_output=True, text=True, check=True
            ).stdout
        )
        if a.json:
            print(json.dumps({"method": method} | found))
            continue
        print(
            f"{method:17} {found['nbytes'] / 1e6:8.1f} {found['grown'] / 1e6:6.1f}"
            f" {found['grown'] / found['nbytes']:13.3f} {found['nbytes'] / found['plain']:14.4f}"
        )


def measure(method: str, tokens: int) -> dict[str, int]:
    """Bytes of a cache after ``tokens`` tokens, of the process beyond before, and of a plain cache."""
    torch.set_num_threads(1)
    config = LlamaConfig(
        num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576,
        max_position_embeddings=1 << 20,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fill(
            make(method, config, folder), config, 2 * CHUNK
        )  # kernels and their memory are there now
        before = resident()
        cache = make(method, config, folder)
        fill(cache, config, tokens)
        return {
            "nbytes": cache.nbytes(),
            "grown": resident() - before,
            "plain": 4 * config.num_hidden_layers * 3 * 64 * tokens,
        }


def make(method: str, config: LlamaConfig, folder: str) -> kv.Cache:
    """A cache; "tiers" is Double Sparsity with its tokens in a file and 8 MB of them in memory."""
    if method == "tiers":
        tiers = kv.Tiers(folder, memory=8 << 20)
        return kv.Cache(config, "double_sparsity", budget=64, tiers=tiers)
    return kv.Cache(config, method, budget=512 if recipe_of(method).budgeted else None)


def fill(cache: kv.Cache, config: LlamaConfig, tokens: int) -> None:
    """The same random tokens, chunk by chunk, into every layer."""
    for _ in range(0, tokens, CHUNK):
        for store in cache.stores:
            store.append(*KV)
            store.settle(Q)
    for store in cache.stores:
        store.attend(Q[:, :, -1:])


def resident() -> int:
    """Bytes of this process in memory, those of mapped files included, and of no freed ones.

    glibc's heap keeps what is freed until it grows or shrinks at its end: after imports tens of MB,
    which a cache may or may not come to fill.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


if __name__ == "__main__":
    main()

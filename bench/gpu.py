"""Everything on a CUDA device: build, conformance, sanitizer, rates, and times against torch.

    python bench/gpu.py [--out gpu.json] [--sections spmm ...] [--minutes 9]

Sections that the JSON file already holds are skipped, unless named. Times are CUDA events round a
graph of calls, one per copy of the weights; the copies together exceed the L2 cache several times.
The dense side is the faster of two cuBLAS calls, timed in turns with ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_activation import activation, print_activation
from gpu_checks import build, conformance, sanitizer
from gpu_grad import gradients, print_gradients
from gpu_kv import kv, print_kv, print_shares, shares
from gpu_merge import merges
from gpu_prefill import prefill, print_prefill
from gpu_products import PRODUCTS, SHAPES, host, print_rows
from gpu_rates import rates
from gpu_spgemm import print_spgemm, spgemm_section
from gpu_tiers import tiers
from gpu_timing import timed

ROOT = Path(__file__).resolve().parents[1]


def copy_rate() -> dict[str, Any]:
    """GB/s of a device-to-device copy, bytes read plus bytes written."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), 1)
    return {"gb_per_s": 2 * source.numel() / seconds / 1e9, "device": torch.cuda.get_device_name()}


def run_sections(args: argparse.Namespace) -> dict[str, Any]:
    end = time.monotonic() + 60 * args.minutes
    done: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    sections: dict[str, Callable[[], Any]] = {
        "build": build,
        "conformance": conformance,
        "copy": copy_rate,
        "rates": rates,
        "host": host,
        "sanitizer": sanitizer,
    }
    for (kind, product), shape in itertools.product(PRODUCTS.items(), SHAPES):
        sections[f"{kind} {shape}"] = lambda product=product, shape=shape: product(
            shape, done["copy"]["gb_per_s"]
        )
    for batch in (1, 8):
        sections[f"kv {batch}"] = lambda batch=batch: kv(batch, done["copy"]["gb_per_s"])
    sections["shares"] = shares
    sections["merges"] = merges
    sections["tiers"] = tiers
    sections["prefill"] = prefill
    sections["gradients"] = gradients
    sections["spgemm"] = spgemm_section
    sections["activation"] = lambda: activation(done["copy"]["gb_per_s"])
    for name, section in sections.items():
        named = name in args.sections or name.split()[0] in args.sections
        if not named and (args.sections or name in done):
            continue
        if time.monotonic() > end - 30:
            print(f"LEFT {name}: no time; run again with the same --out")
            continue
        print(f"== {name}", flush=True)
        start = time.monotonic()
        done[name] = section()
        done.setdefault("seconds", {})[name] = time.monotonic() - start
        args.out.write_text(json.dumps(done, indent=1))
        print(f"   {done['seconds'][name]:.0f} s", flush=True)
    return done


def why_not() -> str:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--sections", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=9)
    args = parser.parse_args()
    if reason := why_not():
        print(f"SKIP gpu: {reason}")
        return 0
    sys.path.insert(0, str(ROOT / "python"))
    os.environ["PYTHONPATH"] = str(ROOT / "python")
    done = run_sections(args)
    print(f"sections took {sum(done.get('seconds', {}).values()):.0f} s in all")
    if "copy" in done:
        print(f"{done['copy']['device']}: copies {done['copy']['gb_per_s']:.0f} GB/s")
    print_prefill(done.get("prefill", []))
    print_gradients(done.get("gradients", []))
    print_spgemm(done.get("spgemm", []))
    print_activation(done.get("activation", []))
    print_shares(done.get("shares", []))
    print_kv([row for name in done if name.startswith("kv") for row in done[name]])
    print_rows([row for name in done if name.split()[0] in PRODUCTS for row in done[name]])
    checks = (done.get(name, {"ok": True}) for name in ("conformance", "sanitizer"))
    return 0 if all(check["ok"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())

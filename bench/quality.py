"""Perplexity of SmolLM2-135M pruned by several methods, fp32, and the relations between them that must hold.

`python bench/quality.py --data validation.txt --text test.txt` calibrates on the first 8 x 512
tokens of one text, measures 6 x 512 of the other, and also compares the logits of each compressed
model with those of the same masked weights in torch. Exit status 1 says that a relation broke.
"""

import argparse
import copy
import sys
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

import tamis
from tamis import commands, corpus, evaluate, source

LOGIT_TOLERANCE = 1e-4  # of the largest logit, fp32


@dataclass(frozen=True)
class Case:
    """One way to prune."""

    method: str
    sparsity: float = 0.5
    pattern: str = "unstructured"

    def __str__(self) -> str:
        how = f"{self.sparsity:.0%}" if self.pattern == "unstructured" else self.pattern
        return f"{self.method} {how}"


CASES = (
    Case("magnitude"),
    Case("wanda"),
    Case("sparsegpt"),
    Case("alps"),
    Case("wanda", 0.6),
    Case("sparsegpt", 0.6),
    Case("alps", 0.6),
    Case("wanda", 0.7),
    Case("sparsegpt", 0.7),
    Case("alps", 0.7),
    Case("wanda", pattern="2:4"),
    Case("sparsegpt", pattern="2:4"),
    Case("alps", pattern="2:4"),
)


def relations(ppl: dict[str, float]) -> dict[str, bool]:
    """What must hold on this model; SparseGPT < Wanda at 50 % is within noise and not claimed."""
    near = ppl["sparsegpt 50%"] / ppl["wanda 50%"] - 1
    return {
        "magnitude 50% > 3 x Wanda 50%": ppl["magnitude 50%"] > 3 * ppl["wanda 50%"],
        f"|SparseGPT / Wanda - 1| < 10 % at 50 % ({near:+.1%})": abs(near) < 0.1,
        "SparseGPT < 0.9 x Wanda at 60 %": ppl["sparsegpt 60%"] < 0.9 * ppl["wanda 60%"],
        "ALPS < 0.85 x SparseGPT at 60 %": ppl["alps 60%"] < 0.85 * ppl["sparsegpt 60%"],
        "ALPS < 0.7 x SparseGPT at 70 %": ppl["alps 70%"] < 0.7 * ppl["sparsegpt 70%"],
        "SparseGPT < 0.6 x Wanda at 2:4": ppl["sparsegpt 2:4"] < 0.6 * ppl["wanda 2:4"],
    }


@torch.inference_mode()
def logit_gap(model: torch.nn.Module, ids: list[int]) -> float:
    """max |sparse - masked dense| over max |masked dense|, one prompt at once and a token alone."""
    dense = tamis.dense_(copy.deepcopy(model))
    worst = 0.0
    for row in (ids, ids[:1]):
        wanted, got = (m(input_ids=torch.tensor([row])).logits for m in (dense, model))
        worst = max(worst, float((got - wanted).abs().max() / wanted.abs().max()))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", help="text to calibrate on")
    parser.add_argument("--text", help="text of the perplexity")
    a = parser.parse_args()
    commands.quiet()
    opened = source.open_model(a.model, dtype="f32")
    tokenizer = opened.tokenizer
    calibration = corpus.default_text("calibrate", a.data)[1]
    data = evaluate.token_windows(tokenizer, calibration, length=512, count=8)
    text = corpus.default_text("evaluate", a.text)[1]
    ids = evaluate.token_windows(tokenizer, text, length=64, count=1)[0]

    ppl = {"dense": evaluate.perplexity(opened.model, tokenizer, text)}
    rows = [f"{'dense':16} {ppl['dense']:8.1f}"]
    gaps = []
    for case in tqdm(CASES, disable=None):
        model = copy.deepcopy(opened.model)
        start = time.perf_counter()
        tamis.sparsify_(
            model,
            case.method,
            sparsity=case.sparsity,
            pattern=case.pattern,
            data=data,
            progress=False,
        )
        seconds = time.perf_counter() - start
        gaps.append(logit_gap(model, ids))
        ppl[str(case)] = evaluate.perplexity(model, tokenizer, text)
        rows.append(f"{case!s:16} {ppl[str(case)]:8.1f} {seconds:8.1f} {gaps[-1]:12.1e}")

    print(f"{'':16} {'ppl':>8} {'prune, s':>8} {'logit gap':>12}")
    print("\n".join(rows))
    held = relations(ppl)
    held[f"logits within {LOGIT_TOLERANCE:g} of masked dense"] = max(gaps) <= LOGIT_TOLERANCE
    for relation, holds in held.items():
        print(f"{'holds ' if holds else 'BROKEN'} {relation}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""MobileNet-v1 with pruned 1x1 layers against torch: same outputs, milliseconds of an image.

    PYTHONPATH=python python bench/conv.py [--sparsity 0.9] [--pattern vector:4] [--layers]

Weights are random, so accuracy is no question here; dense and pruned networks have the same zeros.
"torch" is eager, "torch, frozen" is traced, frozen and optimized for inference, with batch norms
folded and activations fused. Contenders take turns; a time is the fastest of all rounds, as other
processes can only add to it. One thread by default.
--layers times the 1x1 shapes alone, against torch.nn.functional.conv2d and against the same weight
without zeros through tamis' blocks of 4 x 1, which is a dense product in the same layout.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import tamis
from tamis.nn import SparseConv2d

# inputs, outputs, stride of each separable layer (Howard et al., 2017, table 1).
LAYERS = (
    (32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
    *((512, 512, 1),) * 5, (512, 1024, 2), (1024, 1024, 1),
)  # fmt: skip
SHAPES = ((64, 128, 56), (128, 256, 28), (256, 256, 28), (512, 512, 14), (1024, 1024, 7))


def mobilenet() -> nn.Module:
    """MobileNet-v1 of width 1 with random weights and statistics, ready for inference."""
    model: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    for inputs, outputs, stride in LAYERS:
        model += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        ]
    model += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000)]
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return nn.Sequential(*model).eval()


def fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each call, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: min(taken) for name, taken in times.items()}


def network(sparsity: float, pattern: str, rounds: int) -> None:
    """Times whole networks."""
    model = mobilenet()
    head = list(dict(model.named_modules()))[-1]
    tamis.sparsify_(model, "magnitude_layer", sparsity=sparsity, pattern=pattern, ignore=[head])
    dense = tamis.dense_(copy.deepcopy(model))
    fused = copy.deepcopy(model)
    tamis.fuse_(fused)
    x = torch.randn(1, 3, 224, 224)
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(dense, x)))
    for _ in range(3):
        frozen(x)  # specializes
    wanted = dense(x)
    error = max(float((m(x) - wanted).abs().max()) for m in (model, fused))
    print(f"MobileNet-v1 224, {sparsity:.0%} {pattern}: largest difference {error:.1e} of "
          f"{float(wanted.abs().max()):.2g}")  # fmt: skip
    models = {"torch": dense, "torch, frozen": frozen, "sparse": model, "sparse, fused": fused}
    taken = fastest({name: partial(m, x) for name, m in models.items()}, rounds)
    for name, ms in taken.items():
        print(f"  {name:14} {ms:7.2f} ms  {taken['torch, frozen'] / ms:5.2f} x frozen")


def layers(rounds: int) -> None:
    """Times 1x1 layers alone."""
    print("1x1 layers, microseconds        torch  tamis dense   " + "   ".join(
        f"{g}/{s:.0%}" for g in ("csr", "4x1") for s in (0.3, 0.5, 0.7, 0.8, 0.9)))  # fmt: skip
    for inputs, outputs, side in SHAPES:
        conv = nn.Conv2d(inputs, outputs, 1)
        x = torch.randn(1, inputs, side, side)
        everything = torch.ones_like(conv.weight) > 0
        own = SparseConv2d.from_conv(conv, keep=everything, group=4)
        calls: dict[str, Callable[[], object]] = {
            "torch": partial(conv, x),
            "own": partial(own, x),
        }
        for group in (1, 4):
            for sparsity in (0.3, 0.5, 0.7, 0.8, 0.9):
                keep = torch.rand(outputs // group, inputs) >= sparsity
                keep = keep.repeat_interleave(group, 0).reshape(conv.weight.shape)
                layer = SparseConv2d.from_conv(conv, keep=keep, group=group)
                calls[f"{group} {sparsity}"] = partial(layer, x)
        taken = fastest(calls, 20 * rounds)
        print(f"{outputs:5} x {inputs:4} on {side:2} x {side:2}     "
              + "  ".join(f"{1e3 * ms:8.0f}" for ms in taken.values()))  # fmt: skip


def main() -> None:
    """Parse arguments and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--layers", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    with torch.no_grad():
        if arguments.layers:
            layers(arguments.rounds)
        else:
            network(arguments.sparsity, arguments.pattern, arguments.rounds)


if __name__ == "__main__":
    main()

"""Rewrites a model in place: prunes its linears and stores them compressed, or undoes it.

Nothing changes until everything has succeeded: new layers are built beside the old ones (whose
weights return after each block's second run) and swapped in at the end, so an exception at any
point leaves the model as it was. The price is memory for the compressed layers beside the dense
ones; a second dense copy exists only with format="dense".
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tamis import calibrate, method
from tamis.convolution import as_matrix, choose_conv
from tamis.errors import TamisTypeError, TamisValueError
from tamis.experts import restack, unstacked
from tamis.formats import (
    as_dense,
    compressed,
    counted_layouts,
    device_of,
    holding_weight,
    refresh_weight,
    standing_in,
    swap,
)
from tamis.layout import Layout
from tamis.nn import SparseConv2d, SparseLinear
from tamis.nn.conv import window_of
from tamis.nn.decoder import unfused
from tamis.ops import cost
from tamis.optimize import explain, optimize_
from tamis.policy import quantize, select
from tamis.prunable import check_prunable, group_size, in_groups
from tamis.recipe import KEEP, Goal, LinearContext, Pattern, PruneRecipe, Stats, apply
from tamis.reconstruct import reconstruct
from tamis.report import LayerReport, Report, host_facts
from tamis.report_rows import describe, tokens_of
from tamis.samples import Sample, read_samples
from tamis.scope import (
    DEFAULT_IGNORE,
    check_in_memory,
    check_model,
    find_linears,
    left_dense,
    parse_pattern,
)
from tamis.scope import allocate as allocate_shares
from tamis.transposed import as_own

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["dense_", "explain", "optimize_", "sparsify_"]


def sparsify_(  # noqa: PLR0913
    model: nn.Module,
    method: str | PruneRecipe,
    *,
    sparsity: float = 0.5,
    pattern: str | None = None,
    data: Iterable[Any] | None = None,
    tokenizer: Any = None,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = DEFAULT_IGNORE,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    format: str | None = None,
    dtype: str | None = None,
    allocate: str | Mapping[str, float] = "uniform",
    sequential: bool = True,
    max_length: int = 512,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Prunes the model's linears and 1x1 convolutions in place and stores them compressed.

    Args:
        model: Any torch model; of a known family (Llama, Qwen, Gemma, Mistral, Mixtral, gpt-oss, OPT,
            GPT-2, BERT, ViT) the linears in its blocks are pruned, of others all but the output layer,
            and the nn.Conv2d of one group with 1x1 taps. Experts that transformers stacks in one
            parameter are two linears each, named ``....experts.each.3.gate_up`` and ``.down``.
        method: Name of a method (`tamis.method.names()`) or a PruneRecipe.
        sparsity: Fraction of zeros, 0 <= sparsity < 1. An N:M pattern fixes its own.
        pattern: "unstructured", "N:M" (N kept of every M consecutive inputs), "block:RxC", or
            "vector:G" for "block:Gx1": G neighbouring outputs keep the same inputs. None is the
            method's own, mostly unstructured.
        data: Calibration samples, for methods that need them: strings, token ids or dicts of model
            inputs. Text is cut to `max_length` tokens (or the model's positions); longer token ids
            are refused.
        tokenizer: For strings.
        targets: Layers to prune: exact names, "re:" and a pattern matched from the start of the
            name, or the class names "Linear", "Conv2d" and "Conv1D" (of transformers). Only a target
            finds larger convolutions.
        ignore: Layers to leave alone, spelled the same way.
        filter_fn: Called with (module, name); false leaves the layer alone.
        format: None is the method's own where the pattern suits it, else "auto", which takes the one
            expected to be fastest for one token, the smallest of those alike, dense included; "dense"
            keeps masked nn.Linear; "bitmap", "csr", "csr8", "nm", "block" force one, as does "groupq":
            groups of 16 inputs (32 under "block:1x32") as 4-bit codes. With sparsity=0 that is plain
            W4, also for a head that targets name. Convolutions have "csr" and "block" of one column.
        dtype: "i8" stores the kept weights as int8 with one scale per row; None keeps their dtype.
            groupq: "u4", which None means, or "u8".
            Kernels with int8 instructions then quantize activations too, token by token, as torch's
            dynamic quantization does. Layers that stay dense keep their dtype.
        allocate: Sparsity per layer: "uniform", "erk", or a dict of names or "re:" patterns.
        sequential: Later blocks see the outputs of pruned earlier ones (two passes per block).
        max_length: Tokens per calibration sequence.
        seed: Of random methods.
        progress: Shows a bar; None shows it on a terminal.

    Raises:
        TamisValueError: A name, range, shape, weight or sample that cannot be used.
        TamisTypeError: Data of the wrong kind.
        TamisUnsupported: A combination that no policy computes.
    """
    begin = time.perf_counter()
    recipe = method if isinstance(method, PruneRecipe) else _load(method)
    label = method if isinstance(method, str) else "recipe"
    shape = recipe.pattern or Pattern() if pattern is None else parse_pattern(pattern)
    if format is None:
        format = recipe.format if shape == recipe.pattern or in_groups(shape) else "auto"
    if format == "groupq" and dtype is None:
        dtype = "u4"
    check_model("sparsify_", model)
    with unstacked(model):
        layers = find_linears(model, targets, ignore, filter_fn)
        for layer in layers.values():
            refresh_weight(layer)
        linears = {name: as_matrix(layer) for name, layer in layers.items()}
        shares = allocate_shares(linears, shape, sparsity, allocate, recipe)
        convs = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
        job = _Job(recipe, shape, shares, format, dtype, seed, convs)
        check_prunable(linears, convs, recipe, shape, format, dtype)
        samples = _samples(label, recipe, data, model, tokenizer, max_length)
        with _bar(len(linears), label, progress) as tick, standing_in(model, layers, linears):
            job.tick = tick
            if recipe.group == "global" and shape.kind != "nm":
                _prune_globally(model, linears, samples, job)
            elif recipe.needs:
                visit, settle = job.visitor(linears), job.settler(linears)
                calibrate.run_blocks(
                    model, samples, linears, recipe.needs, visit, sequential, settle
                )
            else:
                for name, linear in linears.items():
                    job.prune(name, linear, Stats())
        rows = [job.pending[name].row for name in linears]
        _commit(model, layers, job)
    kept = sum(item.nnz for item in job.pending.values())
    size = sum(linear.weight.numel() for linear in linears.values())
    job.pending.clear()
    calibrate.trim()
    facts: dict[str, float | int | str] = {
        "sparsity": 1 - kept / size,
        "linear_bytes": sum(row.nbytes for row in rows),
        "dense_linear_bytes": sum(row.dense_nbytes for row in rows),
        "calibration_tokens": job.tokens,
        **job.errors(),
        **({"experts_without_tokens": job.unseen} if job.unseen else {}),
        **left_dense(model, by_default=targets is None),
        "prune_s": time.perf_counter() - begin,
    }
    return Report(f"{label} {1 - kept / size:.0%} {shape}", rows, facts, host_facts(seed=seed))


def dense_(model: nn.Module) -> nn.Module:
    """Turns sparse layers back into nn.Linear, nn.Conv2d or Conv1D, in place; zeros and masks stay.

    What ``fuse_decode_`` did is taken back too.

    Raises:
        TamisTypeError: model is not a module.
        TamisValueError: Weights are offloaded.
    """
    check_model("dense_", model)
    check_in_memory("dense_", model)
    sparse = {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear)}
    swap(model, {name: (module, as_dense(module)) for name, module in sparse.items()})
    restack(model)
    for module in model.modules():
        unfused(module)
    return model


# What to prune


def _load(name: object) -> PruneRecipe:
    if not isinstance(name, str):
        raise TamisTypeError(
            f"sparsify_: method: got {type(name).__name__}, wanted a method's name or a "
            "PruneRecipe; see tamis.method.names()."
        )
    return method.load(name)


def _samples(
    label: str,
    recipe: PruneRecipe,
    data: Iterable[Any] | None,
    model: nn.Module,
    tokenizer: Any,
    max_length: int,
) -> list[Sample]:
    if not recipe.needs:
        return []
    if data is None:
        raise TamisValueError(
            f"sparsify_: data: got None, wanted calibration samples, which {label!r} needs; pass "
            "data=texts and tokenizer=, or use 'magnitude'."
        )
    return read_samples(data, model, tokenizer, max_length)


# Pruning


@dataclass
class _Pending:
    """A pruned layer that waits for the others."""

    row: LayerReport
    nnz: int
    module: SparseLinear | None  # None: the nn.Linear stays, with this weight and mask
    weight: Tensor | None = None
    keep: Tensor | None = None


@dataclass
class _Job:
    """Everything one call of sparsify_ decided, and the layers done so far."""

    recipe: PruneRecipe
    pattern: Pattern
    sparsity: dict[str, float]
    format: str
    dtype: str | None
    seed: int
    convs: dict[str, nn.Conv2d] = field(default_factory=dict)
    tick: Callable[[], None] = lambda: None
    tokens: int = 0
    unseen: int = 0  # experts' linears that no token of the data went to
    pending: dict[str, _Pending] = field(default_factory=dict)
    keeps: dict[str, Tensor] = field(default_factory=dict)  # of layers that wait for `recover`
    trained: list[tuple[float, float]] = field(
        default_factory=list
    )  # a block's error, before, after

    def visitor(self, linears: Mapping[str, nn.Linear]) -> calibrate.Visit:
        """Prunes the linears whose statistics are ready; hands back their weights."""

        def visit(stats: dict[str, Stats]) -> dict[str, Tensor]:
            self.tokens = max(self.tokens, *(item.tokens for item in stats.values()))
            self.unseen += sum(item.tokens == 0 for item in stats.values())
            return {name: self.prune(name, linears[name], stats[name]) for name in stats}

        return visit

    def prune(self, name: str, linear: nn.Linear, stats: Stats) -> Tensor:
        """The pruned weight [n, k] in the linear's dtype; the layer joins `pending`."""
        weight = linear.weight.detach()
        context = LinearContext(name, weight.float(), stats, self.seed)
        goal = Goal(self.pattern, self.sparsity[name])
        repaired, keep = apply(self.recipe, context, goal)
        if self.recipe.repair is not None:
            weight = repaired.to(weight.dtype)
        if self.recipe.recover is not None and self.recipe.needs:
            self.keeps[name] = keep
            return torch.where(keep, weight, torch.zeros((), dtype=weight.dtype))
        return self.finish(name, linear, weight, keep)

    def settler(self, linears: Mapping[str, nn.Linear]) -> calibrate.Settle | None:
        """Trains the pruned weights of a block, as the recipe says, and finishes its layers."""
        how = self.recipe.recover
        if how is None:
            return None
        bits = {"u4": 4, "u8": 8}.get(self.dtype or "")
        size = group_size(self.pattern)
        stored = partial(quantize.min_max, bits=bits, size=size) if bits else None

        def settle(run: calibrate.BlockRun | None, weights: dict[str, Tensor]) -> dict[str, Tensor]:
            keeps = {name: self.keeps.pop(name) for name in weights}
            if run is not None and weights:
                weights, before, after = reconstruct(run, linears, weights, keeps, how, stored)
                self.trained.append((before, after))
            return {
                name: self.finish(
                    name, linears[name], w.to(linears[name].weight.dtype), keeps[name]
                )
                for name, w in weights.items()
            }

        return settle

    def errors(self) -> dict[str, float]:
        """Mean squared error of the blocks before and after training, if any was trained."""
        if not self.trained:
            return {}
        before, after = (sum(each) / len(self.trained) for each in zip(*self.trained, strict=True))
        return {"block_error_before": before, "block_error_after": after}

    def finish(self, name: str, linear: nn.Linear, weight: Tensor, keep: Tensor) -> Tensor:
        """Masks the weight [n, k] and builds the layer that will take its place."""
        weight = torch.where(keep, weight, torch.zeros((), dtype=weight.dtype))
        self.pending[name] = _build(name, linear, weight, keep, self)
        self.tick()
        module = self.pending[name].module
        if module is not None and module.layout.quantized:
            return module.weight.to_dense().detach()  # what later blocks will see
        return weight


def _prune_globally(
    model: nn.Module, linears: dict[str, nn.Linear], samples: list[Sample], job: _Job
) -> None:
    """All layers' weights compete; statistics, if needed, come from the unpruned model."""
    stats: dict[str, Stats] = dict.fromkeys(linears, Stats())
    if job.recipe.needs:

        def visit(seen: dict[str, Stats]) -> dict[str, Tensor]:
            stats.update(seen)
            job.unseen += sum(item.tokens == 0 for item in seen.values())
            return {}

        calibrate.run_blocks(model, samples, linears, job.recipe.needs, visit, sequential=False)
        job.tokens = max(item.tokens for item in stats.values())

    def score(name: str) -> Tensor:
        weight = linears[name].weight.detach().float()
        values = job.recipe.score(LinearContext(name, weight, stats[name], job.seed))
        return select.block_scores(values, job.pattern)

    bound = select.global_threshold(
        lambda: (score(name) for name in linears), next(iter(job.sparsity.values()))
    )
    for name, linear in linears.items():
        keep = select.expand_blocks(bound(score(name)), job.pattern)
        job.finish(name, linear, linear.weight.detach(), keep)


def _build(name: str, linear: nn.Linear, weight: Tensor, keep: Tensor, job: _Job) -> _Pending:
    """The layer in the format that suits its mask best, or in the one asked for."""
    nnz = int(keep.sum())
    if name in job.convs and job.format != "dense":
        layouts = counted_layouts(linear.weight, keep, job.pattern)
        layout, reason = choose_conv(layouts, nnz / keep.numel(), job.format)
    else:
        layout, reason = _choose(linear, keep, job)
    if layout is None:
        row = describe(name, linear, reason=reason, sparsity=1 - nnz / keep.numel())
        return _Pending(row, nnz, None, weight, keep)
    module = compressed(linear, weight, keep, layout)
    if name in job.convs:
        module = SparseConv2d.from_layer(module, window_of(job.convs[name], "sparsify_"))
    return _Pending(describe(name, module, reason=reason), nnz, module)


def _choose(linear: nn.Linear, keep: Tensor, job: _Job) -> tuple[Layout | None, str]:
    """The layout to store the layer in (None: dense), and why."""
    if job.format == "dense":
        return None, "format='dense' was asked for"
    if job.format == "groupq":
        return _grouped(linear, job), "format='groupq' was asked for"
    layouts = counted_layouts(linear.weight, keep, job.pattern)
    if not layouts:
        return None, f"no sparse format holds {linear.weight.dtype}"
    own = layouts["bitmap"][0].dtype
    if job.dtype:
        layouts = {f: (replace(a, dtype=job.dtype), c) for f, (a, c) in layouts.items()}
    if job.format != "auto":
        return layouts[job.format][0], f"format={job.format!r} was asked for"
    return _cheapest(linear, layouts, own)


def _cheapest(
    linear: nn.Linear, layouts: Mapping[str, tuple[Layout, int]], own: str
) -> tuple[Layout | None, str]:
    """The layout expected to be fastest, dense (None) included, and why."""
    dense = linear.weight.numel() * linear.weight.element_size()
    bytes_of = {layout: layout.nbytes(count) for layout, count in layouts.values()}
    smallest = min(bytes_of, key=lambda layout: bytes_of[layout])
    share = bytes_of[smallest] / dense
    if share >= 1:
        return None, f"{smallest.label} would take {share:.2f} of the dense bytes"
    device = device_of(linear)
    smaller = [item for item in layouts.values() if bytes_of[item[0]] < dense]
    chosen = cost.fastest(smaller, device=device)
    layout, count = chosen or layouts[smallest.format]
    n, k = linear.weight.shape
    sparse_ns = cost.sparse_ns(layout, count, device=device)
    dense_ns = cost.dense_ns(own, n, k, device=device)
    if sparse_ns is not None and dense_ns is not None and sparse_ns > dense_ns:
        return None, f"dense is expected to be {sparse_ns / dense_ns:.2f} x as fast"
    taken = f"{bytes_of[layout] / dense:.2f} of the dense bytes"
    if device is not None:
        taken += tokens_of(layout, count, device)
    if layout is smallest:
        return layout, f"smallest format that holds the mask, {taken}"
    return layout, f"expected to be faster than {smallest.label}, which is smaller; {taken}"


def _grouped(linear: nn.Linear, job: _Job) -> Layout:
    n, k = linear.weight.shape
    return Layout("groupq", n, k, job.dtype or "u4", group_size=group_size(job.pattern))


def _commit(model: nn.Module, layers: Mapping[str, nn.Module], job: _Job) -> None:
    """Puts all pruned layers in place, or on an exception none: the only step that changes the model."""
    new: dict[str, nn.Module] = {n: item.module for n, item in job.pending.items() if item.module}
    for name in job.pending.keys() - new.keys():
        if "weight" not in layers[name]._parameters:  # a hook would make it anew, unpruned
            new[name] = holding_weight(layers[name])
    masked: list[tuple[Any, Tensor, Tensor | None]] = []
    for name, item in job.pending.items():
        if item.module is None and item.weight is not None and item.keep is not None:
            layer = new.get(name, layers[name])
            keep = as_own(layer, item.keep) if item.nnz < item.weight.numel() else None
            masked.append((layer, as_own(layer, item.weight), keep))
    with _held(masked):
        swap(model, {name: (layers[name], module) for name, module in new.items()})


@contextmanager
def _held(masked: Iterable[tuple[Any, Tensor, Tensor | None]]) -> Iterator[None]:
    """Gives (layer, weight, mask) to each layer; after an exception each has what it had before."""
    before = [(layer, layer.weight.data, getattr(layer, KEEP, None)) for layer, _, _ in masked]
    try:
        for layer, weight, keep in masked:
            layer.weight.data = weight
            if keep is not None:
                layer.register_buffer(KEEP, keep, persistent=False)
        yield
    except BaseException:
        for layer, weight, keep in before:
            layer.weight.data = weight
            if hasattr(layer, KEEP):
                delattr(layer, KEEP)
            if keep is not None:
                layer.register_buffer(KEEP, keep, persistent=False)
        raise


@contextmanager
def _bar(total: int, label: str, progress: bool | None) -> Iterator[Callable[[], None]]:
    """A progress bar over layers; yields what advances it."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="layer") as bar:
        yield lambda: bar.update() and None

"""Rewrites a model in place: prunes its linears and stores them compressed, or undoes it.

Nothing changes until everything has succeeded: new layers are built beside the old ones (whose
weights return after each block's second run) and swapped in at the end, so an exception at any
point leaves the model as it was. The price is memory for the compressed layers beside the dense
ones; a second dense copy exists only with format="dense".
"""

from __future__ import annotations

import re
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
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.layout import Layout
from tamis.model import family_of
from tamis.nn import SparseLinear
from tamis.ops import cost
from tamis.optimize import (
    FORMATS,
    as_linear,
    compressed,
    counted_layouts,
    describe,
    explain,
    optimize_,
    swap,
    tied,
)
from tamis.policy import allocate as allocation
from tamis.policy import quantize, select
from tamis.recipe import KEEP, Goal, LinearContext, Pattern, PruneRecipe, Stats, apply
from tamis.reconstruct import reconstruct
from tamis.report import LayerReport, Report, host_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["dense_", "explain", "optimize_", "sparsify_"]

DEFAULT_IGNORE = ("lm_head",)


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
    """Prunes the model's linears in place and stores them compressed; returns a Report.

    Args:
        model: Any torch model; of a known family (Llama, Qwen, Gemma, Mistral, OPT, BERT, ViT) the
            linears in its blocks are pruned, of others all but the output layer.
        method: Name of a method (`tamis.method.names()`) or a PruneRecipe.
        sparsity: Fraction of zeros, 0 <= sparsity < 1. An N:M pattern fixes its own.
        pattern: "unstructured", "N:M" (N kept of every M consecutive inputs) or "block:RxC"; None
            is the method's own, mostly unstructured.
        data: Calibration samples, for methods that need them: strings, token ids or dicts of model
            inputs. Text is cut to `max_length` tokens (or the model's positions); longer token ids
            are refused.
        tokenizer: For strings.
        targets: Layers to prune: exact names, "re:" and a pattern matched from the start of the
            name, or the class name "Linear".
        ignore: Layers to leave alone, spelled the same way.
        filter_fn: Called with (module, name); false leaves the layer alone.
        format: None is the method's own where the pattern suits it, else "auto", which takes the one expected to be fastest for one token, the smallest of those
            alike, dense included; "dense" keeps masked nn.Linear; "bitmap", "csr", "csr8", "nm",
            "block" force one, as does "groupq": groups of 16 inputs (32 under "block:1x32") as
            4-bit codes. With sparsity=0 that is plain W4, also for a head that targets name.
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
        format = recipe.format if shape == recipe.pattern or _in_groups(shape) else "auto"
    if format == "groupq" and dtype is None:
        dtype = "u4"
    linears = find_linears(model, targets, ignore, filter_fn)
    shares = _allocate(linears, shape, sparsity, allocate, recipe)
    job = _Job(recipe, shape, shares, format, dtype, seed)
    _check(linears, job)
    samples = _samples(label, recipe, data, model, tokenizer, max_length)
    with _bar(len(linears), label, progress) as tick:
        job.tick = tick
        if recipe.group == "global" and shape.kind != "nm":
            _prune_globally(model, linears, samples, job)
        elif recipe.needs:
            visit, settle = job.visitor(linears), job.settler(linears)
            calibrate.run_blocks(model, samples, linears, recipe.needs, visit, sequential, settle)
        else:
            for name, linear in linears.items():
                job.prune(name, linear, Stats())
    rows = [job.pending[name].row for name in linears]
    _commit(model, linears, job)
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
        "prune_s": time.perf_counter() - begin,
    }
    return Report(f"{label} {1 - kept / size:.0%} {shape}", rows, facts, host_facts(seed=seed))


def dense_(model: nn.Module) -> nn.Module:
    """Turns every SparseLinear back into nn.Linear, in place; zeros and masks stay.

    Raises:
        TamisTypeError: model is not a module.
    """
    _check_model("dense_", model)
    sparse = {n: m for n, m in model.named_modules() if isinstance(m, SparseLinear)}
    swap(model, {name: (module, as_linear(module)) for name, module in sparse.items()})
    return model


# What to prune


def parse_pattern(text: str) -> Pattern:
    """Pattern of "unstructured", "N:M" or "block:RxC".

    Raises:
        TamisValueError: The text is none of these, or its numbers are out of range.
    """
    if text == "unstructured":
        return Pattern()
    if found := re.fullmatch(r"(\d+):(\d+)", str(text)):
        keep, of = int(found[1]), int(found[2])
        if 1 <= keep <= of <= 32:
            return Pattern("nm", keep=keep, of=of)
    elif found := re.fullmatch(r"block:(\d+)x(\d+)", str(text)):
        rows, cols = int(found[1]), int(found[2])
        if rows >= 1 and cols >= 1:
            return Pattern("block", rows=rows, cols=cols)
    raise TamisValueError(
        f"sparsify_: pattern: got {text!r}, wanted 'unstructured', 'N:M' with 1 <= N <= M <= 32 "
        "(N weights kept of M) or 'block:RxC'; for example '2:4' or 'block:16x16'."
    )


def find_linears(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = DEFAULT_IGNORE,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> dict[str, nn.Linear]:
    """The nn.Linear modules that may be pruned, by name in model order.

    Output layers and weights shared with another module are left alone unless a target names them
    exactly.

    Raises:
        TamisTypeError: model is not a module, or targets or ignore is one string.
        TamisValueError: A target or ignore matches nothing, or nothing is left.
    """
    _check_model("sparsify_", model)
    linears = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    _check_names("targets", targets, linears)
    _check_names("ignore", () if tuple(ignore) == DEFAULT_IGNORE else ignore, linears)
    kept_dense = _kept_dense(model, linears, by_family=targets is None)
    wanted = targets if targets is not None else ("Linear",)
    found = {
        name: linear
        for name, linear in linears.items()
        if any(_names(key, name) for key in wanted)
        and (name in wanted or name not in kept_dense)
        and not any(_names(key, name) for key in ignore)
        and (filter_fn is None or filter_fn(linear, name))
    }
    if not found:
        have = any(isinstance(module, SparseLinear) for module in model.modules())
        fix = "call dense_ first: its linears are sparse already" if have else "widen targets"
        raise TamisValueError(
            f"sparsify_: targets: got no layer to prune among {len(linears)} nn.Linear, wanted at "
            f"least one; {fix}."
        )
    return found


def _kept_dense(model: nn.Module, linears: Mapping[str, nn.Module], by_family: bool) -> set[str]:
    """Linears left alone by default: tied, output layers, and those outside a family's blocks."""
    shared = tied(model)
    dense = {name for name, linear in linears.items() if linear in shared}
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    dense |= {name for name, linear in linears.items() if linear is head}
    family = family_of(model)
    if family is not None:
        dense |= {name for name in linears if name.rpartition(".")[2] in family.head}
    if family is not None and by_family:
        blocks = tuple(f"{name}." for name in family.find_blocks(model))
        dense |= {
            name
            for name in linears
            if not (name.startswith(blocks) and name.rpartition(".")[2] in family.linears)
        }
    return dense


def _names(key: str, name: str) -> bool:
    return key == "Linear" or allocation.matches(key, name)


def _check_names(argument: str, keys: Sequence[str] | None, names: Iterable[str]) -> None:
    if isinstance(keys, str):
        raise TamisTypeError(
            f"sparsify_: {argument}: got the string {keys!r}, wanted a list of names; "
            f"pass [{keys!r}]."
        )
    names = list(names)
    for key in keys or ():
        if not any(_names(key, name) for name in names):
            raise TamisValueError(
                f"sparsify_: {argument}: got {key!r}, wanted a name that some nn.Linear has, such "
                f"as {names[0] if names else 'none'!r}; correct it or prefix a pattern with 're:'."
            )


def _check_model(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"{function}: model: got {type(model).__name__}, wanted a torch.nn.Module; "
            "load it first."
        )


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
) -> list[calibrate.Sample]:
    if not recipe.needs:
        return []
    if data is None:
        raise TamisValueError(
            f"sparsify_: data: got None, wanted calibration samples, which {label!r} needs; pass "
            "data=texts and tokenizer=, or use 'magnitude'."
        )
    return calibrate.samples(data, model, tokenizer, max_length)


def _allocate(
    linears: Mapping[str, nn.Linear],
    pattern: Pattern,
    sparsity: float,
    how: str | Mapping[str, float],
    recipe: PruneRecipe,
) -> dict[str, float]:
    """Sparsity by layer."""
    if (
        isinstance(sparsity, bool)
        or not isinstance(sparsity, (int, float))
        or not 0 <= sparsity < 1
    ):
        raise TamisValueError(
            f"sparsify_: sparsity: got {sparsity!r}, wanted 0 <= sparsity < 1; it is the fraction "
            "of zeros."
        )
    shapes = {n: (m.out_features, m.in_features) for n, m in linears.items()}
    if how != "uniform" and (pattern.kind == "nm" or recipe.group == "global"):
        fixed = f"the pattern {pattern}" if pattern.kind == "nm" else "a global group"
        raise TamisValueError(
            f"sparsify_: allocate: got {how!r} with {fixed}, wanted 'uniform'; {fixed} decides "
            "every layer's sparsity itself."
        )
    if pattern.kind == "nm":
        own = 1 - pattern.keep / pattern.of
        if sparsity not in (0.5, own):  # 0.5 is the default
            raise TamisValueError(
                f"sparsify_: sparsity: got {sparsity} with pattern '{pattern}', wanted {own:g}; "
                "leave sparsity out or change N:M."
            )
        return allocation.uniform(shapes, own)
    if isinstance(how, Mapping):
        return allocation.given(shapes, sparsity, how)
    known = {"uniform": allocation.uniform, "erk": allocation.erk}
    if how not in known:
        raise TamisValueError(
            f"sparsify_: allocate: got {how!r}, wanted 'uniform', 'erk' or a dict of sparsities by "
            "layer name; correct it."
        )
    return known[how](shapes, sparsity)


def _check(linears: Mapping[str, nn.Linear], job: _Job) -> None:
    """Refuses what would fail later: formats, statistics, shapes and weights."""
    recipe, pattern = job.recipe, job.pattern
    if job.format not in ("auto", "dense", *FORMATS):
        raise TamisValueError(
            f"sparsify_: format: got {job.format!r}, wanted 'auto', 'dense' or one of "
            f"{', '.join(FORMATS)}; correct it."
        )
    grouped = job.format == "groupq"
    known = ("u4", "u8") if grouped else (None,) if job.format == "dense" else (None, "i8")
    if job.dtype not in known:
        raise TamisValueError(
            f"sparsify_: dtype: got {job.dtype!r} with format {job.format!r}, wanted None or, where "
            "weights are compressed, 'i8' (groupq: 'u4' or 'u8'); a model's own dtype is changed by "
            "model.to(dtype)."
        )
    if job.format in ("nm", "block") and pattern.kind != job.format:
        raise TamisValueError(
            f"sparsify_: format: got {job.format!r} with pattern '{pattern}', wanted a format that "
            "holds it; use 'auto'."
        )
    unknown = recipe.needs - calibrate.STATISTICS
    if unknown:
        raise TamisUnsupported(
            f"sparsify_: method: got needs {sorted(unknown)}, wanted some of "
            f"{sorted(calibrate.STATISTICS)}; only these are collected."
        )
    if recipe.group == "global" and (recipe.repair or "hessian" in recipe.needs):
        raise TamisUnsupported(
            "sparsify_: method: got a global group with a repair or Hessian, wanted scores that "
            "are known before anything is pruned; use a row or layer group."
        )
    for name, linear in linears.items():
        _check_layer(name, linear, pattern)
        if grouped and linear.in_features % _group_size(pattern):
            raise TamisValueError(
                f"sparsify_: format: got 'groupq' for {name} with {linear.in_features} inputs, wanted "
                f"a multiple of {_group_size(pattern)}; use ignore=[{name!r}]."
            )


def _check_layer(name: str, linear: nn.Linear, pattern: Pattern) -> None:
    n, k = linear.weight.shape
    if k % pattern.unit if pattern.unit else False:
        raise TamisValueError(
            f"sparsify_: pattern: got '{pattern}' for {name} with {k} inputs, wanted a multiple of "
            f"{pattern.unit}; use another pattern or ignore=[{name!r}]."
        )
    if n % pattern.rows:
        raise TamisValueError(
            f"sparsify_: pattern: got '{pattern}' for {name} with {n} outputs, wanted a multiple "
            f"of {pattern.rows}; use another pattern or ignore=[{name!r}]."
        )
    if linear.weight.is_meta or not linear.weight.is_floating_point():
        raise TamisTypeError(
            f"sparsify_: {name}: got a weight on {linear.weight.device.type} of "
            f"{linear.weight.dtype}, wanted floating-point values; load the model's weights first."
        )
    if not bool(linear.weight.isfinite().all()):
        raise TamisValueError(
            f"sparsify_: {name}: got weights that are NaN or infinite, wanted finite ones; repair "
            f"the checkpoint or ignore=[{name!r}]."
        )


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
    tick: Callable[[], None] = lambda: None
    tokens: int = 0
    pending: dict[str, _Pending] = field(default_factory=dict)
    keeps: dict[str, Tensor] = field(default_factory=dict)  # of layers that wait for `recover`
    trained: list[tuple[float, float]] = field(
        default_factory=list
    )  # a block's error, before, after

    def visitor(self, linears: Mapping[str, nn.Linear]) -> calibrate.Visit:
        """Prunes the linears whose statistics are ready; hands back their weights."""

        def visit(stats: dict[str, Stats]) -> dict[str, Tensor]:
            self.tokens = max(self.tokens, *(item.tokens for item in stats.values()))
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
        size = _group_size(self.pattern)
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
    model: nn.Module, linears: dict[str, nn.Linear], samples: list[calibrate.Sample], job: _Job
) -> None:
    """All layers' weights compete; statistics, if needed, come from the unpruned model."""
    stats: dict[str, Stats] = dict.fromkeys(linears, Stats())
    if job.recipe.needs:

        def visit(seen: dict[str, Stats]) -> dict[str, Tensor]:
            stats.update(seen)
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
    layout, reason = _choose(name, linear, nnz, keep, job)
    if layout is None:
        row = describe(name, linear, reason=reason, sparsity=1 - nnz / keep.numel())
        return _Pending(row, nnz, None, weight, keep)
    module = compressed(linear, weight, keep, layout)
    return _Pending(describe(name, module, reason=reason), nnz, module)


def _choose(
    name: str, linear: nn.Linear, nnz: int, keep: Tensor, job: _Job
) -> tuple[Layout | None, str]:
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
    chosen = cost.fastest(item for item in layouts.values() if bytes_of[item[0]] < dense)
    layout, count = chosen or layouts[smallest.format]
    n, k = linear.weight.shape
    sparse_ns, dense_ns = cost.sparse_ns(layout, count), cost.dense_ns(own, n, k)
    if sparse_ns is not None and sparse_ns > dense_ns:
        return None, f"dense is expected to be {sparse_ns / dense_ns:.2f} x as fast"
    taken = f"{bytes_of[layout] / dense:.2f} of the dense bytes"
    if layout is smallest:
        return layout, f"smallest format that holds the mask, {taken}"
    return layout, f"expected to be faster than {smallest.label}, which is smaller; {taken}"


def _grouped(linear: nn.Linear, job: _Job) -> Layout:
    n, k = linear.weight.shape
    return Layout("groupq", n, k, job.dtype or "u4", group_size=_group_size(job.pattern))


def _in_groups(pattern: Pattern) -> bool:
    """Whether whole groups of groupq are kept or dropped."""
    return pattern.kind == "block" and pattern.rows == 1 and pattern.cols % 16 == 0


def _group_size(pattern: Pattern) -> int:
    """Columns of a groupq group that suit the pattern."""
    return 32 if pattern.kind == "block" and pattern.cols % 32 == 0 else 16


def _commit(model: nn.Module, linears: Mapping[str, nn.Linear], job: _Job) -> None:
    """Puts all pruned layers in place: the only step that changes the model."""
    sparse = {n: (linears[n], item.module) for n, item in job.pending.items() if item.module}
    swap(model, sparse)
    for name, item in job.pending.items():
        if item.module is None and item.weight is not None:
            linears[name].weight.data = item.weight
            if item.nnz < item.weight.numel():
                linears[name].register_buffer(KEEP, item.keep, persistent=False)


@contextmanager
def _bar(total: int, label: str, progress: bool | None) -> Iterator[Callable[[], None]]:
    """A progress bar over layers; yields what advances it."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="layer") as bar:
        yield lambda: bar.update() and None

"""optimize_ and explain: the winner is never worse than dense, and nothing changes by accident."""

import pytest
import torch
from tiny import inputs, logits, tiny
from torch import nn

from tamis import formats, optimize, timing
from tamis.errors import TamisTypeError, TamisValueError
from tamis.formats import holding_layouts
from tamis.nn import SparseLinear
from tamis.ops import entry
from tamis.optimize import explain, optimize_
from tamis.recipe import KEEP, Pattern
from tamis.rewrite import sparsify_


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "ROUND_S", 1e-4)
    monkeypatch.setattr(timing, "_cache_bytes", lambda: 1 << 16)


def pruned(sparsity, format="dense", pattern="unstructured"):
    model = tiny("llama")
    sparsify_(model, "magnitude", sparsity=sparsity, format=format, pattern=pattern)
    return model


def kinds(model):
    return {
        n: type(m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, SparseLinear))
    }


@pytest.mark.parametrize("objective", ["latency", "bytes"])
@pytest.mark.parametrize("format", ["dense", "bitmap", "csr"])
def test_result_computes_the_same(objective, format):
    model = pruned(0.6, format)
    sample = inputs("llama")[0]
    wanted = logits(model, sample)
    report = optimize_(model, objective)
    assert float((logits(model, sample) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    for row in report.layers:
        layer = model.get_submodule(row.name)
        sparse = isinstance(layer, SparseLinear)
        assert row.format == (layer.layout.label if sparse else "dense f32")
        if objective == "bytes":
            assert row.nbytes <= row.dense_nbytes
        elif row.measured_ms is not None:
            assert row.measured_ms <= row.dense_ms
            assert row.memory_limit > 0


def test_bytes_takes_the_smallest():
    model = pruned(0.97)
    rows = {row.name: row for row in optimize_(model, "bytes").layers}
    for name, row in rows.items():
        if row.sparsity == 0:
            continue
        layer = model.get_submodule(name)
        dense = layer.to_linear()
        sizes = holding_layouts(dense.weight, torch.as_tensor(layer.matrix.keep()))
        assert row.nbytes == min(nbytes for _, nbytes in sizes.values())


def test_dense_wins_where_sparse_would_be_larger():
    model = pruned(0.04, "bitmap")
    optimize_(model, "bytes")
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert hasattr(model.model.layers[0].mlp.up_proj, KEEP)


def test_never_slower_than_dense(monkeypatch):
    """The choice follows the clock: the cheapest wins, dense where it is, others by min_gain."""
    costs = {"dense": 2.0, "bitmap": 3.0, "csr": 4.0}
    monkeypatch.setattr(timing.Bench, "times", lambda self, candidates: dict(costs))
    model = pruned(0.8, "bitmap")
    report = optimize_(model)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert all("no format is faster" in row.reason for row in report.layers if row.sparsity)
    costs.update(csr=1.9)
    optimize_(model, min_gain=0.2)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    report = optimize_(model)
    assert model.model.layers[0].mlp.up_proj.layout.format == "csr"
    assert report.layers[0].measured_ms == 1.9
    assert report.layers[0].dense_ms == 2.0
    assert report.layers[0].reason.startswith("fastest: csr")


def test_wrong_candidates_are_out():
    model = pruned(0.8)
    up = model.model.layers[0].mlp.up_proj
    candidates = optimize._candidates(up)
    with torch.no_grad():
        candidates["csr"].weight_values.mul_(1.01)
    times = timing.Bench(1, 0, 1 << 16).times(candidates)
    assert "csr" not in times
    assert {"dense", "bitmap"} <= set(times)


def test_layers_without_zeros_stay():
    model = tiny("llama")
    before = kinds(model)
    report = optimize_(model)
    assert kinds(model) == before
    assert all("no zeros" in row.reason for row in report.layers)


def test_tied_layers_stay():
    model = tiny("opt")
    with torch.no_grad():
        model.lm_head.weight[:, ::2] = 0
    report = optimize_(model, "bytes")
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    assert "shared with another module" in report.layers[-1].reason


def test_ignored_layers_stay():
    model = pruned(0.97)
    name = "model.layers.0.mlp.up_proj"
    report = optimize_(model, "bytes", ignore=[name])
    assert isinstance(model.get_submodule(name), nn.Linear)
    assert name not in [row.name for row in report.layers]


def test_failure_changes_nothing(monkeypatch):
    model = pruned(0.9)
    before = kinds(model)
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 5:
            raise MemoryError
        return {"dense": 2.0, "bitmap": 1.0, "csr": 1.5}

    monkeypatch.setattr(timing.Bench, "times", failing)
    with pytest.raises(MemoryError):
        optimize_(model)
    assert kinds(model) == before


def test_alike_layers_share_a_measurement(monkeypatch):
    count = []
    measure = timing.Bench._measure
    monkeypatch.setattr(
        timing.Bench, "_measure", lambda self, *args: count.append(1) or measure(self, *args)
    )
    optimize_(pruned(0.5))
    assert len(count) == 4  # [32, 32], [16, 32], [64, 32], [32, 64]


@pytest.mark.parametrize(
    ("pattern", "format"), [("2:4", "nm"), ("1:8", "nm"), ("block:8x16", "block")]
)
def test_patterns_are_found_in_masks(pattern, format):
    model = pruned(0.5, "dense", pattern)
    up = model.model.layers[0].mlp.up_proj
    layouts = holding_layouts(up.weight, getattr(up, KEEP))
    assert {"bitmap", "csr", format} <= set(layouts)
    for layout, nbytes in layouts.values():
        made = formats.compressed(up, up.weight.detach(), getattr(up, KEEP), layout)
        assert made.nbytes == nbytes
        assert torch.equal(made.weight.to_dense(), up.weight)
    optimize_(model, "bytes")
    assert model.model.layers[0].mlp.up_proj.layout.format == format


def test_unstructured_masks_have_no_pattern():
    keep = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    assert formats._pattern_in(keep, int(keep.sum())) == Pattern()


def test_explain_changes_nothing_and_names_every_linear():
    model = pruned(0.5, "bitmap")
    before = kinds(model)
    report = explain(model)
    assert [row.name for row in report.layers] == list(before)
    assert kinds(model) == before
    up = next(row for row in report.layers if row.name.endswith("0.mlp.up_proj"))
    assert up.format == "bitmap f32"
    assert up.sparsity == 0.5
    assert up.kernel.startswith("spmm_bitmap_f32")
    assert up.predicted_ms > 0
    assert up.measured_ms is None
    head = report.layers[-1]
    assert head.format == "dense f32"
    assert "no zeros" in head.reason
    timed = explain(model, measure=True)
    assert all(row.measured_ms > 0 and row.dense_ms > 0 for row in timed.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "speed"}, "objective: got 'speed', wanted 'latency' or 'bytes'"),
        ({"ignore": ["nope"]}, "ignore: got 'nope', wanted the name of a linear layer"),
        ({"tokens": 0}, "tokens: got 0"),
        ({"min_gain": 1.0}, "min_gain: got 1.0"),
    ],
)
def test_bad_arguments_get_a_sentence(options, message):
    with pytest.raises(TamisValueError, match=message):
        optimize_(tiny("llama"), **options)


def test_models_that_are_none():
    for function in (optimize_, explain):
        with pytest.raises(TamisTypeError, match="model: got str"):
            function("model")


def test_times_leave_out_the_first_call_of_a_copy(monkeypatch):
    """A layer's first call checks its arrays and costs several times the product."""
    inside, made_while_timing = [], []
    seconds, make = timing._seconds, entry.make_matrix

    def timed(modules, x, at, calls):
        inside.append(True)
        try:
            return seconds(modules, x, at, calls)
        finally:
            inside.pop()

    def made(layout, arrays, **options):
        made_while_timing.extend(inside)
        return make(layout, arrays, **options)

    monkeypatch.setattr(timing, "_seconds", timed)
    monkeypatch.setattr(entry, "make_matrix", made)
    up = pruned(0.8, "bitmap").model.layers[0].mlp.up_proj
    assert "bitmap" in timing.Bench(1, 0, 1 << 16).times(optimize._candidates(up))
    assert not made_while_timing

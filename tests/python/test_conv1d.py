"""Conv1D of transformers: pruned, stored, trained and given back as what it is."""

import pytest
import torch
import transformers
from tiny import inputs, logits, tiny
from transformers.pytorch_utils import Conv1D

import tamis
from tamis.nn import SparseLinear
from tamis.recipe import KEEP
from tamis.train import MaskGuard

NAME = "transformer.h.1.mlp.c_fc"  # [in 32, out 128]
SHAPES = [(96, 32), (32, 32), (128, 32), (32, 128)]  # of a block's layers, [out, in]


@pytest.fixture(autouse=True)
def _no_bars():
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def near(model, wanted):
    got = logits(model, inputs("gpt2")[0])
    return float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def pruned(**options):
    model = tiny("gpt2")
    report = tamis.sparsify_(model, "wanda", sparsity=0.6, data=inputs("gpt2"), **options)
    return model, report, logits(model, inputs("gpt2")[0])


def test_rows_have_the_shape_of_the_matrix_and_leave_nothing_out():
    model, report, _ = pruned(format="bitmap")
    for report in (report, tamis.explain(model, measure=True)):  # noqa: B020
        rows = [row for row in report.layers if row.name != "lm_head"]
        assert [row.shape for row in rows] == SHAPES * 3
        assert all(row.format == "bitmap f32" for row in rows)
        assert "left_dense" not in report.metrics
    assert all(row.format == "dense f32" for row in tamis.explain(tiny("gpt2")).layers)


@pytest.mark.parametrize("format", ["bitmap", "dense"])
def test_every_way_to_disk_and_back(tmp_path, format):
    model, _, wanted = pruned(format=format)
    tamis.save(model, tmp_path / "saved")
    tamis.export(model, tmp_path / "dense")
    tamis.convert(tmp_path / "saved", tmp_path / "converted", format="dense")
    tamis.convert(tmp_path / "dense", tmp_path / "again", format="bitmap")
    loaded = tamis.load(tmp_path / "saved")
    assert isinstance(loaded.get_submodule(NAME), Conv1D if format == "dense" else SparseLinear)
    into = tamis.load(tmp_path / "saved", model=tiny("gpt2", seed=5))
    again = tamis.load(tmp_path / "again")
    assert isinstance(again.get_submodule(NAME), SparseLinear)
    for folder in ("dense", "converted"):
        stock = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / folder)
        assert type(stock.get_submodule(NAME)) is Conv1D
        assert near(stock.eval(), wanted)
    for found in (loaded, into, again):
        assert near(found, wanted)
        assert type(tamis.dense_(found).get_submodule(NAME)) is Conv1D
        assert near(found, wanted)


def test_dense_and_optimize_give_conv1d_back():
    model, _, wanted = pruned(format="csr")
    tamis.dense_(model)
    layer = model.get_submodule(NAME)
    assert type(layer) is Conv1D
    assert layer.weight.shape == getattr(layer, KEEP).shape == (32, 128)
    assert torch.equal(layer.weight != 0, getattr(layer, KEEP))
    assert near(model, wanted)
    tamis.optimize_(model, "bytes")
    assert model.get_submodule(NAME).layout.format == "bitmap"
    tamis.optimize_(model, "bytes", min_gain=0.99)
    assert type(model.get_submodule(NAME)) is Conv1D
    assert near(model, wanted)


def test_a_guard_holds_the_zeros_of_a_conv1d():
    model, _, _ = pruned(format="dense")
    zeros = {n: m.weight == 0 for n, m in model.named_modules() if isinstance(m, Conv1D)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = MaskGuard(model, optimizer)
    assert guard.masks.keys() == zeros.keys()
    sample = inputs("gpt2")[0]
    model(**sample, labels=sample["input_ids"]).loss.backward()
    optimizer.step()
    for name, zero in zeros.items():
        assert torch.equal(model.get_submodule(name).weight == 0, zero)


def test_hooks_and_names_stay_and_a_failure_changes_nothing(monkeypatch):
    model, called = tiny("gpt2"), []
    layer = model.get_submodule(NAME)
    layer.register_forward_hook(lambda *_: called.append(1))
    monkeypatch.setattr(tamis.rewrite, "_build", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tamis.sparsify_(model, "wanda", data=inputs("gpt2"))
    assert model.get_submodule(NAME) is layer
    monkeypatch.undo()
    tamis.sparsify_(model, "magnitude", targets=["Conv1D"], format="bitmap")
    called.clear()
    logits(model, inputs("gpt2")[0])
    assert called == [1]

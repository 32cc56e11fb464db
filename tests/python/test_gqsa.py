"""gqsa and plain W4 end to end on a tiny model: groups, training of the blocks, heads, files."""

import pytest
import torch
from tiny import inputs, logits, tiny

import tamis
from tamis import rewrite
from tamis.errors import TamisValueError
from tamis.nn import SparseLinear
from tamis.recipe import Pattern, PruneRecipe, Reconstruct
from tamis.rewrite import sparsify_
from tamis.scope import find_linears


def prune(model, data, steps=24, lr=3e-3, **options):
    """gqsa with training that fits a tiny model."""
    recipe = tamis.method.load("gqsa")
    short = PruneRecipe(
        **{f: getattr(recipe, f) for f in recipe.__dataclass_fields__ if f != "recover"},
        recover=Reconstruct(steps=steps, samples=4, lr=lr) if steps else None,
    )
    return sparsify_(model, short, data=data, progress=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_lowers_the_error_of_every_block(dtype):
    data, model = inputs("llama"), tiny("llama").to(dtype)
    report = prune(model, data)
    before, after = (report.metrics[f"block_error_{when}"] for when in ("before", "after"))
    assert after < 0.7 * before
    for row in report.layers:
        layer = model.get_submodule(row.name)
        assert row.format == "groupq u4 g16"
        assert layer.matrix.sparsity == pytest.approx(0.5, abs=0.01)
        assert layer.weight.dtype == dtype
        assert bool(logits(model, data[0]).isfinite().all())


def test_training_keeps_the_mask_and_moves_the_weights():
    data = inputs("llama")
    plain, trained = tiny("llama"), tiny("llama")
    prune(plain, data, steps=0, sequential=False)
    prune(trained, data, sequential=False)
    for name in find_linears(tiny("llama")):
        a, b = plain.get_submodule(name), trained.get_submodule(name)
        assert torch.equal(a.weight_mask, b.weight_mask)
        assert not torch.equal(a.weight.to_dense(), b.weight.to_dense())


def test_later_blocks_see_the_stored_weights(monkeypatch):
    seen = {}
    finish = rewrite._Job.finish

    def spy(job, name, *rest):
        seen[name] = finish(job, name, *rest)
        return seen[name]

    monkeypatch.setattr(rewrite._Job, "finish", spy)
    model = tiny("llama")
    prune(model, inputs("llama"), steps=2)
    assert len(seen) == len(find_linears(tiny("llama")))
    for name, weight in seen.items():
        assert torch.equal(weight, model.get_submodule(name).weight.to_dense())


def test_plain_w4_of_a_head_and_its_files(tmp_path):
    data, model = inputs("llama"), tiny("llama").bfloat16()
    dense = model.lm_head.weight.detach().clone()
    report = sparsify_(
        model, "magnitude", sparsity=0, format="groupq", targets=["lm_head"], ignore=[]
    )
    assert [row.name for row in report.layers] == ["lm_head"]
    head = model.lm_head
    assert isinstance(head, SparseLinear)
    assert head.nnz == dense.numel()
    step = head.weight_scales[:, 0].float().max()
    assert (head.weight.to_dense().float() - dense.float()).abs().max() <= 0.52 * step
    tamis.save(model, tmp_path / "w4")
    again = tamis.load(tmp_path / "w4", model=tiny("llama", seed=1).bfloat16())
    assert torch.equal(logits(again, data[0]), logits(model, data[0]))


def test_eight_bits_and_groups_of_thirty_two():
    model = tiny("llama")
    report = prune(model, inputs("llama"), steps=2, pattern="block:1x32", dtype="u8")
    assert {row.format for row in report.layers} == {"groupq u8 g32"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"format": "groupq", "dtype": "i8"}, "dtype: got 'i8' with format 'groupq'"),
        ({"format": "bitmap", "dtype": "u4"}, "dtype: got 'u4' with format 'bitmap'"),
    ],
)
def test_formats_and_codes_must_fit(options, text):
    with pytest.raises(TamisValueError, match=text):
        sparsify_(tiny("llama"), "magnitude", **options)


def test_the_callers_pattern_and_format_come_first():
    model = tiny("llama")
    report = prune(model, inputs("llama"), steps=2, pattern="2:4")
    # Which of the two is faster depends on the host's kernels.
    assert {row.format for row in report.layers} <= {"2:4 f32", "bitmap f32"}
    assert tamis.method.load("gqsa").pattern == Pattern("block", rows=1, cols=16)

"""sparsify_, dense_: exact masks, equal logits."""

import copy

import numpy as np
import pytest
import torch
import transformers
from host import WIDE
from tiny import FAMILIES, GROUPED, VIT, inputs, logits, tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

import tamis
from tamis import rewrite
from tamis.formats import as_linear
from tamis.nn import SparseLinear
from tamis.policy import score, select
from tamis.recipe import KEEP, PruneRecipe
from tamis.rewrite import dense_, sparsify_
from tamis.scope import find_linears

METHODS = tamis.method.names()


def layers(model):
    """Every linear and sparse layer; a Conv1D as nn.Linear on its memory."""
    kinds = (nn.Linear, SparseLinear, Conv1D)
    found = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    return {n: as_linear(m) if isinstance(m, Conv1D) else m for n, m in found.items()}


def weight_of(layer):
    dense = layer.weight.to_dense() if isinstance(layer, SparseLinear) else layer.weight
    return dense.detach()


def keep_of(layer):
    if isinstance(layer, SparseLinear):
        return torch.as_tensor(layer.matrix.keep())
    return getattr(layer, KEEP)


# the main law


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sparse_model_is_the_masked_dense_model(family, method):
    data = inputs(family)
    masked, sparse = tiny(family), tiny(family)
    dense = {name: layer.weight.clone() for name, layer in layers(masked).items()}
    sparsify_(masked, method, data=data, format="dense")
    report = sparsify_(sparse, method, data=data)
    chosen = list(find_linears(tiny(family)))
    assert [row.name for row in report.layers] == chosen
    for name, layer in layers(sparse).items():
        assert isinstance(layer, SparseLinear) == (name in chosen)
        twin = layers(masked)[name]
        if name not in chosen:
            assert torch.equal(layer.weight, dense[name])
            continue
        keep = keep_of(layer)
        assert torch.equal(keep, keep_of(twin))
        n, k = keep.shape
        if method in ("sparsegpt", "alps"):
            assert int(keep.sum()) == n * k - n * k // 2
        else:
            assert keep.sum(1).tolist() == [k - k // 2] * n
            assert torch.equal(weight_of(layer)[keep], dense[name][keep])
        assert bool((weight_of(layer)[~keep] == 0).all())
        assert torch.equal(weight_of(layer), weight_of(twin))
    for sample in inputs(family, seed=9):
        wanted, got = logits(masked, sample), logits(sparse, sample)
        assert float((wanted - got).abs().max()) <= 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("format", ["auto", "bitmap", "csr"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sparsity_zero_changes_nothing(family, format):
    model, data = tiny(family), inputs(family)
    wanted = [logits(model, sample) for sample in data]
    report = sparsify_(model, "sparsegpt", sparsity=0.0, data=data, format=format)
    assert all(row.sparsity == 0 for row in report.layers)
    if format == "auto":
        assert not any(isinstance(layer, SparseLinear) for layer in layers(model).values())
        assert all("of the dense bytes" in row.reason for row in report.layers)
    for sample, logit in zip(data, wanted, strict=True):
        assert float((logits(model, sample) - logit).abs().max()) <= 1e-4 * float(logit.abs().max())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "magnitude_global"])
# Which format holds such weights faster depends on the host's kernels.
@pytest.mark.parametrize(
    ("pattern", "formats"),
    [
        ("2:4", ["nm"] if WIDE else ["nm", "bitmap"]),
        ("1:8", ["nm", "csr8"] if WIDE else ["nm", "csr8", "csr", "bitmap"]),
        ("block:8x16", ["block"]),
    ],
)
def test_patterns(method, pattern, formats):
    model = tiny("llama")
    report = sparsify_(model, method, pattern=pattern, data=inputs("llama"))
    for row in report.layers:
        layer = model.get_submodule(row.name)
        keep = keep_of(layer)
        n, k = keep.shape
        assert layer.layout.format in formats
        if "nm" in formats:
            kept, of = map(int, pattern.split(":"))
            assert set(keep.reshape(-1, of).sum(1).tolist()) == {kept}
            assert row.sparsity == pytest.approx(1 - kept / of)
        else:
            blocks = keep.reshape(n // 8, 8, k // 16, 16).sum((1, 3))
            assert set(blocks.flatten().tolist()) == {0, 128}
            assert int((blocks == 0).sum()) == blocks.numel() // 2


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_generate_with_cache_batches_and_left_padding(family):
    masked, sparse, data = tiny(family), tiny(family), inputs(family)
    sparsify_(masked, "wanda", data=data, format="dense")
    sparsify_(sparse, "wanda", data=data)
    alone = {"input_ids": data[0]["input_ids"][:1]}
    for batch in (alone, data[0]):
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        got = sparse.generate(**batch, **options)
        assert torch.equal(got, masked.generate(**batch, **options))
        assert got.shape[1] > batch["input_ids"].shape[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_values(dtype):
    model = tiny("llama").to(dtype)
    before = {name: layer.weight.clone() for name, layer in layers(model).items()}
    report = sparsify_(model, "wanda", data=inputs("llama"))
    for row in report.layers:
        layer = model.get_submodule(row.name)
        keep = keep_of(layer)
        assert layer.weight.dtype == dtype
        assert torch.equal(weight_of(layer)[keep], before[row.name][keep])
        assert row.nbytes < row.dense_nbytes


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:4x16"])
def test_int8_values_are_the_masked_ones_within_half_a_step(pattern, method, tmp_path):
    data, options = inputs("llama"), {"pattern": pattern, "sequential": False}
    exact, model = tiny("llama"), tiny("llama").bfloat16()
    exact.load_state_dict(model.state_dict())
    sparsify_(exact, method, data=data, format="dense", **options)
    report = sparsify_(model, method, data=data, dtype="i8", **options)
    for row in report.layers:
        layer = model.get_submodule(row.name)
        assert layer.layout.dtype == "i8"
        assert "_i8_bf16_" in row.kernel
        assert layer.weight.dtype == torch.bfloat16
        assert row.nbytes < 2 * layer.weight.shape.numel()
        if method == "magnitude":  # scores and repairs of others see activations in bf16
            wanted = exact.get_submodule(row.name).weight.detach()
            codes = layer.matrix.to_dense().float()
            step = wanted.abs().amax(1, keepdim=True) / 127
            assert bool(((codes - wanted).abs() <= 0.5001 * step).all())
    tamis.save(model, tmp_path / "i8")
    again = tamis.load(tmp_path / "i8", model=tiny("llama", seed=1).bfloat16())
    assert torch.equal(logits(again, data[0]), logits(model, data[0]))


def test_later_blocks_see_the_int8_weights(monkeypatch):
    seen = {}
    finish = rewrite._Job.finish

    def spy(job, name, *rest):
        seen[name] = finish(job, name, *rest)
        return seen[name]

    monkeypatch.setattr(rewrite._Job, "finish", spy)
    model = tiny("llama")
    sparsify_(model, "wanda", data=inputs("llama"), dtype="i8")
    assert seen
    for name, weight in seen.items():
        assert torch.equal(weight, weight_of(model.get_submodule(name)))


def test_dense_undoes_and_keeps_the_mask():
    model, data = tiny("qwen2"), inputs("qwen2")
    sparsify_(model, "wanda", data=data)
    wanted = logits(model, data[0])
    keeps = {n: keep_of(m) for n, m in layers(model).items() if isinstance(m, SparseLinear)}
    assert dense_(model) is model
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert keeps
    for name, keep in keeps.items():
        assert torch.equal(getattr(model.get_submodule(name), KEEP), keep)
    assert float((logits(model, data[0]) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    assert not any(KEEP in name for name in model.state_dict())


def test_training_mode_gradients_and_bias_survive():
    model = tiny("qwen2").train()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    bias = model.model.layers[0].self_attn.q_proj.bias.detach().clone()
    sparsify_(model, "magnitude")
    assert all(module.training for module in model.modules())
    q = model.model.layers[0].self_attn.q_proj
    assert torch.equal(q.bias, bias)
    assert not q.weight_values.requires_grad
    assert model.model.layers[1].self_attn.q_proj.weight_values.requires_grad


# which layers


def test_tied_weights_and_heads_stay():
    model = tiny("opt")
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    sparsify_(model, "magnitude", ignore=[])
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    other = tiny("llama")
    assert not any("lm_head" in name for name in find_linears(other, ignore=[]))
    assert not any("lm_head" in name for name in find_linears(other, ["Linear"], []))
    assert list(find_linears(other, ["lm_head"], [])) == ["lm_head"]


def test_targets_ignore_and_filter():
    model = tiny("llama")
    found = find_linears(model, [r"re:.*mlp\..*proj$", "model.layers.0.self_attn.q_proj"])
    assert len(found) == 10
    found = find_linears(model, [r"re:.*mlp"], ["re:.*down_proj", "model.layers.1.mlp.up_proj"])
    assert len(found) == 5
    found = find_linears(model, filter_fn=lambda module, name: module.in_features == 64)
    assert [name.rpartition(".")[2] for name in found] == ["down_proj"] * 3


def test_shared_module_is_replaced_everywhere():
    shared = nn.Linear(8, 8, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(3, 8)
    sparsify_(model, "magnitude", format="bitmap")
    assert model[0] is model[2]
    assert isinstance(model[0], SparseLinear)
    assert model(x).shape == (3, 8)


def test_allocation_reaches_the_layers():
    model = tiny("llama")
    shares = {"re:.*down_proj": 0.75, "model.layers.0.mlp.up_proj": 0.0}
    report = sparsify_(model, "magnitude_layer", sparsity=0.25, allocate=shares, format="dense")
    for row in report.layers:
        wanted = 0.75 if "down" in row.name else 0.0 if "0.mlp.up" in row.name else 0.25
        assert row.sparsity == pytest.approx(wanted, abs=1e-3)


def test_erk_is_exact_over_the_model():
    model = tiny("llama")
    size = sum(linear.weight.numel() for linear in find_linears(model).values())
    report = sparsify_(model, "magnitude_layer", sparsity=0.63, allocate="erk", format="dense")
    dropped = sum(
        int((~keep_of(model.get_submodule(r.name))).sum()) for r in report.layers if r.sparsity
    )
    assert dropped == int(np.floor(round(0.63 * size, 6)))
    assert len({round(row.sparsity, 3) for row in report.layers}) > 1


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"x_sq"})])
def test_global_group_is_one_list(needs):
    model, data = tiny("llama"), inputs("llama")
    chosen = score.wanda if needs else score.magnitude
    recipe = PruneRecipe(score=chosen, select=select.keep_largest, group="global", needs=needs)
    names = list(find_linears(model))
    from test_calibrate import whole_pass

    seen = whole_pass(model, data, names)
    values = []
    for name in names:
        weight = model.get_submodule(name).weight.detach().abs().numpy()
        rms = np.sqrt((seen[name] ** 2).mean(0)).astype(np.float32)
        values.append((weight * rms if needs else weight).ravel())
    flat = np.concatenate(values)
    keep = np.ones(len(flat), bool)
    keep[np.argsort(flat, kind="stable")[: int(0.4 * len(flat))]] = False
    sparsify_(model, recipe, sparsity=0.4, data=data, format="bitmap")
    got = np.concatenate([keep_of(model.get_submodule(n)).numpy().ravel() for n in names])
    assert got.sum() == keep.sum()
    # scores of near-equal weights may swap where statistics were summed in another order
    assert (got != keep).sum() <= (0 if not needs else 2)


# reports


def test_reports_name_the_weights_that_stay_out_of_reach():
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=4)
    model = transformers.MixtralForCausalLM(config)
    for layer in model.model.layers:  # no longer what transformers' experts say of themselves
        del layer.mlp.experts.is_transposed
    experts = 3 * 4 * 3 * 32 * 64 * 4  # layers, experts, gate, up and down, f32
    for report in (sparsify_(model, "magnitude", format="bitmap"), tamis.explain(model)):
        assert report.metrics["left_dense"] == "MixtralExperts"
        assert report.metrics["left_dense_bytes"] == experts
    assert "left_dense" not in sparsify_(tiny("gemma2"), "magnitude").metrics


def test_report_says_what_was_done():
    model = tiny("llama").to(torch.bfloat16)
    report = sparsify_(model, "wanda", data=inputs("llama"), seed=5)
    assert "wanda" in report.title
    assert "50%" in report.title
    assert report.host["seed"] == "5"
    assert report.metrics["calibration_tokens"] == 54
    assert report.metrics["linear_bytes"] == sum(row.nbytes for row in report.layers)
    for row in report.layers:
        layer = model.get_submodule(row.name)
        assert row.shape == (layer.out_features, layer.in_features)
        assert row.nbytes == layer.nbytes
        assert row.format == "bitmap bf16"
        assert row.dense_nbytes == 2 * row.shape[0] * row.shape[1]
        assert row.kernel.startswith("spmm_bitmap_bf16")
        assert "smallest" in row.reason


def test_format_dense_where_sparse_would_be_larger():
    model = tiny("llama")
    report = sparsify_(model, "magnitude", sparsity=0.04)
    assert all(row.format == "dense f32" and "would take" in row.reason for row in report.layers)
    assert all(hasattr(model.get_submodule(row.name), KEEP) for row in report.layers)


# copies and other models


def test_deep_copies_share_nothing():
    model = tiny("llama")
    sparsify_(model, "magnitude")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.layers[0].mlp.up_proj.weight_values.zero_()
    assert bool((model.model.layers[0].mlp.up_proj.weight_values != 0).any())


def test_falcon_s_own_linears_are_linears(tmp_path):
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=97
    )
    model, sample = transformers.FalconForCausalLM(config).eval(), inputs("llama")[0]
    names = model.state_dict().keys()
    report = tamis.sparsify_(model, "wanda", data=inputs("llama"), format="bitmap")
    assert len(report.layers) == 2 * 4
    wanted = logits(model, sample)
    tamis.save(model, tmp_path / "a")
    assert torch.equal(logits(tamis.load(tmp_path / "a"), sample), wanted)
    assert len(tamis.explain(model).layers) == 2 * 4 + 1
    tamis.dense_(model)
    assert model.state_dict().keys() == names
    torch.testing.assert_close(logits(model, sample), wanted, rtol=1e-4, atol=1e-5)


def test_linears_outside_the_blocks_are_named():
    vision = transformers.CLIPVisionConfig(**VIT)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**GROUPED), vision_config=vision, image_token_index=96
    )
    model = transformers.LlavaForConditionalGeneration(config)
    left = sum(
        m.weight.numel() * 4
        for n, m in model.named_modules()
        if type(m) is nn.Linear and "language_model" not in n and n != "lm_head"
    )
    report = sparsify_(model, "magnitude", format="bitmap")
    assert "nn.Linear outside LlamaDecoderLayer" in report.metrics["left_dense"]
    assert report.metrics["left_dense_bytes"] == left
    report = sparsify_(model, "magnitude", format="bitmap", targets=["re:.*vision_tower.*layers.*"])
    assert len(report.layers) == 3 * 6
    assert "left_dense" not in report.metrics

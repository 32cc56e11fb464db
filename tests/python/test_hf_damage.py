"""Damaged folders, read by from_pretrained itself: structure is checked there too."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from checkpoints import sparse
from transformers import AutoModelForCausalLM

import tamis

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(autouse=True, scope="module")
def _plugin():
    import tamis.hf  # noqa: F401


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def flip(tensors, name):
    tensors[f"{UP}.weight_{name}"].view(-1)[3] ^= 1 << 5


TENSOR_FAULTS = {
    "no values": (lambda t: t.pop(f"{UP}.weight_values"), "weight_values: got no such tensor"),
    "no mask": (lambda t: t.pop(f"{UP}.weight_mask"), "weight_mask: got no such tensor"),
    "no norm": (lambda t: t.pop("model.norm.weight"), "no tensor model.norm.weight"),
    "no dense head": (lambda t: t.pop("lm_head.weight"), "no tensor lm_head.weight"),
    "mask bit": (lambda t: flip(t, "mask"), UP),
    "offset bit": (lambda t: flip(t, "row_offsets"), UP),
    "short values": (
        lambda t: t.update({f"{UP}.weight_values": t[f"{UP}.weight_values"][:-1].clone()}),
        UP,
    ),
    "mask shape": (
        lambda t: t.update({f"{UP}.weight_mask": t[f"{UP}.weight_mask"][:-1].clone()}),
        r"got I64 \[95, 1\], wanted I64 \[96, 1\]",
    ),
    "values dtype": (
        lambda t: t.update({f"{UP}.weight_values": t[f"{UP}.weight_values"].half()}),
        r"got F16 .*, wanted F32 ",
    ),
    "norm shape": (
        lambda t: t.update({"model.norm.weight": torch.ones(63)}),
        r"model.norm.weight: got shape \[63\], wanted \[64\]",
    ),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
@pytest.mark.parametrize("loader", ["from_pretrained", "load"])
def test_damaged_tensors(fault, loader, tmp_path):
    tamis.save(sparse(tie_word_embeddings=False), tmp_path / "a")
    change, message = TENSOR_FAULTS[fault]
    edit_tensors(tmp_path / "a", change)
    call = tamis.load if loader == "load" else AutoModelForCausalLM.from_pretrained
    with pytest.raises(tamis.TamisFileError, match=message) as caught:
        call(tmp_path / "a")
    assert str(caught.value).startswith(f"{loader}: ")
    assert "\n" not in str(caught.value)


CONFIG_FAULTS = {
    "future": (
        lambda q: q.update(format_version=7, tamis_version="3.4.0"),
        r"format_version: got 7, wanted 1, .*pip install -U 'tamis>=3.4.0'",
    ),
    "hostile version": (
        lambda q: q.update(format_version=7, tamis_version="1'; rm -rf /"),
        "pip install -U 'tamis'",
    ),
    "no version": (lambda q: q.pop("format_version"), "format_version: got None"),
    "boolean version": (lambda q: q.update(format_version=True), "format_version: got True"),
    "no modules": (lambda q: q.pop("modules"), "got the keys"),
    "modules list": (lambda q: q.update(modules=[1]), "got list, wanted layouts by module name"),
    "unknown key": (lambda q: q.update(extra=1), "got the keys .*'extra'"),
    "other module": (lambda q: q["modules"].update({"model.x": q["modules"][UP]}), "got 'model.x'"),
    "not linear": (
        lambda q: q["modules"].update({"model.norm": q["modules"][UP]}),
        "no such tensor|LlamaRMSNorm",
    ),
    "unknown format": (lambda q: q["modules"][UP].update(format="zip"), f"{UP}: .*'zip'"),
    "negative rows": (lambda q: q["modules"][UP].update(rows=-1), f"{UP}: .*-1"),
    "huge rows": (lambda q: q["modules"][UP].update(rows=2**31 - 1), UP),
    "swapped": (lambda q: q["modules"][UP].update(rows=64, cols=96), UP),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
@pytest.mark.parametrize("loader", ["from_pretrained", "load"])
def test_damaged_config(fault, loader, tmp_path):
    tamis.save(sparse(), tmp_path / "a")
    change, message = CONFIG_FAULTS[fault]
    edit_config(tmp_path / "a", change)
    unverified = functools.partial(tamis.load, verify=False)
    call = unverified if loader == "load" else AutoModelForCausalLM.from_pretrained
    with pytest.raises(tamis.TamisFileError, match=message) as caught:
        call(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_pickles_are_never_read(tmp_path):
    model = sparse()
    tamis.save(model, tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "a" / "pytorch_model.bin")
    for call in (tamis.load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(tamis.TamisFileError, match="pytorch_model.bin|no model.safetensors"):
            call(tmp_path / "a")

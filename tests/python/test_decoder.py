"""fuse_decode_: fused layers and models against their own forward, and when they leave it to that."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers as hf
from decoders import FAMILIES, PRUNED, make, start, steps
from tiny import tiny

import tamis
from tamis.nn import FusedDecoder, FusedStack, decoder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every layer that the core computes."""
    found: list[int] = []
    real = decoder.decode

    def counted(layers: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        found.extend(1 for _ in layers)
        return real(layers, *args, **kwargs)

    monkeypatch.setattr(decoder, "decode", counted)
    return found


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pruned", PRUNED)
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_compute_what_their_class_computes(
    family: str, pruned: str, batch: int, calls: list[int]
) -> None:
    model = make(family, pruned)
    token, cache = start(model, batch)
    expected = steps(model, token, cache)
    names = tamis.fuse_decode_(model)
    assert names == ["model.layers.0", "model.layers.1"]
    torch.testing.assert_close(steps(model, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 4 * len(names)
    places = torch.arange(5, 5 + batch).unsqueeze(1)  # another position in each sequence
    model, fused = make(family, pruned), model
    with torch.no_grad():
        kwargs = {"input_ids": token, "position_ids": places, "use_cache": True}
        expected = model(**kwargs, past_key_values=copy.deepcopy(cache)).logits
        got = fused(**kwargs, past_key_values=copy.deepcopy(cache)).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 5 * len(names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_the_layers_own(
    dtype: torch.dtype, calls: list[int]
) -> None:
    model = make(dtype=dtype)
    exact = copy.deepcopy(model).float()
    token, cache = start(model)
    for layer in (wide := copy.deepcopy(cache)).layers:
        layer.keys, layer.values = layer.keys.float(), layer.values.float()
    expected = steps(exact, token, wide)
    own = (steps(model, token, cache).float() - expected).norm()
    tamis.fuse_decode_(model)
    ours = (steps(model, token, cache).float() - expected).norm()
    assert calls
    assert ours < 1.2 * own


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: None)


def dense_part(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.down_proj = layer.mlp.down_proj.to_linear()


def training(model: Any) -> None:
    model.train()


def replaced(model: Any) -> None:
    for layer in model.model.layers:
        forward = layer.mlp.forward
        layer.mlp.forward = lambda x, run=forward: run(x)


@pytest.mark.parametrize("change", [hooked, dense_part, training, replaced])
def test_layers_that_somebody_changed_run_their_own_forward(change: Any, calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    expected = steps(model, token, cache)
    tamis.fuse_decode_(model)
    steps(model, token, cache)
    assert calls
    calls.clear()
    change(model)
    torch.testing.assert_close(steps(model, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert not calls


def test_a_mask_runs_the_layers_own_forward(calls: list[int]) -> None:
    model = make()
    token, cache = start(model, 2)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    own, fused = copy.deepcopy(cache), copy.deepcopy(cache)
    with torch.no_grad():
        expected = model(input_ids=token, past_key_values=own, attention_mask=mask).logits
        tamis.fuse_decode_(model)
        got = model(input_ids=token, past_key_values=fused, attention_mask=mask).logits
    torch.testing.assert_close(got, expected)
    assert not calls


def test_gradients_and_other_caches_run_the_layers_own_forward(calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(model)
    model(input_ids=token, past_key_values=copy.deepcopy(cache)).logits.sum().backward()
    with torch.no_grad():
        static = hf.StaticCache(config=model.config, max_cache_len=16)
        model(input_ids=token, past_key_values=static)
        tamis.kv.attach(model)
        model(input_ids=token, past_key_values=tamis.kv.Cache(model.config, "kivi4"))
    assert not calls


def test_generate_writes_the_same_text(calls: list[int]) -> None:
    model = make()
    ids = torch.arange(1, 6).unsqueeze(0)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    tamis.fuse_decode_(model)
    assert torch.equal(model.generate(ids, **options), expected)
    assert calls


def test_names_copies_and_undoing(calls: list[int]) -> None:
    model = make()
    keys = list(model.state_dict())
    token, cache = start(model)
    expected = steps(model, token, cache)
    tamis.fuse_decode_(model)
    assert list(model.state_dict()) == keys
    assert isinstance(model.model.layers[0], FusedDecoder)
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls.clear()
        torch.testing.assert_close(steps(again, token, cache), expected, rtol=1e-4, atol=1e-4)
        assert calls
    calls.clear()
    tamis.dense_(model)
    assert not isinstance(model.model.layers[0], FusedDecoder)
    torch.testing.assert_close(steps(model, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert not calls


def test_layers_with_a_dense_linear_are_left(calls: list[int]) -> None:
    model = make()
    layer = model.model.layers[0]
    layer.mlp.down_proj = layer.mlp.down_proj.to_linear()
    assert tamis.fuse_decode_(model) == ["model.layers.1"]
    assert str(model).count("new tokens in one call") == 1
    assert not isinstance(model.model, FusedStack)
    steps(model, *start(model))
    assert len(calls) == 4
    with pytest.raises(tamis.TamisUnsupported, match=r"2 layers all have a dense.*sparsify_ first"):
        tamis.fuse_decode_(tamis.dense_(model))


@pytest.mark.parametrize("family", ["gemma", "opt", "qwen3"])
def test_other_families_are_refused(family: str) -> None:
    model = tiny(family)
    with pytest.raises(tamis.TamisUnsupported, match="fuse_decode_: model: got .*LlamaDecoder"):
        tamis.fuse_decode_(model)
    with pytest.raises(tamis.TamisTypeError, match="fuse_decode_: model: got int"):
        tamis.fuse_decode_(3)  # type: ignore[arg-type]

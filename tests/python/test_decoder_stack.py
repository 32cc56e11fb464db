"""A fused model takes all layers in one call, notices what changed, and leaves the rest to its class."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import transformers as hf
from decoders import CONFIG, make, start, steps

import tamis
from tamis.nn import decoder


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every step that takes all layers in one call."""
    found: list[int] = []
    real = decoder._stack_step

    def counted(model: Any, kwargs: Any) -> Any:
        out = real(model, kwargs)
        found.extend([1] if out is not None else [])
        return out

    monkeypatch.setattr(decoder, "_stack_step", counted)
    return found


def values_written(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj.weight_values.data.mul_(0.5)


def values_moved(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj.weight_values.data = layer.mlp.up_proj.weight_values.data * 0.5


def linear_replaced(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj = copy.deepcopy(layer.mlp.up_proj)
        layer.mlp.up_proj.weight_values.data.mul_(0.5)


def mask_written(model: Any) -> None:
    """Reverses the rows of k, which all have as many words of mask."""
    for layer in model.model.layers:
        mask, offsets = (
            layer.self_attn.k_proj.weight_mask,
            layer.self_attn.k_proj.weight_row_offsets,
        )
        counts = offsets.diff().flip(0)
        mask.copy_(mask.reshape(len(counts), -1).flip(0).reshape(mask.shape))
        offsets[1:] = counts.cumsum(0)


def norm_replaced(model: Any) -> None:
    for layer in model.model.layers:
        layer.input_layernorm.weight = torch.nn.Parameter(layer.input_layernorm.weight * 2)
    model.model.norm.variance_epsilon = 0.5


def scaled(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.01


def turned(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def layer_moved(model: Any) -> None:
    layers = model.model.layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


CHANGES = [
    *(values_written, values_moved, linear_replaced, mask_written),
    *(norm_replaced, scaled, turned, layer_moved),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_wrote_is_what_the_next_step_computes(change: Any, stacks: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(fused := copy.deepcopy(model))
    before = steps(fused, token, cache)
    with torch.no_grad():
        change(model)
        change(fused)
    expected = steps(model, token, cache)
    assert (expected - before).abs().max() > 1e-3
    stacks.clear()
    torch.testing.assert_close(steps(fused, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert len(stacks) == 4


def hidden_states(model: Any, token: torch.Tensor, cache: Any) -> Any:
    out = model(input_ids=token, past_key_values=cache, output_hidden_states=True)
    return torch.stack(out.hidden_states)


def tuples(model: Any, token: torch.Tensor, cache: Any) -> Any:
    out = model(input_ids=token, past_key_values=cache, return_dict=False)
    assert isinstance(out, tuple)
    return out[0]


def embedded(model: Any, token: torch.Tensor, cache: Any) -> Any:
    x = model.model.embed_tokens(token) * 2
    return model(inputs_embeds=x, past_key_values=cache).logits


def one_layer(model: Any, token: torch.Tensor, cache: Any) -> Any:
    model.config.num_hidden_layers = 1
    return model(input_ids=token, past_key_values=cache).logits


def masked(model: Any, token: torch.Tensor, cache: Any) -> Any:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    return model(input_ids=token, past_key_values=cache, attention_mask=mask).logits


def hooked_layer(model: Any, token: torch.Tensor, cache: Any) -> Any:
    found: list[torch.Tensor] = []
    model.model.layers[1].register_forward_hook(lambda *a: found.append(a[2]))
    model(input_ids=token, past_key_values=cache)
    return found[0]


ASKED = [hidden_states, embedded, one_layer, masked, hooked_layer]


@pytest.mark.parametrize("ask", ASKED)
def test_what_a_stack_does_not_compute_is_the_models_own(ask: Any, stacks: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(fused := copy.deepcopy(model))
    with torch.no_grad():
        expected = ask(model, token, copy.deepcopy(cache))
        got = ask(fused, token, copy.deepcopy(cache))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not stacks


def test_tuples_come_from_outside_the_stack(stacks: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(model)
    with torch.no_grad():
        expected = model(input_ids=token, past_key_values=copy.deepcopy(cache)).logits
        assert torch.equal(tuples(model, token, cache), expected)
    assert len(stacks) == 2


def test_a_mask_of_ones_is_none(stacks: list[int]) -> None:
    model = make()
    token, cache = start(model, 2)
    tamis.fuse_decode_(model)
    with torch.no_grad():
        mask = torch.ones(2, 6, dtype=torch.long)
        model(input_ids=token, past_key_values=cache, attention_mask=mask)
    assert len(stacks) == 1


def test_frequencies_that_grow_with_the_context_are_the_models_own(stacks: list[int]) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    torch.manual_seed(0)
    model: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**CONFIG, rope_parameters=rope)).eval()
    tamis.sparsify_(model, "magnitude", sparsity=0.5)
    token, cache = start(model)
    expected = steps(model, token, cache)
    tamis.fuse_decode_(model)
    torch.testing.assert_close(steps(model, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert not stacks


def test_caches_that_are_copied_cropped_and_reordered_stay_apart(stacks: list[int]) -> None:
    model = make()
    tamis.fuse_decode_(fused := copy.deepcopy(model))
    token, cache = start(model, 2)

    def run(each: Any) -> list[torch.Tensor]:
        logits: list[torch.Tensor] = []
        mine = copy.deepcopy(cache)

        def step(cache: Any, shift: int) -> None:
            ids = token + shift
            logits.append(each(input_ids=ids, past_key_values=cache, use_cache=True).logits)

        step(mine, 1)
        twin = copy.copy(mine)  # shares what the layers hold, until either grows
        twin.layers = [copy.copy(layer) for layer in mine.layers]
        held = [layer.keys for layer in mine.layers]
        before = [keys.clone() for keys in held]
        step(mine, 2)
        step(twin, 3)
        step(mine, 4)
        mine.crop(-3)
        step(mine, 5)
        step(twin, 6)
        mine.reorder_cache(torch.tensor([1, 0]))
        step(mine, 7)
        step(copy.deepcopy(mine), 8)
        assert all(map(torch.equal, held, before))
        assert mine.get_seq_length() == 7
        for _ in range(70):  # beyond its room
            step(mine, 9)
        return logits

    with torch.no_grad():
        torch.testing.assert_close(run(fused), run(model), rtol=1e-3, atol=1e-3)
    assert len(stacks) == 78


def test_explain_says_what_is_fused_and_why_not() -> None:
    def said(model: Any) -> Any:
        return tamis.explain(model).metrics.get("fused for decoding")

    model = make()
    assert said(model) == "no layer; fuse_decode_ would fuse 2 of 2"
    tamis.fuse_decode_(model)
    assert said(model) == "2 of 2 layers, one call a token"
    model.train()
    assert said(model).endswith("; not now, as the model is training; call eval()")
    model.eval().set_attn_implementation("flex_attention")
    assert said(model).endswith("as attention is flex_attention, not sdpa or eager")
    model.set_attn_implementation("sdpa")
    handle = model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert "as a SparseLinear has hooks" in said(model)
    handle.remove()
    assert said(model) == "2 of 2 layers, one call a token"
    model = make()
    model.model.layers[0].mlp.up_proj = model.model.layers[0].mlp.up_proj.to_linear()
    tamis.fuse_decode_(model)
    assert said(model) == "1 of 2 layers, the others have a dense linear; a call each"
    assert said(tamis.dense_(model)) is None


def test_a_model_and_its_caches_leave_no_trace() -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(model)
    steps(model, token, cache)
    gone = [weakref.ref(model.model.layers[0].mlp), weakref.ref(cache)]
    del model, cache
    gc.collect()
    assert [each() for each in gone] == [None, None]

"""A fused model computes what its modules would now, whatever was done to them since it was fused."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from decoders import make, start, steps
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama import modeling_llama

import tamis
from tamis.nn import decoder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call of the core took."""
    found: list[int] = []
    real = decoder.decode

    def counted(layers: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        found.append(len(layers))
        return real(layers, *args, **kwargs)

    monkeypatch.setattr(decoder, "decode", counted)
    return found


class Adapter(nn.Module):
    """A linear and what two small ones add to it."""

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(width, 2, bias=False)
        self.up = nn.Linear(2, width, bias=False)
        nn.init.ones_(self.up.weight)
        nn.init.constant_(self.down.weight, 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Base plus up(down(x))."""
        y: torch.Tensor = self.base(x) + self.up(self.down(x))
        return y


class Halved(nn.Module):
    """Parametrization: half of a weight."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Half."""
        return weight * 0.5


class HalvedMLP(modeling_llama.LlamaMLP):
    """An MLP of another class with the same parts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half."""
        y: torch.Tensor = super().forward(x) * 0.5
        return y


class HalvedLayer(modeling_llama.LlamaDecoderLayer):
    """A layer of another class with the same parts."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Half."""
        return super().forward(hidden_states, *args, **kwargs) * 0.5


def scales_moved(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj.weight_scales.data = layer.mlp.up_proj.weight_scales.data * 0.5


def frequencies_moved(model: Any) -> None:
    model.model.rotary_emb.inv_freq.data = model.model.rotary_emb.inv_freq.data * 0.5


def biases_written(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj.bias.add_(1)
        layer.self_attn.q_proj.bias.data = layer.self_attn.q_proj.bias.data + 1


def adapted(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj, 64)


def reparametrized(model: Any) -> None:
    for layer in model.model.layers:
        parametrize.register_parametrization(layer.input_layernorm, "weight", Halved())


def mlp_of_another_class(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.__class__ = HalvedMLP


def layer_of_another_class(model: Any) -> None:
    layers = model.model.layers
    layers[1] = HalvedLayer(model.config, 1).eval()
    for name, child in layers[0].named_children():
        layers[1]._modules[name] = copy.deepcopy(child)
    layers[1].self_attn.layer_idx = 1


def layer_left_out(model: Any) -> None:
    layers = model.model.layers
    model.config = copy.copy(model.config)
    model.model.config = copy.copy(model.config)
    model.model.config.num_hidden_layers = 1
    assert len(layers) == 2


def gates_swapped(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()


# What is done, of which model, and how many layers calls of the core then take in four steps.
CHANGES: dict[Any, tuple[str, str, list[int]]] = {
    scales_moved: ("llama", "W4", [2] * 4),
    frequencies_moved: ("llama", "bitmap", [2] * 4),
    biases_written: ("llama with biases", "bitmap", [2] * 4),
    adapted: ("llama", "bitmap", []),
    reparametrized: ("llama", "bitmap", []),
    mlp_of_another_class: ("llama", "bitmap", []),
    layer_of_another_class: ("llama", "bitmap", [1] * 4),
    layer_left_out: ("llama", "bitmap", [1] * 4),
    gates_swapped: ("llama", "bitmap", []),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_done_to_modules_counts(change: Any, calls: list[int]) -> None:
    family, pruned, expected_calls = CHANGES[change]
    model = make(family, pruned)
    token, cache = start(model)
    tamis.fuse_decode_(fused := copy.deepcopy(model))
    before = steps(fused, token, cache)
    calls.clear()
    with torch.no_grad():
        change(model)
        change(fused)
    expected = steps(model, token, cache)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(steps(fused, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert calls == expected_calls


@pytest.mark.parametrize(
    "part", ["LlamaMLP", "LlamaRMSNorm", "LlamaDecoderLayer", "LlamaAttention"]
)
def test_a_class_that_somebody_patched_runs(
    part: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(model)
    steps(model, token, cache)
    calls.clear()
    kind = getattr(modeling_llama, part)
    seen: list[int] = []
    real = kind.forward

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", patched)
    steps(model, token, cache)
    assert seen
    assert not calls


def test_another_dtype_is_that_of_the_next_step(calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(fused := copy.deepcopy(model))
    steps(fused, token, cache)
    calls.clear()
    for each in (model, fused):
        each.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):  # by the model itself, as the cache is f32
        steps(fused, token, cache)
    token, cache = start(model)
    got, expected = steps(fused, token, cache), steps(model, token, cache)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    assert calls == [2] * 4


def test_hooks_of_all_kinds_run_as_often_as_the_models_own(calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(model)
    seen: list[str] = []

    def saw(kind: str) -> Any:
        return lambda *_: seen.append(kind)

    mlp = model.model.layers[1].mlp
    handles = [
        mlp.register_forward_hook(saw("after")),
        mlp.register_forward_pre_hook(saw("before")),
        mlp.up_proj.register_forward_hook(saw("always"), always_call=True),
        mlp.register_full_backward_hook(saw("backward")),
    ]
    steps(model, token, cache)
    assert seen == ["before", "always", "after"] * 4
    for handle in handles[:3]:
        handle.remove()
    calls.clear()
    steps(model, token, cache)
    assert calls == [2] * 4
    seen.clear()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.lm_head.weight)
    model(input_ids=token, past_key_values=copy.deepcopy(cache)).logits.sum().backward()
    model.requires_grad_(True)
    model(input_ids=token, past_key_values=copy.deepcopy(cache)).logits.sum().backward()
    assert seen == ["backward"]
    assert calls == [2] * 4


class Names(TorchDispatchMode):
    """Which operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes and calls it."""
        self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def contexts() -> Iterator[Any]:
    yield torch.autocast("cpu", torch.bfloat16)
    yield Names()
    yield torch.overrides.BaseTorchFunctionMode()


@pytest.mark.parametrize("context", list(contexts()), ids=lambda c: type(c).__name__)
def test_contexts_that_change_or_see_operators_get_the_models_own(
    context: Any, calls: list[int]
) -> None:
    model = make()
    token, cache = start(model)
    with context:
        expected = steps(model, token, cache)
        tamis.fuse_decode_(model)
        assert torch.equal(steps(model, token, cache), expected)
    assert not calls


class Doubled(hf.DynamicCache):
    """A cache that hands out twice the values."""

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        """Keys, and values twice."""
        keys, values = super().update(keys, values, *args, **kwargs)
        return keys, 2 * values


def test_caches_of_another_kind_or_update_are_asked(calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    patched = copy.deepcopy(cache)
    update = patched.update
    seen: list[int] = []
    other = Doubled(config=model.config)
    other.layers = copy.deepcopy(cache.layers)
    offloaded = hf.DynamicCache(config=model.config)
    offloaded.layers, offloaded.offloading = copy.deepcopy(cache.layers), False
    expected = steps(model, token, other)
    tamis.fuse_decode_(model)
    assert torch.equal(steps(model, token, other), expected)

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return update(*args, **kwargs)

    patched.update = noted
    with torch.no_grad():
        model(input_ids=token, past_key_values=patched)
    assert len(seen) == 2
    assert not calls
    steps(model, token, offloaded)
    assert calls == [2] * 4


def test_padded_batches_write_the_same_text(calls: list[int]) -> None:
    model = make()
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = (ids != 0).long()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    expected = model.generate(ids, **options)
    alone = model.generate(ids[1:], **options | {"attention_mask": None})
    tamis.fuse_decode_(model)
    assert torch.equal(model.generate(ids, **options), expected)
    assert not calls
    assert torch.equal(model.generate(ids[1:], **options | {"attention_mask": None}), alone)
    assert set(calls) == {2}


def test_a_place_that_is_not_the_next_is_the_models_own(calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    expected = steps(model, token, cache, cache_position=torch.tensor([2]))
    tamis.fuse_decode_(model)
    got = steps(model, token, cache, cache_position=torch.tensor([2]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert set(calls) <= {1}  # layers may take it: the model made their mask and positions
    calls.clear()
    with torch.no_grad():  # of which nobody makes a table
        far = torch.tensor([[10**9]])
        model(input_ids=token, past_key_values=copy.deepcopy(cache), position_ids=far)
    assert calls == [1, 1]
    calls.clear()
    with torch.no_grad():
        place = {"cache_position": torch.tensor([5])}
        model(input_ids=token, past_key_values=copy.deepcopy(cache), **place)
    assert calls == [2]


def test_hidden_states_of_another_width_are_refused_as_ever() -> None:
    model = make()
    _, cache = start(model)
    tamis.fuse_decode_(model)
    turns = torch.ones(1, 1, 16), torch.zeros(1, 1, 16)
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        model.model.layers[0](torch.ones(1, 1, 32), position_embeddings=turns, cache=cache)


def test_embeddings_that_a_hook_changes_are_what_the_layers_get(calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    model.model.embed_tokens.register_forward_hook(lambda *a: a[2] * 2)
    expected = steps(model, token, cache)
    tamis.fuse_decode_(model)
    torch.testing.assert_close(steps(model, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert calls == [2] * 4


def test_other_devices_get_the_models_own(calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(model)
    steps(model, token, cache)
    calls.clear()
    model.to("meta")
    for layer in (far := copy.deepcopy(cache)).layers:
        layer.keys, layer.values = layer.keys.to("meta"), layer.values.to("meta")
    assert steps(model, token.to("meta"), far).device.type == "meta"
    assert not calls


def test_files_hold_the_fused_model(tmp_path: Any, calls: list[int]) -> None:
    model = make()
    token, cache = start(model)
    tamis.fuse_decode_(model)
    expected = steps(model, token, cache)
    tamis.save(model, tmp_path)
    loaded = tamis.load(tmp_path).eval()
    torch.testing.assert_close(steps(loaded, token, cache), expected, rtol=1e-4, atol=1e-4)
    assert tamis.fuse_decode_(loaded)
    torch.testing.assert_close(steps(loaded, token, cache), expected, rtol=1e-4, atol=1e-4)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    calls.clear()
    assert torch.equal(steps(torch.load(file, weights_only=False), token, cache), expected)
    assert calls == [2] * 4

"""Pruned weights stay exactly zero through later training."""

import pytest
import torch
from tiny import inputs, tiny
from torch import nn

from tamis.errors import TamisTypeError, TamisValueError
from tamis.nn import SparseLinear
from tamis.recipe import KEEP
from tamis.rewrite import sparsify_
from tamis.scope import find_linears
from tamis.train import MaskGuard

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, foreach=False),
}


def pruned(format="dense", family="llama"):
    model = tiny(family).train()
    sparsify_(model, "magnitude", format=format)
    return model


def train(model, optimizer, steps=4):
    for step in range(steps):
        sample = inputs("llama", seed=step)[0]
        loss = model(**sample, labels=sample["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero_and_the_rest_trains(name):
    model = pruned()
    before = {n: linear.weight.detach().clone() for n, linear in find_linears(model).items()}
    optimizer = OPTIMIZERS[name](model.parameters())
    guard = MaskGuard(model, optimizer)
    assert set(guard.masks) == set(before)
    train(model, optimizer)
    for layer, weight in before.items():
        linear = model.get_submodule(layer)
        dropped = ~getattr(linear, KEEP)
        assert bool((linear.weight[dropped] == 0).all())
        assert bool((linear.weight != weight)[~dropped].any())
        for value in optimizer.state[linear.weight].values():
            if isinstance(value, torch.Tensor) and value.shape == linear.weight.shape:
                assert bool((value[dropped] == 0).all())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_without_the_guard_zeros_would_go(name):
    """The test above would notice: the same training revives weights."""
    model = pruned()
    train(model, OPTIMIZERS[name](model.parameters()), steps=1)
    up = model.model.layers[0].mlp.up_proj
    assert bool((up.weight[~getattr(up, KEEP)] != 0).any())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparse_layers_need_no_guard(name):
    model = pruned("bitmap")
    keeps = {n: m.matrix.keep() for n, m in model.named_modules() if isinstance(m, SparseLinear)}
    first = model.model.layers[0].mlp.up_proj.weight_values.detach().clone()
    train(model, OPTIMIZERS[name](model.parameters()))
    up = model.model.layers[0].mlp.up_proj
    assert not torch.equal(up.weight_values, first)
    for layer, keep in keeps.items():
        dense = model.get_submodule(layer).weight.to_dense()
        assert bool((dense[~torch.as_tensor(keep)] == 0).all())


def test_momentum_from_before_the_guard_is_cleared():
    model = tiny("llama").train()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, steps=2)
    sparsify_(model, "magnitude", format="dense")
    MaskGuard(model, optimizer)
    train(model, optimizer, steps=2)
    up = model.model.layers[0].mlp.up_proj
    assert bool((up.weight[~getattr(up, KEEP)] == 0).all())


def test_kept_zeros_may_train():
    """Masks are explicit: a kept weight that happens to be zero is not a pruned one."""
    linear = nn.Linear(8, 4, bias=False)
    keep = torch.rand(4, 8) < 0.5
    keep[0, 0] = True
    with torch.no_grad():
        linear.weight[~keep] = 0
        linear.weight[0, 0] = 0
    linear.register_buffer(KEEP, keep, persistent=False)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    MaskGuard(linear, optimizer)
    linear(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert linear.weight[0, 0] != 0
    assert bool((linear.weight[~keep] == 0).all())


def test_zeros_are_the_mask_where_pruning_left_none():
    linear = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    with torch.no_grad():
        linear[0].weight[:, ::2] = 0
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    guard = MaskGuard(linear, optimizer)
    assert list(guard.masks) == ["0"]
    linear(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert bool((linear[0].weight[:, ::2] == 0).all())
    assert bool((linear[0].weight[:, 1::2] != 0).all())


def test_state_survives():
    model = pruned()
    guard = MaskGuard(model)
    state = guard.state_dict()
    assert all(bits.dtype == torch.uint8 for bits in state.values())
    assert sum(bits.numel() for bits in state.values()) * 8 == sum(
        keep.numel() for keep in guard.masks.values()
    )
    fresh = tiny("llama")
    fresh.load_state_dict(model.state_dict())
    up = fresh.model.layers[0].mlp.up_proj
    with torch.no_grad():  # a pruned weight that was revived meanwhile
        up.weight[~guard.masks["model.layers.0.mlp.up_proj"]] = 1
    other = MaskGuard(fresh)
    other.load_state_dict(state)
    for name, keep in guard.masks.items():
        assert torch.equal(other.masks[name], keep)
    assert bool((up.weight[~guard.masks["model.layers.0.mlp.up_proj"]] == 0).all())


def test_odd_sizes_pack():
    linear = nn.Linear(5, 3)
    keep = torch.rand(3, 5) < 0.5
    keep[0, 0] = False
    guard = MaskGuard(linear, masks={"": keep})
    again = MaskGuard(linear, masks={"": torch.zeros(3, 5, dtype=torch.bool)})
    again.load_state_dict(guard.state_dict())
    assert torch.equal(again.masks[""], keep)


def test_removed_guard_stops():
    model = pruned()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    guard = MaskGuard(model, optimizer)
    guard.remove()
    guard.remove()
    train(model, optimizer, steps=1)
    up = model.model.layers[0].mlp.up_proj
    assert bool((up.weight[~getattr(up, KEEP)] != 0).any())


def test_sharded_layers_train_as_whole_ones():
    """FSDP frees the values that it gathered for a product, and gathers them again elsewhere."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs gloo")
    whole, sharded = pruned("bitmap"), pruned("bitmap")
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        for block in sharded.model.layers:
            fsdp.fully_shard(block)
        fsdp.fully_shard(sharded)
        losses = [train(m, torch.optim.SGD(m.parameters(), lr=1e-2)) for m in (whole, sharded)]
    finally:
        torch.distributed.destroy_process_group()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bad_arguments_get_a_sentence():
    with pytest.raises(TamisTypeError, match="MaskGuard: model: got str"):
        MaskGuard("model")
    with pytest.raises(TamisValueError, match="no nn.Linear with pruned weights.*sparsify_"):
        MaskGuard(tiny("llama"))
    linear = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(TamisValueError, match="masks: got '1', wanted the name"):
        MaskGuard(linear, masks={"1": torch.ones(2, 4)})
    with pytest.raises(TamisValueError, match=r"0: got a mask of shape \[4, 2\], wanted \[2, 4\]"):
        MaskGuard(linear, masks={"0": torch.ones(4, 2)})
    guard = MaskGuard(linear, masks={"0": torch.eye(2, 4)})
    with pytest.raises(TamisValueError, match="got 7 bytes, wanted 1"):
        guard.load_state_dict({"0": torch.zeros(7, dtype=torch.uint8)})

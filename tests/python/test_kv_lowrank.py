"""Keys of low rank before rotation: what is read, what is held, what is found."""

import pytest
import torch
from kv_problem import dense, problem
from references import attention

from tamis import kv
from tamis.errors import TamisValueError
from tamis.kv.methods import recipe_of
from tamis.ops.attention import Lists, LowRankSegment, key_turns, sparse_attention
from tamis.policy import kv_lowrank
from tamis.policy.kv_recipe import KvRecipe, LowRank


def lowrank_store(s, *, budget, rank=1 / 6, b=1, d=64, pad=None, seed=0):
    q, k, v = problem(s, b=b, d=d, seed=seed)
    turns = 10000.0 ** (-torch.arange(d // 2) / (d // 2))
    store = kv.KvStore(KvRecipe(lowrank=LowRank(rank)), budget=budget, frequencies=turns)
    store.append(k, v)
    store.settle(q, pad=pad)
    return store, q, k, v


@pytest.mark.parametrize("pad", [0, 13, 80])
def test_full_rank_and_all_chunks_are_exact(pad):
    store, q, k, v = lowrank_store(200, budget=200, rank=1.0, b=2, pad=torch.tensor([0, pad]))
    seen = torch.ones(2, 1, 200, dtype=torch.bool)
    for i, first in ((0, 0), (1, pad)):
        seen[..., :first] = False
        out = store.attend(q[:, :, -1:], pad=torch.tensor([0, pad]))[i : i + 1].double()
        part = [x[i : i + 1] for x in (q[:, :, -1:], k, v)]
        torch.testing.assert_close(out, dense(*part, seen), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("d", "pairs", "rank"), [(64, 32, 43), (80, 16, 7), (128, 64, 300)])
def test_keys_of_low_rank_are_read_as_a_product(d, pairs, rank, dtype):
    """Against keys made by ``kv_lowrank.rotate`` in float64, for tokens chosen from a long context."""
    made = torch.Generator().manual_seed(rank)
    b, h, g, s = 2, 6, 2, 700
    coordinates = torch.randn(b, s, rank, generator=made).to(dtype)
    basis = (torch.randn(b, g, rank, d, generator=made) * rank**-0.5).to(dtype)
    values, q = torch.randn(b, g, s, d, generator=made), torch.randn(b, h, 1, d, generator=made)
    frequencies = 10000.0 ** -(torch.arange(pairs) / pairs)
    index = torch.stack(
        [torch.randperm(s, generator=made)[:90].sort().values for _ in range(b * g)]
    )
    begin = torch.tensor([[0, 0], [123, 123]], dtype=torch.int32)
    segment = LowRankSegment(
        coordinates,
        basis,
        values.to(dtype),
        key_turns(frequencies, s),
        Lists(index=index.view(b, g, -1).to(torch.int32), begin=begin),
    )
    out, lse = sparse_attention(q, [segment])
    plain = coordinates.double().unsqueeze(1) @ basis.double()
    keys = kv_lowrank.rotate(plain, torch.arange(s), frequencies)
    keep = torch.zeros(b * g, s, dtype=torch.bool).scatter_(1, index, True).view(b, g, s)
    keep &= torch.arange(s) >= begin.unsqueeze(-1)
    wanted, sums = attention(q, keys, values.to(dtype), keep=keep)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(lse.double(), sums, rtol=0, atol=1e-4)


def test_parts_of_a_product_that_do_not_fit_are_refused():
    q, turns = torch.randn(1, 4, 1, 64), key_turns(torch.rand(32), 100)
    u, basis, values = torch.randn(1, 100, 9), torch.randn(1, 2, 9, 64), torch.randn(1, 2, 100, 64)
    for parts, message in (
        ((u, basis[:, :, :8], values, turns), r"coordinates: got shape \[1, 100, 9\], wanted"),
        ((u, basis[:, :1], values, turns), r"basis: got shape \[1, 1, 9, 64\]"),
        ((u, basis, values[..., :32], turns), r"values: got shape \[1, 2, 100, 32\]"),
        ((u, basis, values, turns[:65]), r"turns: got shape \[65, 2, 32\], wanted \[66, 2, 32\]"),
        ((u.half(), basis, values, turns), "got torch.float16, torch.float32"),
    ):
        with pytest.raises(TamisValueError, match=message):
            sparse_attention(q, [LowRankSegment(*parts)])


def test_bytes_of_low_rank_keys_are_the_formula():
    store, _, _, _ = lowrank_store(1000, budget=128, d=32)
    parts = store.bytes_by_part()
    chunks, odd, rank, g = (1000 - 32) // 8, 6, round(2 * 32 / 6), 2
    taken = chunks * 8
    assert parts["coordinates"] == taken * rank * 4
    assert parts["basis"] == g * rank * 32 * 4
    assert parts["landmarks"] == g * (chunks - odd) * 32 * 4
    assert parts["odd_keys"] == parts["odd_values"] == g * odd * 8 * 32 * 4
    assert parts["far_values"] == g * taken * 32 * 4
    assert parts["keys"] == g * 32 * 32 * 4
    device = sum(parts.values()) - parts["far_values"] - parts["values"] - parts["odd_values"]
    assert device < 0.5 * g * 1000 * 32 * 4  # of the keys as they came


def test_before_rotation_keys_have_a_lower_rank():
    """Keys of few directions, rotated: the inverse rotation finds the directions again."""
    made = torch.Generator().manual_seed(1)
    turns = 10000.0 ** (-torch.arange(32) / 32)
    plain = torch.randn(1, 512, 8, generator=made) @ torch.randn(8, 64, generator=made)
    rotated = kv_lowrank.rotate(plain, torch.arange(512), turns)
    errors = {}
    for name, x in (
        ("plain", kv_lowrank.rotate(rotated, torch.arange(512), turns, back=True)),
        ("rotated", rotated),
    ):
        coordinates, basis = kv_lowrank.fit(x, 8)
        errors[name] = float((coordinates @ basis - x).norm() / x.norm())
    assert errors["plain"] < 1e-4
    assert errors["rotated"] > 0.1
    gram = plain[0].T @ plain[0]
    assert kv_lowrank.energy_rank(gram, 0.9999) == 8


def test_landmarks_find_the_needle():
    store, q, k, v = lowrank_store(512, budget=64, rank=1.0)
    k[:, :, 200:208] = 4 * q[:, ::2, -1:]
    q = q[:, [0, 0, 2, 2], -1:]
    fresh = kv.KvStore(store.recipe, budget=64, frequencies=store.frequencies)
    fresh.append(k, v)
    fresh.settle(q.expand(-1, -1, 2, -1))
    wanted = v[:, :, 200:208].mean(2)
    torch.testing.assert_close(fresh.attend(q)[:, ::2, 0], wanted, rtol=0, atol=0.05)


def test_a_window_leaves_padding_out():
    """A sequence with fewer tokens than a step reads, beside one with more."""
    q, k, v = problem(100, b=2)
    pad = torch.tensor([0, 70])
    k[1, :, :70], q[1, :, :70] = 20, 20
    both = kv.KvStore(recipe_of("alisa"), budget=40)
    alone = kv.KvStore(recipe_of("alisa"), budget=40)
    for t in range(90, 101):
        at = slice(0, 90) if t == 90 else slice(t - 1, t)
        both.append(k[:, :, at], v[:, :, at])
        lone = slice(max(at.start, 70), at.stop)
        alone.append(k[1:, :, lone], v[1:, :, lone])
        if t > 90:
            out = both.attend(q[:, :, at], pad=pad)[1:]
            wanted = alone.attend(q[1:, :, lone])
            torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)
        both.settle(q[:, :, at], pad=pad)
        alone.settle(q[1:, :, lone])

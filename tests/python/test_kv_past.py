"""What holds older tokens otherwise: two classes, ragged heads, merged values, fixed patterns."""

from dataclasses import replace

import pytest
import torch
from kv_problem import dense, problem

from tamis import kv
from tamis.errors import TamisUnsupported
from tamis.kv.methods import recipe_of
from tamis.ops.kv_quantize import page_layout
from tamis.policy import kv_budget, kv_edit, kv_layout, kv_score
from tamis.policy.kv_layout import AShape, LocalStride, SinkWindow
from tamis.policy.kv_recipe import (
    Classes,
    Evict,
    KvContext,
    KvRecipe,
    Merge,
    Pattern,
    Probes,
)

SMALL = Pattern(LocalStride(local=2, stride=4, block=16))


def filled(recipe, q, k, v, *, budget=None, pad=None, layer=0):
    store = kv.KvStore(recipe, budget=budget, layer=layer)
    store.append(k, v)
    store.settle(q, pad=pad)
    return store


# All of them.

RAGGED = KvRecipe(evict=Evict(kv_score.PooledAttention(5), queries=32, recent=8, floor=0.2))
CASES = {
    "ragged": (RAGGED, 40),
    "ems": (replace(recipe_of("ems"), evict=replace(recipe_of("ems").evict, recent=8)), 40),
    "zipvl": (recipe_of("zipvl"), None),
    "zipvl_evict": (recipe_of("zipvl_evict"), None),
    "pattern": (KvRecipe(pattern=SMALL), None),
}


@pytest.mark.parametrize("name", CASES)
def test_padding_is_as_if_it_were_not_there(name):
    recipe, budget = CASES[name]
    q, k, v = problem(200, b=2)
    pad = torch.tensor([0, 72])
    k[1, :, :72], q[1, :, :72] = 20, 20  # what a peek would show
    both = filled(recipe, q, k, v, budget=budget, pad=pad)
    alone = filled(recipe, q[1:, :, 72:], k[1:, :, 72:], v[1:, :, 72:], budget=budget)
    out = both.attend(q[:, :, -1:], pad=pad)[1:]
    wanted = alone.attend(q[1:, :, -1:])
    # pages of the padded sequence, and its probes, are others
    near = 0.5 if name.startswith("zipvl") else 1e-5
    torch.testing.assert_close(out, wanted, rtol=0, atol=near)
    assert both.attend(q[:, :, -1:], pad=pad).abs().max() < 5


@pytest.mark.parametrize("name", CASES)
def test_the_tail_can_be_cropped_and_no_more(name):
    recipe, budget = CASES[name]
    q, k, v = problem(200)
    store = filled(recipe, q, k, v, budget=budget)
    before = store.attend(q[:, :, -1:])
    store.append(k[:, :, :3], v[:, :, :3])
    if recipe.evict is None:
        store.crop(200)
        assert torch.equal(store.attend(q[:, :, -1:]), before)
    with pytest.raises(TamisUnsupported, match="evicts tokens or changes older ones"):
        store.crop(10)
    with pytest.raises(TamisUnsupported, match="in another form"):
        store.dense()


# Ragged heads and merging.


def test_a_shared_budget_sums_to_the_same_and_keeps_floors():
    score = torch.rand(2, 3, 100)
    score[:, 1] *= 10
    keep = kv_budget.shared_tokens(score, 30, floor=0.2, sink=1, recent=2)
    counts = keep.sum(-1)
    assert counts.sum(-1).tolist() == [90, 90]
    assert int(counts.min()) >= 6
    assert bool((counts[:, 1] > counts[:, 0]).all())
    assert bool(keep[..., [0, 98, 99]].all())
    own = torch.zeros_like(keep).scatter_(-1, score.topk(6, dim=-1).indices, True)
    own[..., [0, 98, 99]] = True  # forced ones come first and count among a head's own
    for i in range(2):
        competing = score[i][keep[i] & ~own[i]]
        assert competing.min() >= score[i][~keep[i]].max()


def test_merging_nothing_is_evicting_and_merging_with_room_is_the_identity():
    q, k, v = problem(120)
    recipe = recipe_of("ems")
    none = replace(recipe, evict=replace(recipe.evict, merge=None))
    zero = replace(recipe, evict=replace(recipe.evict, merge=Merge(above=1.0)))
    last = q[:, :, -1:]
    plain = filled(none, q, k, v, budget=64)
    assert torch.equal(filled(zero, q, k, v, budget=64).attend(last), plain.attend(last))
    every = replace(recipe, evict=replace(recipe.evict, merge=Merge(above=-1.0)))
    seen = torch.ones(2, 1, 120, dtype=torch.bool)
    out = filled(every, q, k, v, budget=120).attend(last)
    torch.testing.assert_close(out.double(), dense(last, k, v, seen), rtol=0, atol=1e-5)


def test_tokens_that_are_the_same_merge_without_loss():
    """Each token twice, one of each pair leaves: value and log mass make up for it."""
    q, k, v = problem(60)
    twice_k, twice_v = (x.repeat_interleave(2, 2) for x in (k, v))
    stays = torch.arange(120) % 2 == 1
    weight = torch.ones(120)
    merged, mass = kv_edit.merge_values(
        twice_k[0, 0], twice_v[0, 0], weight, stays, ~stays, above=0.3
    )
    torch.testing.assert_close(merged[stays], v[0, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(mass[stays], torch.full((60,), 2.0).log())
    assert bool((mass[~stays] == 0).all())


def test_the_operator_merges_as_the_policy_does():
    q, k, v = problem(150, b=2)
    k[:, :, 70:100] = k[:, :, 40:70] + 0.1 * torch.randn(2, 2, 30, 64)
    v[:, :, 70:100] = v[:, :, 40:70] + 0.1 * torch.randn(2, 2, 30, 64)
    merge = Merge(above=0.02, candidates=9.0)
    evict = replace(recipe_of("ems").evict, floor=0.2, merge=merge)
    store = filled(KvRecipe(evict=evict), q, k, v, budget=64)
    mass = kv_score.attention_mass(q, k, 0.125, torch.ones(2, 2, 150, dtype=torch.bool))
    local = kv_score.attention_mass(q[:, :, -32:], k, 0.125, torch.ones(2, 2, 150).bool())
    places = torch.arange(150).expand(2, 2, 150)
    score = evict.score(KvContext(k, places, mass, local))
    keep = kv_budget.shared_tokens(score, 64, floor=0.2, recent=32)
    for i in range(2):
        held_v, bias = (store.past.rows[x].view[i, 0] for x in ("pool_values", "bias"))
        for head in range(2):
            stays = keep[i, head]
            wanted, mass = kv_edit.merge_values(
                k[i, head], v[i, head], score[i, head], stays, ~stays, above=0.02
            )
            begin, end = (int(store.past.rows[x].view[i, head]) for x in ("begin", "end"))
            torch.testing.assert_close(held_v[begin:end], wanted[stays], rtol=0, atol=1e-5)
            torch.testing.assert_close(bias[begin:end], mass[stays], rtol=0, atol=1e-5)
        assert float(bias.max()) > 0.1


# Two classes.


def test_important_tokens_cover_what_was_asked():
    q, k, _ = problem(300)
    k[:, :, 40:60] *= 3
    rows = kv_score.probe_rows(300, Probes())
    assert len(rows) == 128
    assert len(rows.unique()) == 128
    mass, seen_by = kv_score.probe_mass(q, k, rows, 0.125, torch.ones(1, 300, dtype=torch.bool))
    torch.testing.assert_close(mass.sum(), torch.tensor(128.0 * 4))
    counts = {}
    for tau in (0.5, 0.9, 0.975):
        counts[tau] = int(kv_budget.covering_count(mass, tau))
        best = mass.sort(descending=True).values[0]
        assert best[: counts[tau]].sum() >= tau * mass.sum() * 0.9999
        assert best[: counts[tau] - 1].sum() < tau * mass.sum()
        found = kv_budget.important_tokens(mass, seen_by, top_p=tau, share=0, recent=64)
        assert int(found.sum()) == max(64, counts[tau])
        assert bool(found[0, -64:].all())
    assert counts[0.5] < counts[0.9] < counts[0.975]


def test_repeated_tokens_leave_few_important_ones():
    """A sequence of one token over and over but for some: the rest is redundant."""
    q, k, v = problem(512)
    q[:] = q[:, :1, :1]
    k[:, :, 1:] = k[:, :, 1:2] * 0.1
    k[:, :, :20] = 3 * q[:, :1, :1]
    store = filled(recipe_of("zipvl"), q, k, v)
    assert store.past.rows["important"].count * 64 < 0.5 * 512


@pytest.mark.parametrize("name", ["zipvl_sparse", "zipvl"])
def test_a_sparse_prompt_that_leaves_nothing_out_is_dense(name):
    q, k, v = problem(200)
    everything = replace(recipe_of(name).classes, top_p=1.0, sparse_prefill=True)
    store = kv.KvStore(KvRecipe(classes=everything))
    out = store.prefill(q, k, v, scale=None, pad=None)
    seen = torch.ones(2, 200, 200, dtype=torch.bool).tril()
    torch.testing.assert_close(out.double(), dense(q, k, v, seen), rtol=0, atol=1e-4)


def test_a_sparse_prompt_attends_among_important_tokens():
    q, k, v = problem(200, b=2)
    how = Classes(top_p=0.6, sparse_prefill=True)
    store = kv.KvStore(KvRecipe(classes=how))
    out = store.prefill(q, k, v, scale=None, pad=None)
    rows = kv_score.probe_rows(200, how.probes)
    mass, seen_by = kv_score.probe_mass(q, k, rows, 0.125, torch.ones(2, 200, dtype=torch.bool))
    chosen = kv_budget.important_tokens(mass, seen_by, top_p=0.6, share=0, recent=64)
    for i in range(2):
        pair = chosen[i].view(-1, 1) & chosen[i] & torch.ones(200, 200, dtype=torch.bool).tril()
        wanted = dense(q[i : i + 1], k[i : i + 1], v[i : i + 1], pair.expand(2, -1, -1))
        torch.testing.assert_close(out[i : i + 1].double(), wanted, rtol=0, atol=1e-5)


def test_bytes_of_two_classes_are_the_formula():
    q, k, v = problem(300)
    for share, bits, other in ((0.5, 4, 2), (0.3, 8, 4)):
        how = Classes(top_p=0.0, share=share, bits=bits, other_bits=other)
        store = filled(KvRecipe(classes=how), q, k, v)
        most = -(-round(share * 300) // 64)  # pages of the important class, at most
        important = store.past.rows["important"].count
        assert important in (most - 1, most)
        sizes = [page_layout(64, b, b, 64, 64).nbytes for b in (bits, other)]
        assert sizes == [2 * 64 * 64 * b // 8 + 2 * 64 * 4 for b in (bits, other)]
        pages = 2 * (important * sizes[0] + (4 - important) * sizes[1])
        assert store.nbytes() == pages + 2 * 2 * 44 * 64 * 4  # the last 44 tokens as they came


def test_generated_tokens_are_classed_together():
    q, k, v = problem(400)
    store = filled(recipe_of("zipvl"), q[:, :, :128], k[:, :, :128], v[:, :, :128])
    for t in range(128, 128 + 127):
        store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        store.settle(q[:, :, t : t + 1])
    assert store.tail_tokens == 127
    store.append(k[:, :, :1], v[:, :, :1])
    store.settle(q[:, :, :1])
    assert store.tail_tokens == 0
    assert store.tokens == store.length == 256


# Patterns.

LAYOUTS = {
    "strided": LocalStride(local=2, stride=4, block=16),
    "window": SinkWindow(alpha=(16.0, 48.0), beta=(0.25, 0.0), block=16),
    "a_shape": AShape(sink=1, local=2, block=16),
    "tri_shape": AShape(sink=1, local=2, block=16, last=2),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("d", [48, 64, 96, 128])
def test_a_prompt_along_a_pattern(name, d):
    q, k, v = problem(150, b=2, d=d)
    layout = LAYOUTS[name]
    pad = torch.tensor([0, 21])
    store = kv.KvStore(KvRecipe(pattern=Pattern(layout)))
    out = store.prefill(q, k, v, scale=None, pad=pad)
    for i, first in enumerate(pad.tolist()):
        n = 150 - first
        blocks = kv_layout.prompt_blocks(layout, 2, n)
        seen = torch.zeros(2, n, n, dtype=torch.bool)
        for t in range(n):
            for s in range(t + 1):
                seen[:, t, s] = blocks[:, t // 16, s // 16]
        part = [x[i : i + 1, :, first:] for x in (q, k, v)]
        torch.testing.assert_close(
            out[i : i + 1, :, first:].double(), dense(*part, seen), rtol=0, atol=2e-4
        )


def is_kv_cache_efficient(blocks: torch.Tensor) -> bool:
    """Whether a block that a row no longer sees is seen by no later row, so that it can be dropped.

    Args:
        blocks: [g, m, m] bool.
    """
    causal = torch.ones(blocks.shape[1:], dtype=torch.bool).tril()
    again = blocks[:, 1:] & ~blocks[:, :-1] & causal[:-1]
    return not bool(again.any())


def test_strided_heads_see_everything_together_and_may_drop_blocks():
    for heads, stride, local in ((4, 4, 1), (3, 3, 2), (8, 8, 16), (8, 16, 4)):
        layout = LocalStride(local=local, stride=stride)
        blocks = kv_layout.prompt_blocks(layout, heads, 64 * 40)
        assert is_kv_cache_efficient(blocks)
        if stride // heads <= 1:
            assert bool(blocks.any(0)[-1].all())
    window = kv_layout.prompt_blocks(LAYOUTS["window"], 2, 320)
    assert is_kv_cache_efficient(window)
    random = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(1)) < 0.3
    assert not is_kv_cache_efficient(random)
    assert kv_layout.density(LocalStride(dense_heads=3), 3, 1000) == 1.0


def test_what_a_pattern_holds_is_the_formula():
    """4096 tokens: the local blocks and one in ``stride`` before them, per head."""
    n, block, local, stride = 4096, 64, 4, 8
    _, k, v = problem(n, d=16)
    layout = LocalStride(local=local, stride=stride, block=block)
    store = filled(KvRecipe(pattern=Pattern(layout)), None, k, v)
    row = n // block
    before = torch.arange(row - local + 1)
    counts = []
    for head in range(2):
        strided = int(((before + head * 4 + 1) % stride == 0).sum())
        counts.append((strided + local - 1) * block)  # the row's own block is still empty
    assert store.past.lengths[0].tolist() == counts
    held = sum(counts)
    assert store.nbytes() == held * (2 * 16 * 4 + 4) + 2 * 2 * 4  # and positions, and ranges


@pytest.mark.parametrize("name", ["strided", "window"])
def test_decoding_along_a_pattern_is_the_row_of_the_query(name):
    layout = LAYOUTS[name]
    q, k, v = problem(64 + 12)
    recipe = KvRecipe(pattern=Pattern(layout))
    store = filled(recipe, q[:, :, :64], k[:, :, :64], v[:, :, :64])
    for t in range(64, 76):
        store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        out = store.attend(q[:, :, t : t + 1])
        store.settle(q[:, :, t : t + 1])
        blocks = layout.blocks(2, torch.tensor([t // 16]), torch.arange(5))
        seen = blocks[:, :, torch.arange(t + 1) // 16]
        wanted = dense(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], seen)
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-5)


def test_dense_heads_and_layers_hold_everything():
    q, k, v = problem(200)
    full = Pattern(LocalStride(dense_heads=2, block=16))
    store = filled(KvRecipe(pattern=full), q, k, v)
    seen = torch.ones(2, 1, 200, dtype=torch.bool)
    out = store.attend(q[:, :, -1:]).double()
    torch.testing.assert_close(out, dense(q[:, :, -1:], k, v, seen), rtol=0, atol=1e-5)
    assert filled(KvRecipe(pattern=replace(SMALL, dense_every=2)), q, k, v, layer=1).past is None

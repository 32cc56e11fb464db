"""What a step reads: estimates, masses and exact choices against float64."""

import pytest
import torch

from tamis.errors import TamisTypeError, TamisValueError
from tamis.ops.kv_select import (
    KeyRows,
    Labels,
    PageBounds,
    append_labels,
    kv_choose,
    kv_estimate,
    kv_mass,
    kv_select,
    label_bytes,
    label_channels,
)
from tamis.ops.kv_summary import page_bounds, page_means
from tamis.policy.kv_estimate import label_weights, page_bound
from tamis.policy.kv_score import attention_mass, probe_mass

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def labels_of(keys, channels, cuts=()):
    b, g, s, _ = keys.shape
    records = torch.full((b, g, -(-s // 16), label_bytes(channels.shape[1])), 255).byte()
    at = [0, *cuts, s]
    for first, last in zip(at, at[1:], strict=False):
        append_labels(records, keys[:, :, first:last], channels, first)
    return Labels(records, channels, s)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [48, 64, 80, 96, 128, 256])
def test_estimates_match_the_policies(d, dtype):
    q = torch.randn(2, 6, 1, d).to(dtype)
    keys = torch.randn(2, 3, 70, d).to(dtype)
    exact = kv_estimate(q, KeyRows(keys), scale=0.3)
    every = torch.arange(d).expand(3, d)
    wanted = label_weights(q.double(), keys.double(), every, 0.3).log()
    torch.testing.assert_close(exact.double(), wanted.double(), rtol=0, atol=1e-4)
    low, high = keys.float(), keys.float() + torch.rand(2, 3, 70, d)
    bounds = torch.stack([low, high], 3).to(dtype)
    found = kv_estimate(q, PageBounds(bounds), scale=1.0, log_weight=False)
    wanted = page_bound(q.double(), bounds[..., 0, :].double(), bounds[..., 1, :].double())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)


def test_labels_are_near_the_channels_and_append_like_one_piece():
    q, keys = torch.randn(1, 4, 1, 64), torch.randn(1, 2, 50, 64)
    channels = torch.stack([torch.randperm(64)[:16].sort().values for _ in range(2)]).int()
    whole = labels_of(keys, channels)
    parts = labels_of(keys, channels, cuts=(1, 17, 33))
    found = kv_estimate(q, whole, scale=0.125)
    torch.testing.assert_close(kv_estimate(q, parts, scale=0.125), found, rtol=0, atol=0)
    wanted = label_weights(
        q,
        keys.gather(3, channels.long()[None, :, None].expand(1, 2, 50, 16)),
        channels.long(),
        0.125,
    ).log()
    # Half a step of 15 in each of 16 channels, and of 127 in q: some 0.1 of the scores' spread.
    assert float((found - wanted).std()) < 0.15 * float(wanted.std())
    assert label_bytes(16) == 16 * 16 // 2 + 2 * 16 * 2
    assert [label_channels(n) for n in (1, 8, 12, 32)] == [8, 8, 16, 32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 5, 40])
def test_mass_matches_the_policy(n, dtype):
    q, keys = torch.randn(2, 6, n, 64).to(dtype), torch.randn(2, 3, 40, 64).to(dtype)
    begin = torch.tensor([[0, 0, 0], [7, 7, 7]]).int()
    seen = torch.arange(40) >= begin.unsqueeze(-1)
    found = kv_mass(q, keys, scale=0.125, begin=begin)
    wanted = attention_mass(q.double(), keys.double(), 0.125, seen)
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-5)
    twice = kv_mass(q, keys, scale=0.125, begin=begin, out=found.clone())
    torch.testing.assert_close(twice, 2 * found)


def test_mass_of_probes_matches_the_policy():
    q, keys = torch.randn(2, 6, 30, 64), torch.randn(2, 3, 40, 64)
    rows, begin = torch.tensor([0, 3, 4, 29]), torch.tensor([[0, 0, 0], [12, 12, 12]]).int()
    seen = torch.arange(40) >= begin[:, :1]
    places = (rows + 10).int()
    found = kv_mass(q[:, :, rows], keys, scale=0.125, positions=places, begin=begin)
    wanted, _ = probe_mass(q, keys, rows, 0.125, seen)
    torch.testing.assert_close(2 * found.sum(1), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(TamisValueError, match="positions: got 3, wanted none below the one before"):
        kv_mass(q[:, :, :2], keys, positions=torch.tensor([4, 3]).int())
    with pytest.raises(TamisValueError, match="positions: got 40, wanted numbers of tokens"):
        kv_mass(q[:, :, :2], keys, positions=torch.tensor([4, 40]).int())


def test_selection_is_exact_with_forced_units_and_padding():
    scores = torch.randn(2, 3, 500)
    begin = torch.tensor([[0, 0, 0], [100, 100, 100]]).int()
    index, count = kv_select(scores, 40, sink=4, recent=3, begin=begin)
    assert count.tolist() == [[40] * 3] * 2
    place = torch.arange(500)
    forced = ((place >= begin[..., None]) & (place < begin[..., None] + 4)) | (place >= 497)
    ranked = scores.masked_fill(forced, torch.inf).masked_fill(place < begin[..., None], -torch.inf)
    torch.testing.assert_close(index, ranked.topk(40).indices.sort().values.int())


def test_budgets_per_head_pages_and_top_p():
    scores = torch.rand(1, 3, 64)
    index, count = kv_select(scores, torch.tensor([[1, 5, 9]]).int(), page=4)
    assert count.tolist() == [[4, 20, 36]]
    best = scores[0, 1].topk(5).indices.sort().values
    tokens = (best[:, None] * 4 + torch.arange(4)).flatten()
    torch.testing.assert_close(index[0, 1, :20], tokens.int())
    index, count = kv_select(scores, top_p=0.6)
    for head in range(3):
        k = int(count[0, head])
        best = scores[0, head].double().sort(descending=True).values
        assert best[:k].sum() >= 0.6 * best.sum() > best[: k - 1].sum()
        assert set(index[0, head, :k].tolist()) == set(scores[0, head].topk(k).indices.tolist())


def test_errors_say_what_is_wrong():
    q, keys, scores = torch.randn(1, 4, 1, 64), torch.randn(1, 2, 8, 64), torch.randn(1, 2, 8)
    with pytest.raises(TamisTypeError, match="float64"):
        kv_estimate(q.double(), KeyRows(keys))
    with pytest.raises(TamisValueError, match=r"got shapes \[1, 4, 1, 64\] and \[1, 2, 8, 32\]"):
        kv_estimate(q, KeyRows(keys[..., :32]))
    with pytest.raises(TamisValueError, match="exactly one of them"):
        kv_select(scores)
    with pytest.raises(TamisValueError, match="k, sink, recent: got -1"):
        kv_select(scores, -1)
    with pytest.raises(TamisValueError, match=r"begin: got torch.int64"):
        kv_select(scores, 1, begin=torch.zeros(1, 2).long())
    with pytest.raises(TamisValueError, match="queries: got 9, wanted no more than tokens"):
        kv_mass(torch.randn(1, 4, 9, 64), keys)
    channels = torch.full((2, 8), 64).int()
    records = torch.zeros(1, 2, 1, label_bytes(8), dtype=torch.uint8)
    with pytest.raises(TamisValueError, match="channels: got 64, wanted below 64"):
        append_labels(records, keys, channels, 0)
    with pytest.raises(TamisValueError, match="at least 2"):
        append_labels(records, keys, channels, 9)
    with pytest.raises(TamisValueError, match="tokens: got 17, wanted 0 to 16"):
        kv_estimate(q, Labels(records, channels, 17))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "page"), [(64, 16), (80, 8), (128, 5)])
def test_summaries_are_those_of_torch(d, page, dtype):
    keys = torch.randn(2, 3, 7 * page + 4, d).to(dtype)[:, :, 4:]  # rows of a longer memory
    whole = keys.double().reshape(2, 3, 7, page, d)
    bounds = page_bounds(keys, page)
    assert torch.equal(bounds.double(), torch.stack([whole.amin(3), whole.amax(3)], 3))
    means, alike = page_means(keys, page)
    mean = whole.mean(3, keepdim=True)
    unit = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
    torch.testing.assert_close(means.double(), mean.squeeze(3), rtol=unit, atol=1e-6)
    wanted = torch.cosine_similarity(whole, mean, dim=-1).amin(-1)
    torch.testing.assert_close(alike.double(), wanted, rtol=0, atol=1e-5)
    with pytest.raises(TamisValueError, match=f"got shape .* and {page}, wanted .* whole pages"):
        page_bounds(keys[:, :, 1:], page)
    with pytest.raises(TamisTypeError, match="page_means: got"):
        page_means(keys.double(), page)


@pytest.mark.parametrize("padded", [False, True])
def test_every_head_chooses_its_own_pages_and_a_kv_head_their_union(padded):
    q, bounds = torch.randn(2, 6, 1, 64), torch.randn(2, 3, 40, 2, 64).sort(3).values
    begin = torch.tensor([[0, 0, 0], [5, 5, 5]]).int() if padded else None
    units = PageBounds(bounds, page=16)
    index, count = kv_choose(q, units, 7, by_row=True, sink=1, recent=1, begin=begin)
    for b in range(2):
        for g in range(3):
            pages = set()
            for head in (2 * g, 2 * g + 1):
                one = q[b : b + 1, head : head + 1], PageBounds(bounds[b : b + 1, g : g + 1])
                first = None if begin is None else begin[b : b + 1, g : g + 1].contiguous()
                scores = kv_estimate(*one, log_weight=False, begin=first)
                alone, many = kv_select(scores, 7, sink=1, recent=1, begin=first)
                assert int(many) == 7
                pages |= set(alone.flatten().tolist())
            wanted = [16 * page + t for page in sorted(pages) for t in range(16)]
            assert index[b, g, : count[b, g]].tolist() == wanted


def test_one_choice_is_that_of_two_calls():
    q, keys = torch.randn(2, 6, 1, 64), torch.randn(2, 3, 300, 64)
    found = kv_choose(q, KeyRows(keys), 20, recent=4)
    wanted = kv_select(kv_estimate(q, KeyRows(keys)), 20, recent=4)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

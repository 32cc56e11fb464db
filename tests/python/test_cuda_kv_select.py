"""Scores and choices of tokens on a CUDA device: those of the CPU from the same bytes."""

import pytest
import torch
from cuda_kv_helpers import B, G
from host import needs_device
from torch import Tensor

from tamis.ops import chosen, kv_select
from tamis.ops.attention import DenseSegment, Lists, sparse_attention

# So many that two blocks share 32768 tokens of a head, whose scores then have 16 bits.
MANY = -(-60 // G)


@needs_device
def test_labels_are_the_cpus() -> None:
    keys = torch.randn(B, G, 777, 128).bfloat16()
    channels = torch.randint(0, 128, (G, 16), dtype=torch.int32)
    size = kv_select.label_bytes(16)
    want = torch.empty(B, G, 49, size, dtype=torch.uint8)
    got = torch.empty_like(want, device="cuda")
    for first, last in ((0, 500), (500, 501), (501, 777)):
        kv_select.append_labels(want, keys[:, :, first:last], channels, first)
        kv_select.append_labels(got, keys.cuda()[:, :, first:last], channels.cuda(), first)
    assert torch.equal(got.cpu(), want)


@needs_device
@pytest.mark.parametrize("log_weight", [True, False])
@pytest.mark.parametrize("tokens", [1, 50, 5000])
def test_estimates(tokens: int, log_weight: bool) -> None:
    keys = torch.randn(B, G, tokens, 128).bfloat16()
    q = torch.randn(B, 16, 1, 128).bfloat16()
    channels = torch.randint(0, 128, (G, 16), dtype=torch.int32)
    records = torch.empty(B, G, -(-tokens // 16), kv_select.label_bytes(16), dtype=torch.uint8)
    kv_select.append_labels(records, keys, channels, 0)
    bounds = torch.stack([keys - 0.5, keys + 0.5], 3)
    begin = torch.randint(0, tokens, (B, G), dtype=torch.int32)
    for cpu, gpu in (
        (kv_select.KeyRows(keys), kv_select.KeyRows(keys.cuda())),
        (kv_select.PageBounds(bounds), kv_select.PageBounds(bounds.cuda())),
        (
            kv_select.Labels(records, channels, tokens),
            kv_select.Labels(records.cuda(), channels.cuda(), tokens),
        ),
    ):
        want = kv_select.kv_estimate(q.float(), cpu, log_weight=log_weight, begin=begin)
        got = kv_select.kv_estimate(q.cuda(), gpu, log_weight=log_weight, begin=begin.cuda())
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-3)


@needs_device
@pytest.mark.parametrize("units", [1, 100, 33000, 70000])
@pytest.mark.parametrize("levels", [0, 3])
def test_selection_is_the_cpus(units: int, levels: int) -> None:
    scores = torch.randn(B, G, units)
    if levels:
        scores = (scores * levels).round()
    scores[torch.rand(scores.shape) < 0.01] = float("nan")
    begin = torch.randint(0, units, (B, G), dtype=torch.int32)
    budget = torch.randint(0, units + 1, (B, G), dtype=torch.int32)
    for k, options in (
        (max(1, units // 16), {}),
        (units // 3, {"sink": 4, "recent": 30, "begin": begin}),
        (budget, {"page": 2}),
        (None, {"top_p": 0.9}),
        (None, {"top_p": 0.3, "sink": 4, "recent": 30, "begin": begin, "page": 2}),
        (None, {"top_p": 1.0}),
    ):
        want = kv_select.kv_select(scores, k, **options)
        on = {n: x.cuda() if isinstance(x, Tensor) else x for n, x in options.items()}
        got = kv_select.kv_select(scores.cuda(), k.cuda() if isinstance(k, Tensor) else k, **on)
        assert torch.equal(got[1].cpu(), want[1])
        for i in range(B * G):
            count = int(want[1].view(-1)[i])
            mine, theirs = (x.view(B * G, -1)[i, :count] for x in (got[0].cpu(), want[0]))
            assert torch.equal(mine, theirs)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("h", "pages"), [(4, 1), (16, 300), (32, 2049), (16, 33000)])
def test_rows_choose_what_the_cpus_do(dtype: torch.dtype, h: int, pages: int) -> None:
    q = torch.randint(-3, 4, (B, h, 1, 64)).to(dtype)  # whole numbers add up alike in any order
    bounds = torch.randint(-3, 4, (B, G, pages, 2, 64)).to(dtype).sort(3).values
    begin = torch.randint(0, pages, (B, G), dtype=torch.int32)
    budget = torch.randint(0, pages + 1, (B, G), dtype=torch.int32)
    for k, page, options in (
        (pages // 16, 16, {"sink": 1}),
        (pages // 16, 5, {"sink": 1, "recent": 2, "begin": begin}),
        (budget, 1, {}),
    ):
        want = kv_select.kv_choose(q, kv_select.PageBounds(bounds, page), k, by_row=True, **options)
        on = {n: x.cuda() if isinstance(x, Tensor) else x for n, x in options.items()}
        units = kv_select.PageBounds(bounds.cuda(), page)
        at = k.cuda() if isinstance(k, Tensor) else k
        runs = [kv_select.kv_choose(q.cuda(), units, at, by_row=True, **on) for _ in range(2)]
        for index, count in runs:
            assert torch.equal(count.cpu(), want[1])
            for i, n in enumerate(want[1].flatten().tolist()):
                mine, theirs = (x.view(B * G, -1)[i, :n] for x in (index.cpu(), want[0]))
                assert torch.equal(mine, theirs)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "s", "d"), [(1, 1, 64), (1, 5000, 128), (32, 3001, 64), (700, 700, 80)]
)
def test_attention_that_tokens_draw(dtype: torch.dtype, n: int, s: int, d: int) -> None:
    q, keys = torch.randn(B, 12, n, d).to(dtype), torch.randn(B, G, s, d).to(dtype)
    begin = torch.randint(0, s, (B, G), dtype=torch.int32)
    probes = torch.randint(0, s, (n,), dtype=torch.int32).sort()[0].contiguous()
    for options in ({}, {"begin": begin}, {"positions": probes, "scale": 0.3}):
        want = kv_select.kv_mass(q, keys, **options)
        on = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in options.items()}
        runs = [kv_select.kv_mass(q.cuda(), keys.cuda(), **on) for _ in range(2)]
        assert torch.equal(*runs)
        torch.testing.assert_close(runs[0].cpu(), want, rtol=1e-3, atol=1e-6)
        more = kv_select.kv_mass(q.cuda(), keys.cuda(), out=runs[1].clone(), **on)
        torch.testing.assert_close(more, 2 * runs[0], rtol=1e-5, atol=1e-6)


@needs_device
@pytest.mark.parametrize(("tokens", "b"), [(1, B), (600, B), (5000, B), (32768, B), (40000, B), (131072, 1), (131073, 1),
                                           (32768, MANY)])  # fmt: skip
@pytest.mark.parametrize("heads", [G, 4 * G, 8 * G])
def test_chosen_are_the_best(tokens: int, b: int, heads: int) -> None:
    keys = torch.randn(b, G, tokens, 128, device="cuda").bfloat16()
    q = torch.randn(b, heads, 1, 128, device="cuda").bfloat16()
    channels = torch.randint(0, 128, (G, 32), dtype=torch.int32, device="cuda")
    size = kv_select.label_bytes(32)
    records = torch.empty(b, G, -(-tokens // 16), size, dtype=torch.uint8, device="cuda")
    kv_select.append_labels(records, keys, channels, 0)
    labels = kv_select.Labels(records, channels, tokens)
    begin = torch.randint(0, tokens, (b, G), dtype=torch.int32, device="cuda")
    k = max(tokens // 16, 20)
    for options in ({}, {"recent": 16}, {"sink": 3, "begin": begin}):
        found = [kv_select.kv_choose(q, labels, k, **options) for _ in range(2)]
        scores = kv_select.kv_estimate(q, labels, begin=options.get("begin"))
        want = kv_select.kv_select(scores, k, **options)
        assert torch.equal(found[0][1], want[1])
        for i, count in enumerate(want[1].view(-1).tolist()):
            got, again, theirs = (
                x.view(b * G, -1)[i, :count].long() for x in (found[0][0], found[1][0], want[0])
            )
            assert torch.equal(got, again)
            assert (got.diff() > 0).all()
            # Rows are added up in another order: only tokens of almost equal scores differ.
            mine, other = (scores.view(b * G, -1)[i][x].sort()[0] for x in (got, theirs))
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@needs_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "d"), [(G, 128), (3 * G, 128), (8 * G, 128), (3 * G, 64), (7 * G, 64)]
)
@pytest.mark.parametrize(("tokens", "b"), [(20, B), (600, B), (5000, B), (32768, B), (70000, B), (131072, 1), (131073, 1),
                                           (32768, MANY)])  # fmt: skip
def test_choosing_and_attention_in_one_launch(
    tokens: int, b: int, heads: int, d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, values = torch.randn(2, b, G, tokens, d, device="cuda").to(dtype)
    q = torch.randn(b, heads, 1, d, device="cuda").to(dtype)
    channels = torch.randint(0, d, (G, d // 4), dtype=torch.int32, device="cuda")
    size = kv_select.label_bytes(d // 4)
    records = torch.empty(b, G, -(-tokens // 16), size, dtype=torch.uint8, device="cuda")
    kv_select.append_labels(records, keys, channels, 0)
    labels = kv_select.Labels(records, channels, tokens)
    begin = torch.randint(0, tokens, (b, G), dtype=torch.int32, device="cuda")
    # Either rounds its weights, and what they come to, to 16 bits.
    atol = 5e-3 if dtype == torch.bfloat16 else 2e-3
    done, attend = [], chosen.attend
    monkeypatch.setattr(chosen, "attend", lambda *a: done.append(attend(*a)) or done[-1])
    for k, sink, recent, first in (
        (max(tokens // 16, 4), 0, 0, None),
        (max(tokens // 5, 4), 3, tokens // 20, begin),
        (1, 3, 5, begin),  # forced ones alone
        (tokens, 0, 0, None),
    ):
        choice = chosen.Choice(labels, k, sink, recent, first)
        one = [DenseSegment(keys, values, Lists(begin=first, choice=choice))]
        got, again = (sparse_attention(q, one) for _ in range(2))
        assert done[-2:] == [tokens <= (131072 if heads <= 4 * G else 81920)] * 2
        assert chosen.at_once(q, keys, d // 4) == done[-1]
        index, count = choice.lists(q)
        two = [DenseSegment(keys, values, Lists(index=index, count=count, begin=first))]
        want = sparse_attention(q, two)
        for mine, same, theirs in zip(got, again, want, strict=True):
            assert torch.equal(mine, same)
            torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=atol)

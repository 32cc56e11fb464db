"""kv_fetch: what a pool holds, step after step, and what it refuses (maps: conformance_kv_fetch)."""

import pytest
import torch

from tamis.errors import TamisValueError
from tamis.ops.attention import Lists
from tamis.ops.kv_fetch import Pool, kv_fetch
from tamis.ops.kv_select import kv_select

B, G, D = 2, 3, 16


def far(tokens):
    return torch.randn(2, B, G, tokens, D)


def pool_of(slots, unit=1):
    return Pool(*torch.zeros(2, B, G, slots * unit, D), unit)


def test_listed_rows_are_in_the_pool_and_the_oldest_leave():
    keys, values = far(200)
    pool = pool_of(40)
    for step in range(30):
        scores = torch.randn(B, G, 200)
        scores[..., step : step + 20] += 3  # neighbouring steps read much the same
        index, count = kv_select(scores, 25)
        found = kv_fetch(pool, Lists(index=index, count=count), keys, values)
        near = found.lists.index.long().unsqueeze(-1).expand(-1, -1, -1, D)
        wanted = index.long().unsqueeze(-1).expand(-1, -1, -1, D)
        assert torch.equal(pool.keys.gather(2, near), keys.gather(2, wanted))
        assert torch.equal(pool.values.gather(2, near), values.gather(2, wanted))
        assert (pool.slot_of >= 0).sum() == (pool.unit_in >= 0).sum() <= B * G * 40
    reads, hits = pool.reads.sum((0, 1)).tolist()
    assert reads == 30 * B * G * 25
    assert reads // 2 < hits < reads


def test_a_growing_context_keeps_its_map():
    keys, values = far(3000)
    pool = pool_of(8, unit=4)
    index = torch.arange(8, dtype=torch.int32).expand(B, G, 8).contiguous()
    lists = Lists(index=index, count=torch.full((B, G), 8, dtype=torch.int32))
    kv_fetch(pool, lists, keys[:, :, :40], values[:, :, :40])
    found = kv_fetch(pool, lists, keys, values)
    assert pool.slot_of.shape[2] >= 750
    assert found.lacking.sum() == 0
    assert pool.reads.sum((0, 1)).tolist() == [B * G * 4, B * G * 2]


def test_what_does_not_fit_is_refused():
    keys, values = far(50)
    index = torch.arange(9, dtype=torch.int32).expand(B, G, 9).contiguous()
    lists = Lists(index=index, count=torch.full((B, G), 9, dtype=torch.int32))
    with pytest.raises(TamisValueError, match="slots: got 8, wanted at least as many"):
        kv_fetch(pool_of(8), lists, keys, values)
    with pytest.raises(TamisValueError, match="wanted rows like the pool's"):
        kv_fetch(pool_of(9), lists, keys.half(), values)
    with pytest.raises(TamisValueError, match=r"index: got torch.int64"):
        kv_fetch(pool_of(9), Lists(index=index.long(), count=lists.count), keys, values)
    with pytest.raises(TamisValueError, match="wanted an index and a count"):
        kv_fetch(pool_of(9), Lists(), keys, values)
    pool = pool_of(9)
    with pytest.raises(TamisValueError, match="index: got a token of no unit"):
        kv_fetch(pool, Lists(index=index + 500, count=lists.count), keys, values)
    assert int(pool.clock.sum()) == 0

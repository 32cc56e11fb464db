"""gather_rows, compact_ and merge_tokens against the same written out in torch."""

from __future__ import annotations

import pytest
import torch

from tamis.errors import TamisValueError
from tamis.ops.attention import DenseSegment, Lists, sparse_attention
from tamis.ops.kv_edit import Similar, Tokens, compact_, gather_rows, merge_tokens


def lists(b, g, s, width):
    torch.manual_seed(1)
    index = torch.stack([torch.randperm(s)[:width].sort().values for _ in range(b * g)])
    return index.view(b, g, width).int()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_gathers_what_each_head_keeps(dtype):
    x = torch.arange(2 * 3 * 20 * 4).view(2, 20, 3, 4).to(dtype).transpose(1, 2)
    index = lists(2, 3, 20, 7)
    wanted = x.gather(2, index.long().unsqueeze(-1).expand(-1, -1, -1, 4))
    assert torch.equal(gather_rows(x, Tokens(index)), wanted)
    count = torch.tensor([[7, 0, 3], [1, 7, 2]]).int()
    wanted = wanted.masked_fill((torch.arange(7) >= count.unsqueeze(-1)).unsqueeze(-1), 0)
    assert torch.equal(gather_rows(x, Tokens(index, count)), wanted)
    x = x.contiguous()[:, :, :, :2].clone()
    whole = x.gather(2, index.long().unsqueeze(-1).expand(-1, -1, -1, 2))
    compact_(x, Tokens(index))
    assert torch.equal(x[:, :, :7], whole)
    places = torch.arange(6 * 20, dtype=torch.int32).view(2, 3, 20)
    assert torch.equal(gather_rows(places, Tokens(index)), places.gather(2, index.long()))


def test_tau_of_one_evicts_and_duplicates_merge_without_loss():
    k, v = torch.randn(2, 1, 2, 12, 32)
    index = torch.arange(12).int().expand(1, 2, 12)
    kept, dropped = Tokens(index[:, :, :6].contiguous()), Tokens(index[:, :, 6:].contiguous())
    out = merge_tokens(k, v, kept, dropped, Similar(tau=1.0))
    assert torch.equal(out.keys, k[:, :, :6])
    assert torch.equal(out.values, v[:, :, :6])
    assert (out.mass == 1).all()
    assert (out.joined == -1).all()
    k, v = (torch.cat([x[:, :, :6], x[:, :, :6]], 2) for x in (k, v))  # each token twice
    out = merge_tokens(k, v, kept, dropped, Similar(tau=0.9))
    assert (out.mass == 2).all()
    q = torch.randn(1, 4, 1, 32)
    whole, _ = sparse_attention(q, [DenseSegment(k, v)])
    merged = DenseSegment(out.keys, out.values, Lists(bias=out.mass.log()))
    torch.testing.assert_close(sparse_attention(q, [merged])[0], whole)


def test_both_similarities_must_be_above_zero():
    k = torch.zeros(1, 1, 2, 16)
    k[..., 0], k[0, 0, 1, 0] = 1.0, -1.0
    first, second = torch.zeros(1, 1, 1).int(), torch.ones(1, 1, 1).int()
    out = merge_tokens(k, k.clone(), Tokens(first), Tokens(second), Similar(tau=0.1))
    assert out.joined.item() == -1  # (-1) * (-1) is no likeness


def test_weights_make_the_mean():
    k = torch.ones(1, 1, 2, 16)
    v = torch.stack([torch.ones(16), 3 * torch.ones(16)])[None, None]
    first, second = torch.zeros(1, 1, 1).int(), torch.ones(1, 1, 1).int()
    weight, mass = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 5.0]]])
    rule = Similar(merge_keys=True)
    out = merge_tokens(k, v, Tokens(first), Tokens(second), rule, weight=weight, mass=mass)
    assert torch.equal(out.values, torch.full((1, 1, 1, 16), 2.5))
    assert torch.equal(out.keys, torch.ones(1, 1, 1, 16))
    assert out.mass.item() == 7


def test_refuses_what_it_cannot_read():
    x = torch.zeros(1, 1, 4, 16)
    with pytest.raises(TamisValueError, match="index: got 1, wanted ascending tokens"):
        gather_rows(x, Tokens(torch.tensor([[[2, 1]]]).int()))
    with pytest.raises(TamisValueError, match="index: got 9, wanted tokens that there are"):
        compact_(x, Tokens(torch.tensor([[[9]]]).int()))
    with pytest.raises(TamisValueError, match=r"index: got torch.int64 of shape \[1, 1\]"):
        gather_rows(x, Tokens(torch.tensor([[[1]]])))
    one = Tokens(torch.zeros(1, 1, 1).int())
    with pytest.raises(TamisValueError, match="values: got torch.float32 of shape"):
        merge_tokens(x, x[:, :, :2], one, one, Similar())

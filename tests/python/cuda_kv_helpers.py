"""What the tests of KV caches on a CUDA device share."""

import torch
from torch import Tensor

from tamis.ops.attention import (
    DenseSegment,
    Lists,
    LowRankSegment,
    PageSegment,
    Segment,
)
from tamis.ops.kv_quantize import kv_quantize, page_layout

B, G = 2, 4


def cuda_(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cuda()


def moved(lists: Lists) -> Lists:
    return Lists(*(cuda_(getattr(lists, n)) for n in ("index", "count", "begin", "end", "bias")))


def on_cuda(s: Segment) -> Segment:
    if isinstance(s, LowRankSegment):
        memory = (x.cuda() for x in (s.coordinates, s.basis, s.values, s.turns))
        return LowRankSegment(*memory, moved(s.lists))
    if isinstance(s, PageSegment):
        return PageSegment(s.records.cuda(), s.layout, moved(s.lists))
    return DenseSegment(s.keys.cuda(), s.values.cuda(), moved(s.lists))


def pages(
    bits: int, d: int, count: int, lists: Lists, dtype: torch.dtype, tokens: int = 32
) -> PageSegment:
    layout = page_layout(d, bits, bits, tokens, 32 if tokens == 32 else d)
    k, v = torch.randn(2, B, G, tokens * count, d).to(dtype)
    records = torch.empty(B, G, count, layout.nbytes, dtype=torch.uint8)
    kv_quantize(k, v, layout, records)
    return PageSegment(records, layout, lists)

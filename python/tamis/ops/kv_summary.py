"""kv_summary: what ``kv_estimate`` reads of pages of keys, made from the keys."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisValueError
from tamis.ops.handle import core_errors
from tamis.ops.kv_quantize import float_code, rows_of

__all__ = ["page_bounds", "page_means"]


def page_bounds(keys: Tensor, page: int) -> Tensor:
    """Smallest and largest key of each channel of each page, [b, g, pages, 2, d]: for ``PageBounds``.

    Args:
        keys: [b, g, pages * page, d] float32, float16 or bfloat16.
        page: Tokens of a page.

    Raises:
        TamisTypeError: A dtype has no kernel.
        TamisValueError: The page does not divide the tokens.
    """
    b, g, pages, d = _pages("page_bounds", keys, page)
    if keys.is_cuda:
        whole = keys.reshape(b, g, pages, page, d)
        return torch.stack([whole.amin(3), whole.amax(3)], 3)
    out = keys.new_empty(b, g, pages, 2, d)
    _summarize("page_bounds", keys, page, out, None)
    return out


def page_means(keys: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """Mean key of each page [b, g, pages, d], and the smallest cosine of one of its keys and it.

    The cosines [b, g, pages] f32 tell which pages their mean stands for (ShadowKV,
    arXiv:2410.21465, sec. 4.2).

    Args:
        keys: [b, g, pages * page, d] float32, float16 or bfloat16 on the CPU or a CUDA device.
        page: Tokens of a page.

    Raises:
        TamisTypeError: A dtype or device has no kernel.
        TamisValueError: The page does not divide the tokens.
    """
    b, g, pages, d = _pages("page_means", keys, page)
    if keys.is_cuda:
        whole = keys.reshape(b, g, pages, page, d).float()
        mean = whole.mean(3)
        alike = torch.nn.functional.cosine_similarity(whole, mean.unsqueeze(3), dim=-1).amin(3)
        return mean.to(keys.dtype), alike
    out, alike = keys.new_empty(b, g, pages, d), torch.empty(b, g, pages)
    _summarize("page_means", keys, page, out, alike)
    return out, alike


def _pages(function: str, keys: Tensor, page: int) -> tuple[int, int, int, int]:
    """[b, g, pages, d] of keys."""
    if keys.dim() != 4 or page < 1 or keys.shape[2] % page:
        raise TamisValueError(
            f"{function}: keys, page: got shape {list(keys.shape)} and {page}, wanted "
            "[b, g, tokens, d] with whole pages."
        )
    b, g, tokens, d = keys.shape
    return b, g, tokens // page, d


def _summarize(function: str, keys: Tensor, page: int, out: Tensor, alike: Tensor | None) -> None:
    code = float_code(function, keys)
    keys = rows_of(keys)
    b, g, tokens, d = keys.shape
    steps = keys.stride()
    with core_errors():
        _C.kv_summarize(
            alike is None,
            code,
            (b, g, d),
            page,
            tokens // page,
            keys.data_ptr(),
            (steps[0], steps[1], steps[2]),
            out.data_ptr(),
            0 if alike is None else alike.data_ptr(),
        )

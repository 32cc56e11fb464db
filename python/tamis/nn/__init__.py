"""Layers whose weights are stored compressed, to take the place of torch's."""

from tamis.nn.conv import DepthwiseConv2d, PlaneMean, SparseConv2d
from tamis.nn.decoder import FusedDecoder
from tamis.nn.linear import SparseLinear, SparseWeight

__all__ = [
    "DepthwiseConv2d",
    "FusedDecoder",
    "PlaneMean",
    "SparseConv2d",
    "SparseLinear",
    "SparseWeight",
]

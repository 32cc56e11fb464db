"""Layers whose weights are stored compressed, to take the place of torch's."""

from tamis.nn.conv import DepthwiseConv2d, PlaneMean, SparseConv2d
from tamis.nn.decoder import FusedDecoder, FusedStack
from tamis.nn.experts import SparseExperts
from tamis.nn.linear import SparseLinear, SparseWeight

__all__ = [
    "DepthwiseConv2d",
    "FusedDecoder",
    "FusedStack",
    "PlaneMean",
    "SparseConv2d",
    "SparseExperts",
    "SparseLinear",
    "SparseWeight",
]

"""fuse_: folds what follows a convolution into it, so that planes are written once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tamis.errors import TamisTypeError, TamisUnsupported, TamisValueError
from tamis.nn import DepthwiseConv2d, PlaneMean, SparseConv2d, SparseLinear
from tamis.ops.conv2d import NO_BOUNDS
from tamis.report import LayerReport, Report, host_facts
from tamis.report_rows import describe

__all__ = ["fuse_"]

# A first layer reads images of so many channels at most, one to four numbers a pixel.
IMAGE_CHANNELS = 4
# Outputs that share a row of its taps: all are kept, so any height that divides them will do.
IMAGE_GROUPS = (4, 2)


def fuse_(model: nn.Module) -> Report:
    """Readies a convolutional network for inference, in place; returns what was done by layer.

    Batch normalisation after a convolution is folded into its weight and bias; a ReLU, ReLU6 or
    Hardtanh after that becomes the clamp of a sparse or depthwise convolution. Depthwise
    convolutions, the first layer and global average pooling take tamis' kernels, so that from the
    first layer to the pooling every layer reads and writes the same planes. A layer that is used
    more than once, or whose result something else reads too, keeps what follows it.

    What is folded becomes nn.Identity, so a fused model has other parameters: save it before.

    Args:
        model: In evaluation mode; torch.fx must be able to trace it.

    Raises:
        TamisTypeError: model is not a module.
        TamisValueError: model is in training mode.
        TamisUnsupported: torch.fx cannot trace it.
    """
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"fuse_: model: got {type(model).__name__}, wanted a torch.nn.Module; load it first."
        )
    if model.training:
        raise TamisValueError(
            "fuse_: model: got training mode, in which batch normalisation is no constant, wanted "
            "evaluation mode; call model.eval()."
        )
    plan = _Plan(dict(model.named_modules()), trace(model, "fuse_"))
    for node in plan.graph.nodes:
        if node.op == "call_module" and plan.alone(node):
            plan.visit(node)
    for name, module in plan.new.items():
        model.set_submodule(name, module)
    rows = [_row(name, model.get_submodule(name), reason) for name, reason in plan.reasons.items()]
    facts: dict[str, float | int | str] = {"fused": len(plan.new) - len(rows)}
    return Report("fused convolutions", rows, facts, host_facts())


def trace(model: nn.Module, caller: str) -> fx.Graph:
    """The model's graph, in which tamis' own layers are leaves.

    Raises:
        TamisUnsupported: torch.fx cannot follow the model's forward.
    """

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            own = isinstance(m, SparseLinear | DepthwiseConv2d | PlaneMean)
            return own or super().is_leaf_module(m, module_qualified_name)

    try:
        return Tracer().trace(model)
    except Exception as err:
        raise TamisUnsupported(
            f"{caller}: model: got a forward that torch.fx cannot trace ({err}), wanted one without "
            "branches on values; pass a part of the model."
        ) from err


@dataclass
class _Plan:
    """What will take the place of which module; nothing is changed before all is known."""

    modules: dict[str, nn.Module]
    graph: fx.Graph
    new: dict[str, nn.Module] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def alone(self, node: fx.Node) -> bool:
        """Whether the module of a node is called nowhere else."""
        calls = [n for n in self.graph.nodes if n.op == "call_module"]
        module = self.modules[str(node.target)]
        return sum(self.modules[str(n.target)] is module for n in calls) == 1

    def follower(self, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> fx.Node | None:
        """The only reader of a node's result, if it is a module of these kinds, called once."""
        if len(node.users) != 1:
            return None
        user = next(iter(node.users))
        if user.op != "call_module" or not self.alone(user):
            return None
        return user if type(self.modules[str(user.target)]) in kinds else None

    def visit(self, node: fx.Node) -> None:
        """Decides about one module and what follows it."""
        name = str(node.target)
        module = self.modules[name]
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            self.new[name] = PlaneMean()
        if not isinstance(module, nn.Conv2d | SparseConv2d):
            return
        done = []
        norm = self.follower(node, (nn.BatchNorm2d,))
        if norm is not None:
            module = fold(module, self.modules[str(norm.target)])
            self.new[str(norm.target)] = nn.Identity()
            done.append("batch norm")
        layer = _planes(module)
        clamp = self.follower(norm or node, (nn.ReLU, nn.ReLU6, nn.Hardtanh))
        if clamp is not None and isinstance(layer, SparseConv2d | DepthwiseConv2d):
            layer.bounds = _bounds(self.modules[str(clamp.target)])
            self.new[str(clamp.target)] = nn.Identity()
            done.append(type(self.modules[str(clamp.target)]).__name__)
        if layer is not self.modules[name]:
            self.new[name] = layer
        if done or layer is not self.modules[name]:
            folded = f"{' and '.join(done)} folded in" if done else "nothing to fold in"
            self.reasons[name] = folded


def fold(conv: nn.Module, norm: nn.Module) -> nn.Conv2d | SparseConv2d:
    """A copy of the convolution with batch normalisation ``norm`` after it in its weight and bias."""
    if (
        not isinstance(norm, nn.BatchNorm2d)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        raise TamisUnsupported(
            f"fuse_: got {type(norm).__name__} without running statistics, wanted nn.BatchNorm2d "
            "that tracks them; it cannot be folded."
        )
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        bias = getattr(conv, "bias", None)
        if bias is not None:
            shift = shift + bias.double() * scale
        if isinstance(conv, SparseConv2d):
            return _scaled_sparse(conv, scale, shift)
        if not isinstance(conv, nn.Conv2d):
            raise TamisTypeError(f"fuse_: got {type(conv).__name__}, wanted a convolution.")
        weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
        return _like(conv, weight.to(conv.weight.dtype), shift.to(conv.weight.dtype))


def _scaled_sparse(conv: SparseConv2d, scale: Tensor, shift: Tensor) -> SparseConv2d:
    values, offsets, _ = conv.weight_values, conv.weight_row_offsets, None
    group = conv.group
    counts = torch.as_tensor(offsets).diff()  # entries of each row, or row of blocks
    by_block = scale.reshape(-1, group).repeat_interleave(counts, 0)
    made = SparseConv2d.from_layer(conv, conv.window)
    scaled = values.double() * by_block.reshape(-1)
    made.weight_values = nn.Parameter(scaled.to(values.dtype), values.requires_grad)
    made.bias = nn.Parameter(shift.to(values.dtype), values.requires_grad)
    made.bounds = conv.bounds
    return made


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    made = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,  # type: ignore[arg-type]
        conv.dilation, conv.groups, True, conv.padding_mode, device="meta",  # type: ignore[arg-type]
    )  # fmt: skip
    made.weight = nn.Parameter(weight, conv.weight.requires_grad)
    made.bias = nn.Parameter(bias, conv.weight.requires_grad)
    return made.train(conv.training)


def _planes(conv: nn.Conv2d | SparseConv2d) -> nn.Module:
    """The convolution by tamis' kernels where they have one for it."""
    if isinstance(conv, SparseConv2d) or conv.weight.dtype != torch.float32:
        return conv
    try:
        if conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1:
            return DepthwiseConv2d(conv)
        if conv.groups == 1 and conv.in_channels <= IMAGE_CHANNELS:
            group = next((g for g in IMAGE_GROUPS if conv.out_channels % g == 0), 1)
            return SparseConv2d.from_conv(conv, keep=torch.ones_like(conv.weight) > 0, group=group)
    except TamisUnsupported:  # padding that they have not
        return conv
    return conv


def _bounds(module: nn.Module) -> tuple[float, float]:
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    return (0.0, math.inf) if isinstance(module, nn.ReLU) else NO_BOUNDS


def _row(name: str, layer: nn.Module, reason: str) -> LayerReport:
    if isinstance(layer, SparseConv2d):
        return describe(name, layer, reason=reason)
    weight: Any = layer.weight
    own = isinstance(layer, DepthwiseConv2d)
    nbytes = weight.numel() * weight.element_size()
    return LayerReport(
        name=name,
        shape=(weight.shape[0], weight[0].numel()),
        sparsity=0.0,
        format="depthwise f32" if own else "dense",
        nbytes=nbytes,
        dense_nbytes=nbytes,
        kernel="conv2d_depthwise_f32" if own else "torch",
        reason=reason,
    )

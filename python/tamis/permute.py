"""permute_for_groups: neighbouring outputs that want the same inputs, without another function."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor, fx, nn

from tamis.errors import TamisTypeError, TamisValueError
from tamis.fuse import trace
from tamis.policy.select import drop_smallest
from tamis.recipe import count_dropped
from tamis.report import LayerReport, Report, host_facts

__all__ = ["permute_for_groups"]

# Modules that treat every channel alike, or (norms) have one number for each.
_SAME = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Hardswish, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_SAME_FUNCTIONS = {"relu", "relu_", "relu6", "hardtanh", "dropout", "silu", "gelu"}
_SUMS = {"add", "iadd", "add_"}


def permute_for_groups(model: nn.Module, group: int, *, sparsity: float = 0.5) -> Report:
    """Reorders channels in place so that ``group`` neighbouring outputs keep like inputs.

    Pruning with ``pattern="vector:G"`` keeps or drops an input for G neighbouring outputs together,
    so it keeps more where they want the same ones. Output channels of a convolution are reordered
    with everything that carries them: its bias, normalisation and depthwise layers after it, the
    inputs of the next layers and, across a residual sum, the layers on the other branch. The
    function computed stays the same up to rounding; channels of the model's inputs and outputs,
    and those that meet an operation not known here, keep their places.

    SparseByteNN (arXiv:2310.19509) reorders whole networks so; which order is sought is not
    published. Here groups grow greedily: each begins with the heaviest free channel and takes the
    channels whose own largest weights share most of the inputs that the group has so far.

    Args:
        model: Any torch model whose forward torch.fx can trace; layers dense.
        group: Neighbouring outputs that will share inputs.
        sparsity: Fraction of zeros that pruning will leave.

    Returns:
        A row for each reordered layer; ``metrics`` has the share of the summed absolute weights
        that vector pruning keeps, ``kept_before`` and ``kept_after``.

    Raises:
        TamisTypeError: model is not a module.
        TamisValueError: group is below 2 or sparsity not in [0, 1).
        TamisUnsupported: torch.fx cannot trace the model.
    """
    if not isinstance(model, nn.Module):
        raise TamisTypeError(
            f"permute_for_groups: model: got {type(model).__name__}, wanted a torch.nn.Module."
        )
    if not isinstance(group, int) or group < 2:
        raise TamisValueError(
            f"permute_for_groups: group: got {group!r}, wanted a whole number of at least 2 outputs."
        )
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise TamisValueError(
            f"permute_for_groups: sparsity: got {sparsity!r}, wanted 0 <= sparsity < 1; it is the "
            "fraction of zeros."
        )
    spaces = _Spaces(dict(model.named_modules()))
    spaces.follow(trace(model, "permute_for_groups"))
    before = after = total = 0.0
    rows: list[LayerReport] = []
    for space in spaces.found():
        layers = [m for _, m in space.outputs if _groupable(m, group)]
        if not layers:
            continue
        scores = [_magnitudes(m) for m in layers]
        order = torch.arange(scores[0].shape[0])
        old = sum(kept_mass(s, group, sparsity) for s in scores)
        if space.free:
            tried = group_order(torch.cat(scores, 1), group, sparsity)
            new = sum(kept_mass(s[tried], group, sparsity) for s in scores)
            if new > old:
                order = tried
                space.permute(order)
        gained = sum(kept_mass(_magnitudes(m), group, sparsity) for m in layers)
        before, after = before + old, after + gained
        total += sum(float(s.sum()) for s in scores)
        rows += [_row(n, m, space, order) for n, m in space.outputs if m in layers]
    facts: dict[str, float | int | str] = {
        "kept_before": before / total if total else 1.0,
        "kept_after": after / total if total else 1.0,
    }
    return Report(f"channels reordered for groups of {group}", rows, facts, host_facts())


def kept_mass(score: Tensor, group: int, sparsity: float) -> float:
    """Sum of score [n, k] that the largest vectors of ``group`` rows keep."""
    vectors = score.reshape(-1, group, score.shape[1]).sum(1)
    flat = vectors.reshape(1, -1)
    keep = drop_smallest(flat, count_dropped(sparsity, flat.shape[1]))
    return float(flat[keep].sum())


def group_order(score: Tensor, group: int, sparsity: float) -> Tensor:
    """An order of the rows of score [n, k] in which groups of neighbours share large columns."""
    n, k = score.shape
    scaled = score / score.sum(1, keepdim=True).clamp_min(1e-30)
    kept = drop_smallest(scaled, count_dropped(sparsity, k)).float() * scaled
    left = torch.ones(n, dtype=torch.bool)
    mass = score.sum(1)
    order: list[int] = []
    while len(order) < n:
        seed = int(torch.where(left, mass, -1.0).argmax())
        members = [seed]
        left[seed] = False
        profile = kept[seed].clone()
        while len(members) < min(group, n - len(order)):
            likeness = torch.where(left, kept @ profile, -1.0)
            best = int(likeness.argmax())
            left[best] = False
            members.append(best)
            profile += kept[best]
        order += members
    return torch.tensor(order)


def _magnitudes(module: nn.Module) -> Tensor:
    """Absolute weights [out, columns]."""
    return torch.as_tensor(module.weight).detach().abs().flatten(1).float()


def _groupable(module: nn.Module, group: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features % group == 0
    return isinstance(module, nn.Conv2d) and module.groups == 1 and module.out_channels % group == 0


@dataclass
class _Space:
    """Channels that must keep one order: who makes, carries and reads them."""

    outputs: list[tuple[str, nn.Module]] = field(default_factory=list)  # rows are channels
    carriers: list[nn.Module] = field(default_factory=list)  # one number or filter for each
    inputs: list[nn.Module] = field(default_factory=list)  # columns are channels
    free: bool = True

    def merge(self, other: _Space) -> None:
        """Takes over what the other has."""
        self.outputs += other.outputs
        self.carriers += other.carriers
        self.inputs += other.inputs
        self.free = self.free and other.free

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Puts channel order[i] in place i, everywhere."""
        for module in (*dict.fromkeys(m for _, m in self.outputs), *dict.fromkeys(self.carriers)):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor):
                    tensor.copy_(tensor[order])
        for module in dict.fromkeys(self.inputs):
            weight = torch.as_tensor(module.weight)
            weight.copy_(weight[:, order])


class _Spaces:
    """Union of the channel spaces of a traced model."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.space: dict[fx.Node, _Space] = {}
        self.calls: dict[nn.Module, int] = {}

    def found(self) -> list[_Space]:
        """Every space once, in order of appearance."""
        return list({id(space): space for space in self.space.values()}.values())

    def follow(self, graph: fx.Graph) -> None:
        """Walks the graph in order of execution."""
        for node in graph.nodes:
            if node.op == "call_module":
                module = self.modules[str(node.target)]
                self.calls[module] = self.calls.get(module, 0) + 1
        for node in graph.nodes:
            self._visit(node)
        # A weight that another module has too cannot be reordered for one of them.
        owners: dict[int, int] = {}
        for module in self.modules.values():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for space in self.found():
            members = [m for _, m in space.outputs] + space.carriers + space.inputs
            shared = any(owners[id(p)] > 1 for m in members for p in m.parameters(recurse=False))
            again = any(self.calls[m] > 1 for m in members)
            if shared or again:
                space.free = False

    def _visit(self, node: fx.Node) -> None:
        sources = [arg for arg in node.all_input_nodes if arg in self.space]
        if node.op == "call_module" and len(node.all_input_nodes) == 1:
            self._module(node, self.modules[str(node.target)], node.all_input_nodes[0])
            return
        name = getattr(node.target, "__name__", str(node.target))
        if node.op in ("call_function", "call_method") and sources:
            if name in _SUMS and len(sources) == 2:
                self.space[node] = self._merged(*sources)
                return
            same = name in _SAME_FUNCTIONS or _is_pixel_mean(node) or self._flattens(node, name)
            if same and len(sources) == 1:
                self.space[node] = self.space[sources[0]]
                return
        for source in sources:
            self.space[source].free = False
        self.space[node] = _Space(free=False)

    def _module(self, node: fx.Node, module: nn.Module, source: fx.Node) -> None:
        space = self.space.setdefault(source, _Space(free=False))
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if depthwise and module.out_channels == module.in_channels:
            space.carriers.append(module)
            self.space[node] = space
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            space.carriers.append(module)
            self.space[node] = space
        elif type(module) in _SAME or (isinstance(module, nn.Flatten) and self._is_pooled(source)):
            self.space[node] = space
        elif (isinstance(module, nn.Conv2d) and module.groups == 1) or (
            type(module) is nn.Linear and self._is_flat(source)
        ):
            space.inputs.append(module)
            self.space[node] = _Space(outputs=[(str(node.target), module)])
        else:
            space.free = False
            self.space[node] = _Space(free=False)

    def _merged(self, one: fx.Node, other: fx.Node) -> _Space:
        first, second = self.space[one], self.space[other]
        if first is not second:
            first.merge(second)
            for node, space in self.space.items():
                if space is second:
                    self.space[node] = first
        return first

    def _flattens(self, node: fx.Node, name: str) -> bool:
        return name == "flatten" and self._is_pooled(node.all_input_nodes[0])

    def _is_pooled(self, node: fx.Node) -> bool:
        """Whether a node has one pixel for each channel, so that flattening keeps channels."""
        if node.op != "call_module":
            return False
        module = self.modules[str(node.target)]
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return module.output_size in (1, (1, 1))
        if type(module) in _SAME or isinstance(module, nn.BatchNorm2d):
            return self._is_pooled(node.all_input_nodes[0])
        return False

    def _is_flat(self, node: fx.Node) -> bool:
        """Whether the last dimension of a node is its channels: not that of an image."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, nn.Linear | nn.Flatten):
                return True
            if type(module) in _SAME or isinstance(module, nn.BatchNorm1d):
                return self._is_flat(node.all_input_nodes[0])
            return False
        name = getattr(node.target, "__name__", str(node.target))
        if name == "flatten" or _is_pixel_mean(node):
            return True
        same = node.op in ("call_function", "call_method") and name in _SAME_FUNCTIONS | _SUMS
        return same and all(self._is_flat(n) for n in node.all_input_nodes)


def _is_pixel_mean(node: fx.Node) -> bool:
    """Whether it is the mean over height and width of an image, channels left as [n, c]."""
    name = getattr(node.target, "__name__", str(node.target))
    if name != "mean" or node.kwargs.get("keepdim") or len(node.args) > 2:
        return False
    dims = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
    return isinstance(dims, tuple | list) and tuple(dims) in ((2, 3), (-2, -1))


def _row(name: str, module: nn.Module, space: _Space, order: Tensor) -> LayerReport:
    weight = torch.as_tensor(module.weight)
    moved = int((order != torch.arange(len(order))).sum())
    reason = f"{moved} of {len(order)} outputs moved" if space.free else "outputs are pinned"
    nbytes = weight.numel() * weight.element_size()
    return LayerReport(name, (weight.shape[0], weight[0].numel()), 0.0, "dense", nbytes, nbytes,
                       reason=reason)  # fmt: skip

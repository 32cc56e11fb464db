"""SparseConv2d, DepthwiseConv2d and sparsify_ on convolutions, against torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tamis
import tamis.nn
from tamis.nn import DepthwiseConv2d, PlaneMean, SparseConv2d
from tamis.ops.conv2d import conv2d


def pruned(conv: nn.Conv2d, group: int, density: float = 0.3) -> SparseConv2d:
    columns = conv.weight[0].numel()
    keep = (torch.rand(conv.out_channels // group, columns) < density).repeat_interleave(group, 0)
    return SparseConv2d.from_conv(conv, keep=keep.reshape(conv.weight.shape), group=group)


def close(y: torch.Tensor, wanted: torch.Tensor) -> bool:
    return y.shape == wanted.shape and bool(torch.allclose(y, wanted, atol=1e-4, rtol=1e-4))


WINDOWS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"kernel_size": 1}, (14, 14)),
    ({"kernel_size": 1}, (7, 7)),
    ({"kernel_size": 1}, (1, 3)),
    ({"kernel_size": 1, "stride": 2}, (15, 13)),
    ({"kernel_size": 3, "stride": 2, "padding": 1}, (32, 31)),
    ({"kernel_size": 3, "padding": "same", "dilation": 2}, (9, 11)),
    ({"kernel_size": (5, 3), "padding": (2, 0)}, (12, 8)),
    ({"kernel_size": 1, "bias": False}, (5, 5)),
]


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("window", "size"), WINDOWS)
def test_sparse_conv_is_the_dense_one(
    window: dict[str, Any], size: tuple[int, int], group: int
) -> None:
    torch.manual_seed(group)
    layer = pruned(nn.Conv2d(12, 48, **window), group)
    conv, x = layer.to_conv(), torch.randn(2, 12, *size)
    assert layer.group == group
    with torch.no_grad():
        wanted = conv(x)
        assert close(layer(x), wanted)
        assert close(layer(x.to(memory_format=torch.channels_last)), wanted)
        assert close(layer(x[0]), wanted[0])
        assert close(layer(x[:, :, :, : size[1]].flip(0)), wanted.flip(0))
        half = layer(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), wanted, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("group", [1, 4])
def test_gradients_are_those_of_the_kept_weights(group: int) -> None:
    torch.manual_seed(0)
    layer = pruned(nn.Conv2d(6, 8, 3, 2, 1), group)
    layer.bounds = (0.0, 6.0)
    conv = layer.to_conv()
    x = torch.randn(2, 6, 9, 9)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(own).square().sum().backward()
    conv(other).clamp(0, 6).square().sum().backward()
    assert own.grad is not None
    assert other.grad is not None
    assert conv.weight.grad is not None
    assert layer.weight_values.grad is not None
    assert close(own.grad, other.grad)
    dense = torch.zeros(8, 54)
    keep = torch.as_tensor(layer.matrix.keep())
    if group == 1:
        dense[keep] = layer.weight_values.grad
        assert close(dense, torch.where(keep, conv.weight.grad.flatten(1), 0.0))
    assert layer.bias is not None
    assert conv.bias is not None
    assert layer.bias.grad is not None
    assert conv.bias.grad is not None
    assert close(layer.bias.grad, conv.bias.grad)


def test_operator_passes_torchs_own_checks() -> None:
    torch.manual_seed(0)
    layer = pruned(nn.Conv2d(4, 8, 1), 1)
    operands = (
        torch.randn(1, 4, 3, 3, requires_grad=True),
        layer.weight_values,
        layer.weight_row_offsets,
        layer.weight_col_indices,
        layer.bias,
        layer.layout.token,
        layer.window.flat,
        -1.0,
        1.0,
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.tamis.conv2d.default, operands, test_utils=tests)


@pytest.mark.parametrize("group", [1, 2])
def test_transforms_of_torch_func(group: int) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    layer = SparseConv2d.from_conv(conv, keep=torch.rand(6, 4, 3, 3) < 0.5, group=group)
    dense, x = layer.to_conv(), torch.randn(2, 4, 5, 5)
    deep = DepthwiseConv2d(nn.Conv2d(6, 6, 3, groups=6))
    sparse = nn.Sequential(layer, deep, PlaneMean())
    wanted = nn.Sequential(dense, deep, nn.AdaptiveAvgPool2d(1))
    func = torch.func
    for transform in (
        lambda f: func.vmap(lambda x: f(x[None])[0])(x),
        lambda f: func.jacrev(f)(x),
        lambda f: func.jacfwd(f)(x),
        lambda f: func.jvp(f, (x,), (x.cos(),))[1],
    ):
        with torch.no_grad():
            torch.testing.assert_close(transform(sparse), transform(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_is_torchs(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(10, 10, kernel, stride, kernel // 2, groups=10)
    layer = DepthwiseConv2d(conv, (0.0, 6.0))
    for size in ((7, 7), (14, 15), (40, 33)):
        x = torch.randn(2, 10, *size)
        with torch.no_grad():
            assert close(layer(x), conv(x).clamp(0, 6))
        assert close(layer(x), conv(x).clamp(0, 6))  # torch's own, for gradients


def test_plane_mean_is_adaptive_pooling() -> None:
    x = torch.randn(2, 5, 7, 7)
    assert close(PlaneMean()(x), nn.AdaptiveAvgPool2d(1)(x))


def test_state_copies_and_moves() -> None:
    torch.manual_seed(0)
    layer = pruned(nn.Conv2d(6, 8, 3, padding=1), 2)
    x = torch.randn(1, 6, 5, 5)
    twin = copy.deepcopy(layer)
    other = SparseConv2d(layer.layout, layer.nnz, window=layer.window)
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(x), layer(x))
        assert torch.equal(other(x), layer(x))
        assert layer.to(torch.float16)(x.half()).dtype == torch.float16


def test_models_that_pad_by_themselves_find_the_window() -> None:
    conv = nn.Conv2d(4, 8, (3, 1), stride=(2, 1), padding=(1, 0), dilation=2)
    made = SparseConv2d.from_conv(conv)
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "in_channels"):
        assert getattr(made, name) == getattr(conv, name), name


@pytest.mark.parametrize("train", [False, True])
def test_autocast_is_obeyed(train: bool) -> None:
    layer, deep = (
        pruned(nn.Conv2d(6, 8, 3, padding=1), 2),
        DepthwiseConv2d(nn.Conv2d(6, 6, 3, groups=6)),
    )
    x = torch.randn(1, 6, 5, 5)
    expected = layer.to_conv()(x)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(train):
        y = layer(x)
        assert y.dtype == deep(x).dtype == torch.bfloat16
    assert torch.allclose(y.float(), expected, atol=5e-2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.deep = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.wide = nn.Conv2d(16, 64, 1)
        self.last = nn.Conv2d(64, 32, 1, bias=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.wide(self.deep(self.first(x)).relu()).relu())
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(("pattern", "group"), [("unstructured", 1), ("vector:8", 8)])
def test_sparsify_rewrites_1x1_convolutions(pattern: str, group: int) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 20, 20)
    report = tamis.sparsify_(
        model, "magnitude_layer", sparsity=0.75, pattern=pattern, ignore=["head"]
    )
    assert {row.name for row in report.layers} == {"wide", "last"}
    assert isinstance(model.wide, SparseConv2d)
    assert model.wide.group == group
    assert model.wide.nnz == 16 * 64 // 4
    assert type(model.first) is nn.Conv2d
    assert "conv2d_" in report.layers[0].kernel
    explained = {row.name: row for row in tamis.explain(model).layers}
    assert "conv2d_" in explained["wide"].kernel
    dense = tamis.dense_(copy.deepcopy(model))
    assert type(dense.wide) is nn.Conv2d
    with torch.no_grad():
        assert close(model(x), dense(x))


def test_sparsify_takes_larger_convolutions_that_are_named() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(1, 3, 12, 12)
    tamis.sparsify_(model, "magnitude", sparsity=0.7, targets=["first", "Conv2d"])
    assert isinstance(model.first, SparseConv2d)
    assert type(model.head) is nn.Linear
    with torch.no_grad():
        assert close(model(x), tamis.dense_(copy.deepcopy(model))(x))


def test_few_zeros_stay_dense() -> None:
    model = Net()
    report = tamis.sparsify_(model, "magnitude", sparsity=0.1, targets=["wide"])
    assert type(model.wide) is nn.Conv2d
    assert "dense" in report.layers[0].reason
    assert float((model.wide.weight == 0).float().mean()) == pytest.approx(0.1, abs=0.07)


def features(model: Net, x: torch.Tensor) -> torch.Tensor:
    """What goes into the head: how torch's product of it rounds depends on where its weight lies."""
    seen: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


def test_saved_convolutions_load(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(1, 3, 12, 12)
    tamis.sparsify_(model, "magnitude", sparsity=0.8, targets=["wide", "first"])
    tamis.save(model, tmp_path)
    loaded = tamis.load(tmp_path, model=Net().eval())
    assert isinstance(loaded.first, SparseConv2d)
    assert torch.equal(features(loaded, x), features(model, x))
    again = tamis.load(tmp_path, model=loaded)
    assert torch.equal(features(again, x), features(model, x))
    assert torch.equal(again.head.weight, model.head.weight)


def test_bad_input_is_told_what_is_wrong() -> None:
    conv = nn.Conv2d(4, 6, 1)
    layer = SparseConv2d.from_conv(conv)
    with pytest.raises(ValueError, match=r"conv2d: x: got shape \[1, 5, 3, 3\], wanted \[n, 4, h"):
        layer(torch.zeros(1, 5, 3, 3))
    with pytest.raises(TypeError, match="conv2d: x: got torch.int64"):
        layer(torch.zeros(1, 4, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="block"):
        SparseConv2d.from_conv(conv, group=4)
    with pytest.raises(NotImplementedError, match="got 2 groups, wanted 1"):
        SparseConv2d.from_conv(nn.Conv2d(4, 6, 1, groups=2))
    with pytest.raises(NotImplementedError, match="got padding"):
        SparseConv2d.from_conv(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"))
    with pytest.raises(NotImplementedError, match="wanted csr or block:Rx1"):
        SparseConv2d(tamis.Layout("bitmap", 4, 4, "f32"), 2)
    with pytest.raises(NotImplementedError, match="DepthwiseConv2d: conv: got 1 groups"):
        DepthwiseConv2d(conv)
    small = SparseConv2d.from_conv(nn.Conv2d(4, 6, 3))
    with pytest.raises(ValueError, match="got images of 2 x 5 pixels"):
        small(torch.zeros(1, 4, 2, 5))
    model = Net()
    with pytest.raises(NotImplementedError, match="got a convolution with pattern '2:4'"):
        tamis.sparsify_(model, "magnitude", pattern="2:4", targets=["wide"])
    with pytest.raises(NotImplementedError, match=r"without calibration.*targets=\['Linear'\]"):
        tamis.sparsify_(model, "wanda", data=[[1, 2]], targets=["wide"])
    assert type(model.wide) is nn.Conv2d


def test_a_written_structure_is_checked_again() -> None:
    layer = pruned(nn.Conv2d(6, 8, 1), 1)
    x = torch.randn(1, 6, 2, 2)
    with torch.no_grad():
        layer(x)
        columns = layer.weight_col_indices
        assert isinstance(columns, torch.Tensor)
        columns[0] = 99
        with pytest.raises(ValueError, match="col_indices"):
            conv2d(
                x, layer.layout.token, layer.weight_values, layer.weight_row_offsets, columns,
                None, layer.window,
            )  # fmt: skip

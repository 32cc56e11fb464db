"""Whole convolutional networks: fused, reordered, pruned and trained; same outputs as torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tamis
from tamis.nn import DepthwiseConv2d, PlaneMean, SparseConv2d, SparseLinear

# MobileNet-v1's separable layers (inputs, outputs, stride), and its first ones alone.
SHALLOW = ((16, 32, 1), (32, 48, 2), (48, 64, 1))


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def mobilenet(channels: int, layers: tuple[tuple[int, int, int], ...], classes: int) -> nn.Module:
    first = layers[0][0]
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, 2, 1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        *(separable(*layer) for layer in layers),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(layers[-1][1], classes),
    )


def unsettle(model: nn.Module) -> nn.Module:
    """Statistics as training would leave them, not those that do nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


@pytest.mark.parametrize(("pattern", "group"), [("unstructured", 1), ("vector:4", 4)])
def test_fused_network_computes_the_same(pattern: str, group: int) -> None:
    torch.manual_seed(0)
    model = unsettle(mobilenet(3, SHALLOW, 10))
    tamis.sparsify_(model, "magnitude_layer", sparsity=0.9, pattern=pattern, ignore=["8"])
    x = torch.randn(2, 3, 33, 30)
    with torch.no_grad():
        wanted = tamis.dense_(copy.deepcopy(model))(x)
        report = tamis.fuse_(model)
        fused = model(x)
    assert torch.allclose(fused, wanted, atol=1e-4, rtol=1e-4)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(SparseConv2d) == 4
    assert kinds.count(DepthwiseConv2d) == 3
    assert kinds.count(PlaneMean) == 1
    assert nn.BatchNorm2d not in kinds
    assert nn.ReLU6 not in kinds
    assert model[3][3].group == group
    assert model[3][3].bounds == (0.0, 6.0)
    assert len(report.layers) == 7
    assert all("BatchNorm" not in row.reason for row in report.layers)
    assert "batch norm and ReLU6 folded in" in {row.reason for row in report.layers}


class Branching(nn.Module):
    """What must not be folded: a result read twice, a layer called twice, a bare convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU()
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        z = self.norm(y) + y
        out: torch.Tensor = self.c(self.relu(self.b(self.relu(z))))
        return out


def test_fuse_leaves_what_others_read() -> None:
    torch.manual_seed(0)
    model = unsettle(Branching())
    tamis.sparsify_(model, "magnitude", sparsity=0.8)
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        wanted = model(x)
        tamis.fuse_(model)
        assert torch.allclose(model(x), wanted, atol=1e-5)
    assert type(model.norm) is nn.BatchNorm2d
    assert type(model.relu) is nn.ReLU
    assert model.b.bounds == (-torch.inf, torch.inf)


def test_fuse_refuses_what_it_cannot_know() -> None:
    with pytest.raises(ValueError, match="got training mode"):
        tamis.fuse_(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(TypeError, match="wanted a torch.nn.Module"):
        tamis.fuse_(3)  # type: ignore[arg-type]

    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NotImplementedError, match="torch.fx cannot trace"):
        tamis.fuse_(Branches().eval())


class Residual(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, inner, 1)
        self.norm = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, 1, 1, groups=inner)
        self.project = nn.Conv2d(inner, channels, 1)
        self.relu = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.depthwise(self.relu(self.norm(self.expand(x)))))
        return x + self.project(inner)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 2, 1)
        self.body = nn.Sequential(Residual(32, 64), Residual(32, 64))
        self.last = nn.Conv2d(32, 48, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.last(self.body(self.first(x)).relu()).mean((2, 3)))
        return out


def test_reordered_channels_keep_the_function_and_more_weight() -> None:
    torch.manual_seed(0)
    model = unsettle(ResidualNet())
    for module in model.modules():  # two kinds of outputs that want different inputs, mixed
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            kind = torch.randint(0, 2, (module.out_channels, 1, 1, 1))
            wants = torch.randint(0, 2, (1, module.in_channels, 1, 1))
            module.weight.data *= torch.where(kind == wants, 1.2, 0.2)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        report = tamis.permute_for_groups(model, 8, sparsity=0.5)
        assert float((model(x) - before).abs().max()) < 1e-6
    assert report.metrics["kept_after"] > 1.15 * float(report.metrics["kept_before"])
    assert {row.name for row in report.layers} >= {"body.0.expand", "body.1.project", "last"}
    kept = tamis.sparsify_(model, "magnitude", sparsity=0.5, pattern="vector:8", ignore=["head"])
    assert kept.layers


def test_unknown_operations_pin_their_channels() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1)
            self.c = nn.Conv2d(16, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.c(torch.cat([self.a(x), self.b(x)], 1))
            return out

    torch.manual_seed(0)
    model, x = Cat().eval(), torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        before = model(x)
        report = tamis.permute_for_groups(model, 4)
        assert torch.equal(model(x), before)
    assert report.metrics["kept_after"] == report.metrics["kept_before"]
    with pytest.raises(ValueError, match="group: got 1, wanted a whole number"):
        tamis.permute_for_groups(model, 1)


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, rate: float) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * (len(x) // 96)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for at in range(0, len(x) - 95, 96):
            batch = order[at : at + 96]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()


def test_pruned_digits_net_stays_within_two_points() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    torch.manual_seed(0)
    digits = datasets.load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=(16, 16), mode="nearest")
    labels = torch.as_tensor(digits.target)
    order = torch.randperm(len(labels))
    images, labels = images[order], labels[order]
    x, y, test_x, test_y = images[:1297], labels[:1297], images[1297:], labels[1297:]
    model = mobilenet(1, SHALLOW, 10)
    train(model, x, y, 10, 1e-2)
    dense = accuracy(model, test_x, test_y)
    tamis.sparsify_(model, "magnitude_layer", sparsity=0.8, ignore=["8"])
    train(model, x, y, 10, 1e-2)
    sparse = accuracy(model, test_x, test_y)
    zeros = [1 - m.nnz / m.layout.rows / m.layout.cols for m in model.modules()
             if isinstance(m, SparseConv2d)]  # fmt: skip
    assert len(zeros) == 3
    assert min(zeros) > 0.79
    assert dense > 0.93
    assert sparse > dense - 0.02
    with torch.no_grad():
        wanted = model(test_x)
        tamis.fuse_(model)
        assert torch.allclose(model(test_x), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"targets": ["re:.*convolution"]}, {"pattern": "vector:4"}]
)
def test_convolutions_of_transformers_are_saved_loaded_and_converted(options, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1]}
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(**sizes, layer_type="bottleneck")
    ).eval()
    options = {"ignore": ["re:classifier.*"], **options}
    tamis.sparsify_(model, "magnitude", sparsity=0.9, **options)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x).logits
    tamis.save(model, tmp_path / "a")
    tamis.convert(tmp_path / "a", tmp_path / "dense", format="dense")
    tamis.convert(tmp_path / "a", tmp_path / "again", format="bitmap")
    loaded = tamis.load(tmp_path / "a")
    names = [n for n, m in model.named_modules() if isinstance(m, SparseConv2d)]
    assert names == [n for n, m in loaded.named_modules() if isinstance(m, SparseConv2d)]
    assert len(names) >= 5
    for found in (
        loaded,
        type(model).from_pretrained(tmp_path / "dense").eval(),
        tamis.load(tmp_path / "again"),
        tamis.load(tmp_path / "a", model=type(model)(model.config)),
    ):
        with torch.no_grad():
            torch.testing.assert_close(found(x).logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_pruned_classifier_does_not_keep_a_net_from_being_fused() -> None:
    torch.manual_seed(0)
    net = unsettle(mobilenet(3, SHALLOW, 16)).eval()
    tamis.sparsify_(net, "magnitude", sparsity=0.9)
    assert isinstance(net[-1], SparseLinear)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = net(x)
        tamis.fuse_(net)
        torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-4)

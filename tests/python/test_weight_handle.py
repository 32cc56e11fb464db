"""``SparseLinear.weight`` in the hands of code that treats it as a tensor: read, or refused in a sentence."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")

from sentences import refuses  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import tamis  # noqa: E402
from tamis.errors import TamisTypeError, TamisUnsupported  # noqa: E402
from tamis.nn import SparseLinear  # noqa: E402


class ByHand(nn.Module):
    """Multiplies its layer's weight itself, as Mamba does with dt_proj."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.dt_proj = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return functional.linear(self.up(x), self.dt_proj.weight)


def pruned(model: nn.Module) -> nn.Module:
    tamis.sparsify_(model, "magnitude", sparsity=0.5, format="bitmap")
    return model


def test_weights_multiplied_by_hand_warn_once_and_say_what_to_ignore():
    model = pruned(nn.Sequential(ByHand(), ByHand()))
    x = torch.randn(2, 64)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        y = model(x)
        assert torch.equal(model(x), y)
    assert len(found) == 1
    said = str(found[0].message)
    assert "weight of dt_proj itself" in said
    assert "ignore=['re:.*dt_proj'] of sparsify_" in said
    assert found[0].filename.endswith("functional.py") or found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.Sequential(*pruned(nn.Sequential(nn.Linear(64, 64), nn.ReLU())))(x)


def test_loaded_layers_know_their_name_too(tmp_path):
    tamis.save(pruned(ByHand()), tmp_path / "model")
    model = tamis.load(tmp_path / "model", model=ByHand())
    with pytest.warns(UserWarning, match="of dt_proj itself"):
        model(torch.randn(2, 64))
    with pytest.warns(UserWarning, match=r"of the weight \[8, 64\] itself"):
        functional.linear(
            torch.ones(64), SparseLinear.from_linear(nn.Linear(64, 8), format="bitmap").weight
        )


@pytest.mark.parametrize("init", [nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_])
def test_what_would_change_a_copy_alone_is_refused(init):
    layer = pruned(nn.Sequential(nn.Linear(64, 64)))[0]
    values = layer.weight_values.detach().clone()
    refuses(lambda: init(layer.weight), TamisTypeError, "SparseLinear.weight: got", init.__name__)
    assert torch.equal(layer.weight_values, values)
    dense = torch.empty(64, 64)
    with pytest.warns(UserWarning, match="copy_"):
        dense.copy_(layer.weight)  # reads
    assert torch.equal(dense, layer.weight.to_dense())


def test_the_weight_is_not_replaced():
    layer = pruned(nn.Sequential(nn.Linear(64, 64)))[0]
    before = copy.deepcopy(layer.state_dict())

    def assign():
        layer.weight = nn.Parameter(torch.ones(64, 64))

    for call in (assign, lambda: prune.l1_unstructured(layer, "weight", 0.5)):
        refuses(call, TamisTypeError, "SparseLinear.weight", "tamis.dense_(model)")
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(layer.state_dict()[name], x) for name, x in before.items())


def test_a_layer_is_not_made_of_sizes():
    refuses(lambda: SparseLinear(64, 64), TamisTypeError, "layout: got int", "from_linear")


@pytest.mark.parametrize("strict", [True, False])
def test_dense_states_are_refused(strict):
    model, dense = pruned(ByHand()), ByHand()
    values = model.up.weight_values.detach().clone()
    with pytest.raises(RuntimeError, match=r"up\.weight: got a dense weight.*before sparsify_"):
        model.load_state_dict(dense.state_dict(), strict=strict)
    assert torch.equal(model.up.weight_values, values)
    tamis.dense_(model).load_state_dict(dense.state_dict())


def test_onnx_is_refused_by_the_layer(tmp_path):
    model, x = pruned(nn.Sequential(nn.Linear(64, 64))), torch.ones(2, 64)
    refuses(
        lambda: torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=False),
        TamisUnsupported,
        "torch.onnx.export: model: got a compressed layer",
        "tamis.dense_(copy.deepcopy(model))",
    )
    assert not (tmp_path / "m.onnx").exists()
    torch.export.export(model, (x,))

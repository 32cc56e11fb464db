"""Weights that a CUDA device holds packed alone: where arrays lie, and what a model does with them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from host import needs_device
from torch import nn

import tamis
from tamis.ops import cuda, cuda_packed, cuda_spmm

PROMPTS = ((1, 7), (1, 20), (1, 70), (1, 300))


def layer(n: int, k: int, density: float, float_dtype: torch.dtype, **options: Any) -> Any:
    linear = nn.Linear(k, n, dtype=float_dtype)
    keep = torch.rand(n, k) < density
    if options.get("format") == "nm":
        keep = torch.rand(n, k // 4, 4).argsort(-1).lt(2).view(n, k)
    if options.get("format") == "groupq":
        keep = (torch.rand(n, k // 16) < density).repeat_interleave(16, 1)
    return tamis.nn.SparseLinear.from_linear(linear, keep=keep, **options)


def test_arrays_stay_in_host_memory_wherever_the_layer_goes() -> None:
    made = layer(24, 64, 0.5, torch.bfloat16, format="bitmap")
    made.keep_packed(torch.device("meta"))
    arrays = [made.weight_values.data_ptr(), made.weight_mask.data_ptr()]
    assert made.weight.device.type == "meta"
    made.to("meta")
    assert made.bias.is_meta
    assert [made.weight_values.data_ptr(), made.weight_mask.data_ptr()] == arrays
    made.to(torch.float16)
    assert made.weight_values.dtype == made.weight.dtype == torch.float16
    assert made.weight_values.is_cpu
    assert copy.deepcopy(made).packed_on == made.packed_on


def test_what_is_packed_goes_when_the_layer_leaves_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = layer(24, 64, 0.5, torch.bfloat16, format="bitmap")
    made.keep_packed(torch.device("cpu"))
    key = id(made.weight_values)
    monkeypatch.setitem(cuda_packed.forms_held, key, [])
    made.to("cpu")
    assert key in cuda_packed.forms_held
    made.to("meta")
    assert key not in cuda_packed.forms_held


@pytest.mark.parametrize("also_dense", [False, True])
def test_another_format_is_left_packed_alone_too(
    monkeypatch: pytest.MonkeyPatch, also_dense: bool
) -> None:
    calls: list[Any] = []

    def pack(*args: Any, keep_dense: bool) -> int:
        calls.append((args[0].format, args[-2:], keep_dense))
        return 1

    home = torch.device("cpu")
    made, other = (layer(24, 64, 0.05, torch.bfloat16, format="bitmap") for _ in range(2))
    made.keep_packed(home)
    monkeypatch.setattr(cuda_spmm, "prepack", pack)
    monkeypatch.setattr(cuda_packed, "keeps_dense", lambda values, device: also_dense)
    model = nn.Sequential(made, other)
    tamis.optimize_(model, "bytes", tokens=3)
    assert calls == [("csr8", (home, 3), also_dense)]
    assert [x.layout.format for x in model] == ["csr8", "csr8"]
    assert [x.packed_on for x in model] == [home, None]


@pytest.mark.skipif(not cuda.why_off(), reason="CUDA is on")
def test_says_what_is_missing() -> None:
    model = nn.Sequential(layer(24, 64, 0.5, torch.bfloat16, format="bitmap"))
    with pytest.raises(tamis.TamisValueError, match="prepack_: model: got no CUDA kernels"):
        tamis.prepack_(model, device="cuda")
    with pytest.raises(tamis.TamisValueError, match="tokens: got 0, wanted at least 1"):
        tamis.prepack_(model, tokens=0)
    with pytest.raises(tamis.TamisTypeError, match=r"wanted a torch\.nn\.Module"):
        tamis.prepack_("model")  # type: ignore[arg-type]
    assert model[0].packed_on is None


@needs_device
def test_says_which_layers_stay() -> None:
    model = nn.Sequential(layer(24, 64, 0.5, torch.float32, format="bitmap"))
    with pytest.raises(tamis.TamisValueError, match="got no compressed layer on a CUDA device"):
        tamis.prepack_(model)
    with pytest.raises(tamis.TamisValueError, match="device: got cpu, wanted a CUDA device"):
        tamis.prepack_(model, device="cpu")
    report = tamis.prepack_(model, device="cuda")
    assert report.layers[0].reason == "left as it is: kernels read bitmap f32"
    assert model[0].weight_values.is_cuda
    w = model[0].weight.to_dense().double()
    report = tamis.prepack_(model, keep_dense=True)
    assert model[0].packed_on == torch.device("cuda", 0)
    assert report.layers[0].nbytes >= model[0].nbytes + 4 * w.numel()
    for tokens in (1, 16, 40):
        x = torch.randn(tokens, 64, device="cuda")
        wanted = x.double() @ w.T + model[0].bias.double()
        torch.testing.assert_close(model(x).double(), wanted, rtol=1e-5, atol=1e-5)


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    "shape", [(1, 8), (17, 65), (50, 200), (136, 1096), (130, 4500), (1024, 4096), (264, 14336)]
)
@torch.no_grad()
def test_gives_what_saved_weights_give(
    shape: tuple[int, int], density: float, dtype: torch.dtype
) -> None:
    made = layer(*shape, density, dtype, format="bitmap")
    dense = made.weight.to_dense().cuda()
    model = nn.Sequential(made)
    saved = {name: t.clone() for name, t in model.state_dict().items()}
    tamis.prepack_(model, device="cuda")
    assert made.weight_values.is_cpu
    assert made.weight.is_cuda
    for name, t in model.state_dict().items():
        assert torch.equal(t.cpu(), saved[name])
    eps = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    n, k = shape
    for tokens in ((1,), (2,), (5,), (16,), (40,), *PROMPTS, (300,)):
        x = torch.randn(*tokens, k, device="cuda", dtype=dtype)
        y, wanted = model(x), x.double() @ dense.double().T + made.bias.double()
        scale = x.double().abs() @ dense.double().abs().T
        near = bool(((y.double() - wanted).abs() <= 4 * eps * wanted.abs() + 2e-5 * scale).all())
        # Written out and given to torch, whose products round more than once.
        assert near or torch.equal(y, nn.functional.linear(x, dense, made.bias))
    for packed in cuda_packed.forms_held[id(made.weight_values)]:
        out = torch.full((n, k), float("nan"), device="cuda", dtype=dtype)
        packed.matrix.unpack(out.data_ptr(), k, torch.cuda.current_stream().cuda_stream)
        assert torch.equal(out, dense), packed.form


@needs_device
@torch.no_grad()
def test_codes_and_patterns_too() -> None:
    for options in (
        {"format": "nm"},
        {"format": "groupq", "dtype": "u4", "group_size": 16},
        {"format": "bitmap", "dtype": "i8", "group_size": 128},
        {"format": "nm", "dtype": "i4", "group_size": 128},
    ):
        made = layer(256, 1024, 0.5, torch.bfloat16, **options)
        whole, model = copy.deepcopy(made).cuda(), nn.Sequential(made)
        report = tamis.prepack_(model, device="cuda")
        assert report.layers[0].nbytes < report.layers[0].dense_nbytes
        assert model[0].packed_on == torch.device("cuda", 0)
        for tokens in ((1,), (5,), (16,), *PROMPTS):
            x = torch.randn(*tokens, 1024, device="cuda", dtype=torch.bfloat16)
            assert torch.equal(model(x), whole(x)), (options, tokens)


@needs_device
@torch.no_grad()
def test_prompts_by_a_dense_copy() -> None:
    made = layer(1024, 4096, 0.5, torch.bfloat16, format="bitmap")
    dense, model = made.weight.to_dense().cuda(), nn.Sequential(made)
    report = tamis.prepack_(model, device="cuda", keep_dense=True)
    share = report.layers[0].nbytes / made.layout.dense_nbytes
    assert 1.6 < share < 1.7
    for tokens in ((100,), (1, 300)):
        x = torch.randn(*tokens, 4096, device="cuda", dtype=torch.bfloat16)
        assert torch.equal(model(x), nn.functional.linear(x, dense, made.bias))
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    alone = copy.deepcopy(model)
    tamis.prepack_(alone)
    assert torch.equal(model(x), alone(x))


@needs_device
@torch.no_grad()
def test_optimizing_keeps_weights_packed_alone() -> None:
    linear = nn.Linear(4096, 2048, dtype=torch.bfloat16)
    keep = torch.rand(2048, 1024, 4).argsort(-1).lt(2).view(2048, 4096)
    made = tamis.nn.SparseLinear.from_linear(linear, keep=keep, format="bitmap")
    for also_dense in (False, True):
        model = nn.Sequential(copy.deepcopy(made))
        tamis.prepack_(model, device="cuda", keep_dense=also_dense)
        report = tamis.optimize_(model, "bytes", tokens=1)
        now = model[0]
        assert now.layout.format == "nm"
        assert now.packed_on == torch.device("cuda", 0)
        assert now.weight_values.is_cpu
        assert report.layers[0].nbytes == cuda_packed.nbytes(now.weight_values, 0)
        x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
        wanted = nn.functional.linear(x.float(), now.weight.to_dense().float(), now.bias.float())
        assert torch.allclose(model(x).float(), wanted, atol=2e-2)


def requested() -> int:
    """Bytes on the device, without what torch rounds blocks up by, up to 1 MB, as others left them."""
    return torch.cuda.memory_stats().get("requested_bytes.all.current", 0)


@needs_device
def test_a_model_goes_on_as_before(tmp_path: Path) -> None:
    """Moved, copied, saved, loaded into, captured in a graph, trained again; memory is what is packed."""
    made = layer(2048, 4096, 0.5, torch.bfloat16, format="bitmap")
    before = requested()
    model = nn.Sequential(made)
    report = tamis.prepack_(model, device="cuda")
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    held = requested() - before - x.nbytes
    packed = report.layers[0].nbytes
    assert packed < 0.7 * made.layout.dense_nbytes
    assert packed <= held < packed + (1 << 16) + made.bias.nbytes
    with torch.no_grad():
        y = model(x)
        graph, out = torch.cuda.CUDAGraph(), torch.empty_like(y)
        with torch.cuda.graph(graph):
            out.copy_(model(x))
        graph.replay()
        assert torch.equal(out, y)
        model.cuda()
        assert made.weight_values.is_cpu
        assert torch.equal(model(x), y)
        state = {name: t.clone() for name, t in model.state_dict().items()}
        state["0.weight_values"] *= 2
        model.load_state_dict(state)
        assert torch.equal(model(x) - made.bias, 2 * (y - made.bias)) or torch.allclose(
            model(x).float(), (2 * y - made.bias).float(), rtol=0.02, atol=0.05
        )
    asked = x.clone().requires_grad_()
    with pytest.raises(tamis.TamisTypeError, match="call keep_saved"):
        model(asked).sum().backward()
    made.keep_saved()
    model(asked).sum().backward()
    assert made.weight_values.grad is not None
    assert made.weight_values.grad.is_cuda

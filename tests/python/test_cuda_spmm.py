"""On a CUDA device every product with weights against float64, in graphs and after prompts."""

import pytest
import torch
from host import needs_device
from torch import Tensor

import tamis
from tamis.layout import Layout
from tamis.ops import cuda, cuda_choice, cuda_forms, cuda_memory, cuda_packed, cuda_spmm
from tamis.ops.tensors import REST

SHAPES = [
    *((16, 64), (1, 8), (17, 65), (50, 200), (130, 321), (136, 200), (264, 1096)),
    *((1024, 4096), (4096, 1024)),
]


def make(n: int, k: int, density: float, dtype: torch.dtype) -> tuple[Tensor, tamis.SparseMatrix]:
    """Dense weights on the device, and compressed."""
    w = torch.randn(n, k, dtype=dtype)
    w[torch.rand(n, k) >= density] = 0
    a = tamis.compress(w, format="bitmap")
    moved = {name: array.cuda() for name, array in a.arrays.items()}
    return w.cuda(), tamis.SparseMatrix(a.layout, moved)


def expect_product(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None) -> None:
    wanted = x.double() @ w.double().T
    scale = x.double().abs() @ w.double().abs().T
    if bias is not None:
        wanted += bias.double()
    eps = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}[x.dtype]
    allowed = eps * wanted.abs() + 32 * 2.0**-23 * scale
    assert bool(((y.double() - wanted).abs() <= allowed).all())


def check(x: Tensor, w: Tensor, a: tamis.SparseMatrix, bias: Tensor | None) -> None:
    y = tamis.ops.spmm.spmm(x, a, bias)
    assert torch.equal(y, tamis.ops.spmm.spmm(x, a, bias)), "two runs differ"
    held = cuda_packed.forms_held.get(id(a.arrays["values"]), ())
    most = max((packed.most for packed in held), default=cuda_spmm.MAX_TOKENS * x.shape[-1])
    calls = any(cuda_spmm._in_calls(p, x, a.arrays["values"], a.layout) for p in held)
    if x.numel() > most and not calls:
        # Expanded and given to torch, whose bf16 products round more than once (seen on an H100: with
        # a bias and 321 columns, errors of 2.5 half units).
        assert torch.equal(y, torch.nn.functional.linear(x, w, bias))
        return
    expect_product(y, x, w, bias)


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int], density: float, dtype: torch.dtype) -> None:
    w, a = make(*shape, density, dtype)
    bias = torch.randn(shape[0], dtype=dtype, device="cuda")
    for m in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 33, 64, 65, 200):
        x = torch.randn(m, shape[1], dtype=dtype, device="cuda")
        check(x, w, a, bias if m % 2 else None)


@needs_device
@pytest.mark.skipif(not cuda.why_off() and cuda_forms.sm(0) != 90, reason="r24 is for sm_90")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 4096), (14336, 256), (300, 20000)])
def test_pairs_in_place_and_a_residual(
    shape: tuple[int, int], density: float, dtype: torch.dtype
) -> None:
    """r24 by itself, as few weights come to it: any tokens, rows of x that begin anywhere, written out."""
    w, a = make(*shape, density, dtype)
    rest = tuple(a.arrays.get(name) for name in REST)
    values = a.arrays["values"]
    packed = cuda_packed.Packed(a.layout, values, rest, dtype, "r24", values.device)
    assert packed.matrix.most_tokens == 128
    bias = torch.randn(shape[0], dtype=dtype, device="cuda")
    for m in (1, 33, 48, 63, 64, 65, 100, 128):
        padding = 3 if m in (33, 100) else 0
        x = torch.randn(m, shape[1] + padding, dtype=dtype, device="cuda")[:, padding:]
        y = packed.run(x, bias if m % 2 else None)
        assert torch.equal(y, packed.run(x, bias if m % 2 else None)), "two runs differ"
        expect_product(y, x, w, bias if m % 2 else None)
    out = torch.empty_like(w)
    stream = torch.cuda.current_stream().cuda_stream
    packed.matrix.unpack(out.data_ptr(), shape[1], stream)
    assert torch.equal(out, w)


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("shape", [(16, 64), (1, 32), (17, 96), (130, 320), (1024, 4096)])
def test_groups_of_codes(shape: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    w = torch.randn(shape)
    w.view(shape[0], -1, size)[torch.rand(shape[0], shape[1] // size) < 0.5] = 0
    a = tamis.compress(w, format="groupq", dtype="u4", group_size=size)
    w = a.to_dense().double().cuda()
    a = tamis.SparseMatrix(a.layout, {name: array.cuda() for name, array in a.arrays.items()})
    eps = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    for m in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 33, 64, 65):
        x = torch.randn(m, shape[1], dtype=dtype, device="cuda")
        y = tamis.ops.spmm.spmm(x, a)
        assert torch.equal(y, tamis.ops.spmm.spmm(x, a))
        wanted, scale = x.double() @ w.T, x.double().abs() @ w.abs().T
        # Weights are rounded, twice in bf16; above 64 tokens torch may round its sums as well.
        allowed = eps * wanted.abs() + (2.5 * eps + 32 * 2.0**-23) * scale + 1e-6
        assert bool(((y.double() - wanted).abs() <= allowed).all())


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize(
    "shape", [(16, 64), (1, 8), (17, 68), (130, 324), (1024, 4096), (2100, 4100)]
)
def test_sparse_tensor_cores(shape: tuple[int, int], kept: int, dtype: torch.dtype) -> None:
    w = torch.randn(shape, dtype=dtype)
    keep = torch.rand(shape[0], shape[1] // 4, 4).argsort(-1).lt(kept).view(shape)
    a = tamis.compress(w, keep=keep, format="nm", n_m=(kept, 4))
    w = (w * keep).cuda()
    a = tamis.SparseMatrix(a.layout, {name: array.cuda() for name, array in a.arrays.items()})
    bias = torch.randn(shape[0], dtype=dtype, device="cuda")
    for m in (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 300, 513, 1200):
        x = torch.randn(m, shape[1], dtype=dtype, device="cuda")
        check(x, w, a, bias if m % 2 else None)
    # Rows that no copy of 16 bytes begins at, as long as rows of x and y do not follow each other.
    x = torch.randn(130, shape[1] + 1, dtype=dtype, device="cuda")[:, 1:]
    check(x, w, a, bias)


def rounded(x: Tensor) -> Tensor:
    """x as int8 kernels round it: codes of 8 bits, a step per token and 256 columns, in float64."""
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % 256)).view(len(x), -1, 256)
    largest = padded.abs().amax(-1, keepdim=True)
    factor = torch.full_like(largest, 127) / largest.clamp_min(1e-30)  # 127 / tensor rounds twice
    codes = (padded * factor).round().double()
    return (codes * (largest / 127)).view(len(x), -1)[:, : x.shape[-1]]


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group_size", [0, 128, 512])
@pytest.mark.parametrize("kept", ["1:4", "2:4", "2:4 i4", "0", "0.3", "1"])
@pytest.mark.parametrize("shape", [(16, 64), (1, 8), (17, 68), (130, 324), (1024, 4096)])
def test_int8_values(
    shape: tuple[int, int], kept: str, group_size: int, dtype: torch.dtype
) -> None:
    w, made = torch.randn(shape), {"dtype": "i8", "group_size": group_size}
    if ":" in kept:
        few = int(kept[0])
        made["dtype"] = kept[4:] or "i8"
        keep = torch.rand(shape[0], shape[1] // 4, 4).argsort(-1).lt(few).view(shape)
        a = tamis.compress(w, keep=keep, format="nm", n_m=(few, 4), **made)
    else:
        a = tamis.compress(w, keep=torch.rand(shape) < float(kept), format="bitmap", **made)
    w = a.to_dense().double().cuda()
    a = tamis.SparseMatrix(a.layout, {name: array.cuda() for name, array in a.arrays.items()})
    form = "t16i8" if ":" not in kept else "m24i4" if kept.endswith("i4") else "m24i8"
    assert cuda_spmm.kernel(a.layout, a.arrays["values"], a.nnz, 1, 0).startswith(
        f"spmm_{form}_i8_"
    )
    bias = torch.randn(shape[0], dtype=dtype, device="cuda")
    eps = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    for m in (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65):
        x = torch.randn(m, shape[1], dtype=dtype, device="cuda")
        y = tamis.ops.spmm.spmm(x, a, bias if m % 2 else None)
        assert torch.equal(y, tamis.ops.spmm.spmm(x, a, bias if m % 2 else None))
        # Above 64 tokens x is exact, the weight rounded to x's dtype, and torch may round sums.
        few = m <= cuda_spmm.MAX_TOKENS
        given = rounded(x) if few else x.double()
        wanted, scale = given @ w.T + (bias.double() if m % 2 else 0), given.abs() @ w.abs().T
        off = (0 if few else 2.5 * eps) + 32 * 2.0**-23
        allowed = eps * wanted.abs() + off * scale + 1e-6
        assert bool(((y.double() - wanted).abs() <= allowed).all())


@needs_device
@pytest.mark.parametrize("format", ["nm", "bitmap"])
def test_int8_layers_agree_with_the_cpu(format: str) -> None:
    """Codes of x are the CPU's, so that what is left is the order of sums and y's rounding."""
    linear = torch.nn.Linear(1024, 512)
    keep = torch.rand(512, 256, 4).argsort(-1).lt(2).view(512, 1024)
    layer = tamis.nn.SparseLinear.from_linear(linear, keep=keep, format=format, dtype="i8").half()
    x = torch.randn(5, 1024).half()
    on_cpu = layer(x)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), on_cpu, rtol=2e-3, atol=2e-3)


@needs_device
def test_strided_and_misaligned_inputs() -> None:
    w, a = make(96, 200, 0.5, torch.bfloat16)
    x = torch.randn(9, 211, dtype=torch.bfloat16, device="cuda")
    for begin in (0, 1, 8):
        check(x[:, begin : begin + 200], w, a, None)
    for m in (1, 2, 4):
        check(x[:m, 3:203], w, a, None)
        check(x[:m, :200], w, a, None)


@needs_device
def test_groups_of_codes_take_any_x_and_follow_prompts() -> None:
    w = torch.randn(700, 608)
    w.view(700, 38, 16)[torch.rand(700, 38) < 0.5] = 0
    made = tamis.compress(w, format="groupq", dtype="u4", group_size=16)
    w = made.to_dense().double().cuda()
    a = tamis.SparseMatrix(made.layout, {name: array.cuda() for name, array in made.arrays.items()})
    bias = torch.randn(700, dtype=torch.bfloat16, device="cuda")
    wide = torch.randn(4, 619, dtype=torch.bfloat16, device="cuda")
    for x in (
        torch.randn(1, 90, 608, device="cuda").bfloat16(),
        torch.randn(1, 1, 608, device="cuda").bfloat16() * 1e30,
        torch.randn(4, 608, device="cuda").bfloat16() * 1e-30,
        torch.zeros(2, 608, device="cuda").bfloat16(),
        wide[:, 8:616],
        wide[:3, 3:611],
        torch.randn(12, 608, device="cuda").bfloat16(),
    ):
        y = tamis.ops.spmm.spmm(x, a, bias)
        wanted, scale = x.double() @ w.T + bias.double(), x.double().abs() @ w.abs().T
        allowed = 2.0**-7 * wanted.abs() + 2.0**-7 * scale
        assert bool(((y.double() - wanted).abs() <= allowed).all())
    forms = [packed.form for packed in cuda_packed.forms_held[id(a.arrays["values"])]]
    assert forms == ["sell4", "g4"]  # up to 4 tokens, and 12


@needs_device
@pytest.mark.parametrize("rows", [700, 704])  # written out from gap, and from the mask
def test_gap_products_by_tokens_that_follow_prompts(rows: int) -> None:
    w, a = make(rows, 600, 0.4, torch.bfloat16)
    for shape in ((1, 20, 600), (1, 1, 600), (3, 1, 600), (1, 90, 600), (4, 1, 600)):
        x = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        stays = shape[1] <= cuda_choice.stored_tokens(a.layout, a.nnz, 0)
        if shape[1] > 1 and not stays:  # written out and given to torch
            y = tamis.ops.spmm.spmm(x, a)
            assert torch.equal(y, torch.nn.functional.linear(x, w))
        else:
            check(x, w, a, None)
    forms = [packed.form for packed in cuda_packed.forms_held[id(a.arrays["values"])]]
    stored = ["bitmap"] if cuda_choice.stored_tokens(a.layout, a.nnz, 0) >= 20 else []
    assert forms == ["gap", *stored]


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(8, 8), (136, 200), (264, 1096), (1032, 4096), (4096, 1024)])
def test_weights_as_they_are_stored(n: int, k: int, dtype: torch.dtype) -> None:
    """Every layout, whatever is expected to be fastest, in whole output tiles and shares of them."""
    layout = Layout("bitmap", n, k, "bf16" if dtype == torch.bfloat16 else "f16")
    if not cuda_forms.taken_as_stored(layout, 0):
        pytest.skip("no kernel takes bitmap here")
    for density in (0.3, 1.0):
        w, a = make(n, k, density, dtype)
        rest = tuple(a.arrays.get(name) for name in REST)
        values = a.arrays["values"]
        packed = cuda_packed.Packed(a.layout, values, rest, dtype, cuda_forms.STORED, values.device)
        for m in (1, 20, 33, 64, 100, 300):
            x = torch.randn(m, k, dtype=dtype, device="cuda")
            wanted, scale = x.double() @ w.double().T, x.double().abs() @ w.double().abs().T
            eps = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
            least = (
                torch.finfo(dtype).smallest_normal * eps
            )  # half of the step of subnormal numbers
            for line in range(4):
                for blocks in (1, 3, 24, 132, 264):
                    assert packed.matrix.lay_out_groups(m, line, blocks)
                    packed.workspaces.clear()
                    y = packed.run(x, None)
                    allowed = eps * wanted.abs() + 32 * 2.0**-23 * scale + least
                    assert bool(((y.double() - wanted).abs() <= allowed).all())
                    assert torch.equal(y, packed.run(x, None))


@needs_device
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 8190), (2100, 4100), (5, 40000)])
def test_32_bit_values(shape: tuple[int, int], density: float) -> None:
    """Within f32 of what float64 says, in calls of up to 16 tokens and written out beyond."""
    w, a = make(*shape, density, torch.float32)
    bias = torch.randn(shape[0], device="cuda")
    for m in (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 65, 200):
        for padding in (0, 1):
            x = torch.randn(m, shape[1] + padding, device="cuda")[:, padding:]
            y = tamis.ops.spmm.spmm(x, a, bias if m % 2 else None)
            assert torch.equal(y, tamis.ops.spmm.spmm(x, a, bias if m % 2 else None))
            expect_product(y, x, w, bias if m % 2 else None)
    rest = tuple(a.arrays.get(name) for name in REST)
    assert torch.equal(cuda_spmm.unpack(a.arrays["values"], rest, a.layout), w)
    assert cuda_packed.nbytes(a.arrays["values"], 0) == 0


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["csr", "csr8", "block", "u8", "u4", "nm"])
def test_layers_of_any_format_replay_in_a_graph(
    format: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no kernel reads is a bitmap beside it; a capture that comes before that is refused."""
    linear = torch.nn.Linear(512, 256)
    linear.weight.data.view(16, 16, 32, 16)[:, :, ::2] = 0
    keep = None
    if format == "nm":
        keep = torch.rand(256, 128, 4).argsort(-1).lt(2).view(256, 512)
    options = {"format": "groupq", "dtype": format, "group_size": 16} if format[0] == "u" else {}
    layer = tamis.nn.SparseLinear.from_linear(
        linear, keep=keep, **{"format": format, **options}
    ).to("cuda", dtype)
    w, bias = layer.weight.to_dense(), layer.bias
    x = torch.randn(3, 512, device="cuda", dtype=dtype)
    with torch.no_grad():
        torch.nn.functional.linear(x, w)  # loads cuBLAS
        torch.cuda.synchronize()
        if format != "nm":  # whose mask to_dense looked at
            with monkeypatch.context() as patch:
                patch.setattr(cuda_memory, "capturing", lambda: True)
                with pytest.raises(tamis.TamisError, match=r"call prepack_\(model\)"):
                    layer(x)
        for _ in range(2):
            layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.normal_()
        graph.replay()
        eps = 1e-5 if dtype == torch.float32 else 2e-2
        wanted = torch.nn.functional.linear(x.double(), w.double(), bias.double())
        torch.testing.assert_close(y.double(), wanted, rtol=eps, atol=eps)


@needs_device
def test_prompts_by_gap_replay_in_a_graph() -> None:
    w, a = make(704, 600, 0.4, torch.bfloat16)
    tamis.ops.spmm.spmm(torch.ones(1, 600, dtype=torch.bfloat16, device="cuda"), a)  # packs
    x = torch.randn(1, 90, 600, dtype=torch.bfloat16, device="cuda")
    torch.nn.functional.linear(x, w)  # loads cuBLAS
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = tamis.ops.spmm.spmm(x, a)
    x.normal_()
    graph.replay()
    torch.testing.assert_close(y, torch.nn.functional.linear(x, w))


@needs_device
def test_written_values_are_seen() -> None:
    w, a = make(64, 128, 0.5, torch.bfloat16)
    x = torch.randn(2, 128, dtype=torch.bfloat16, device="cuda")
    check(x, w, a, None)
    a.arrays["values"].mul_(2)
    check(x, 2 * w, a, None)


@needs_device
def test_replays_in_a_graph() -> None:
    w, a = make(512, 512, 0.5, torch.bfloat16)
    x = torch.randn(4, 512, dtype=torch.bfloat16, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tamis.ops.spmm.spmm(x, a)  # packs and plans
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        y = tamis.ops.spmm.spmm(x, a)
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        check(x, w, a, None)
        assert torch.equal(y, tamis.ops.spmm.spmm(x, a))

"""Expected times on CUDA devices, what they decide, and on a device what is measured."""

import pytest
import torch
from host import needs_device

import tamis
from tamis.layout import Layout
from tamis.ops import cost, cuda, cuda_choice, cuda_cost, cuda_forms, cuda_spmm
from tamis.ops.attention import ALL, DenseSegment, Lists, attention, sparse_attention
from tamis.report_rows import tokens_of

N, K = 14336, 4096
HALF = N * K // 2


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("NVIDIA H200", 90), ("Unmeasured", 80)])
    monkeypatch.setattr(cuda, "why_off", lambda: "")


@pytest.mark.usefixtures("h200")
def test_choosing_tokens_pays_where_the_device_was_measured() -> None:
    """On an H200 Quest loses with 64 MB of keys and values and wins with 128; Double Sparsity, in one
    launch, loses with 25 and wins with 48.
    """
    assert 64 << 20 < cuda_cost.choose_bytes(0, at_once=False) < (128 << 20) * 15 // 16
    assert 25 << 20 < cuda_cost.choose_bytes(0, at_once=True) < (48 << 20) * 15 // 16
    assert cuda_cost.choose_bytes(1, at_once=True) == cuda_cost.choose_bytes(1, at_once=False) == 0


@pytest.mark.usefixtures("h200")
def test_expectations_rise_with_tokens_and_bytes() -> None:
    bitmap, pairs = Layout("bitmap", N, K, "bf16"), Layout("nm", N, K, "bf16", keep=2, of=4)
    for layout in (bitmap, pairs):
        times = [cost.sparse_ns(layout, HALF, m, device=0) for m in (1, 2, 3, 4, 8, 9, 17, 33, 65)]
        assert times[2] == times[3]
        assert times == sorted(times)
    assert cost.sparse_ns(pairs, HALF, 1, device=0) == cost.sparse_ns(pairs, HALF, 8, device=0)
    assert cuda_choice.most_tokens(bitmap, HALF, 0) == 64
    assert cuda_choice.most_tokens(pairs, HALF, 0) == 2048
    # Above 64 tokens a bitmap is written out first: never faster than dense.
    assert cost.sparse_ns(bitmap, HALF, 100, device=0) > cost.dense_ns("bf16", N, K, 100, device=0)
    full = cost.sparse_ns(bitmap, N * K, device=0)
    assert full > cost.sparse_ns(bitmap, HALF, device=0)
    assert full > cost.dense_ns("bf16", N, K, device=0)


@pytest.mark.usefixtures("h200")
def test_few_tokens_read_streams_where_that_is_faster() -> None:
    """On an H200 at 30 and 10 % kept; what is nearly dense has fewer bytes as tiles."""
    bitmap = Layout("bitmap", N, K, "bf16")

    def forms(nnz: int, *tokens: int) -> list[str]:
        return [cuda_choice.form_for(bitmap, nnz, m, 0) for m in tokens]

    assert forms(HALF, 1, 3, 8, 16, 24, 48, 49, 64) == ["p24"] * 6 + ["r24"] * 2
    assert forms(3 * N * K // 10, 1, 2, 3, 48, 49) == ["gap"] * 2 + ["p24"] * 2 + ["r24"]
    assert forms(N * K // 10, 1, 4, 5, 16) == ["gap"] * 2 + ["p24"] * 2
    assert forms(7 * N * K // 10, 16, 17) == ["p24", "t16"]
    assert cuda_choice.few_tokens(bitmap, HALF, 0) == 64
    assert cuda_choice.form_and_tokens(bitmap, HALF, 3, 0) == ("p24", 0, 48)
    assert cuda_choice.form_and_tokens(bitmap, N * K // 10, 5, 0)[:2] == ("p24", 4)
    # 48 tokens of halves of panels fit, 64 of 1024 columns.
    for (rows, cols), most in {(K, K): 48, (1024, K): 64, (K, N): 48}.items():
        layout = Layout("bitmap", rows, cols, "bf16")
        assert cuda_choice.few_tokens(layout, rows * cols // 2, 0) == 64
        assert cuda_choice.tokens_of_call(layout, rows * cols // 2, "p24", 0) == most
    # An unmeasured device: by density, up to as many tokens as every device holds.
    assert cuda_choice.form_and_tokens(bitmap, HALF, 5, 1) == ("p24", 4, 16)
    assert cuda_choice.form_for(bitmap, N * K, 1, 0) == "t16"
    assert cuda_choice.few_tokens(bitmap, N * K, 0) == 0
    # An unmeasured device: by density. Other layouts have one form.
    assert cuda_choice.form_for(bitmap, HALF, 1, 1) == "gap"
    assert cuda_choice.form_for(bitmap, N * K, 1, 1) == "t16"
    assert cuda_choice.form_for(Layout("nm", N, K, "bf16", keep=2, of=4), HALF, 1, 0) == "m24"
    assert cuda_choice.form_for(Layout("bitmap", 64, 1 << 17, "bf16"), 1 << 20, 1, 0) == "t16"
    dense = cost.dense_ns("bf16", N, K, device=0)
    assert dense > 1.4 * cost.sparse_ns(bitmap, HALF, device=0)  # 1.51 measured


@pytest.mark.usefixtures("h200")
def test_many_tokens_are_multiplied_as_they_are_stored() -> None:
    """On an H200, and where rows and columns are multiples of 8; above, they are written out."""
    for (rows, cols), tokens in {(N, K): 256, (K, N): 128, (K, K): 64, (1024, K): 64}.items():
        layout, half = Layout("bitmap", rows, cols, "bf16"), rows * cols // 2
        assert cuda_choice.stored_tokens(layout, half, 0) == tokens
        times = [cost.sparse_ns(layout, half, m, device=0) for m in (64, 65, 128, 129, 256, 257)]
        assert times == sorted(times)
    assert cuda_choice.stored_tokens(Layout("bitmap", N + 4, K, "bf16"), HALF, 0) == 0
    assert cuda_choice.stored_tokens(Layout("bitmap", N, K, "bf16"), HALF, 1) == 0  # sm_80
    assert cuda_choice.form_for(Layout("nm", N, K, "bf16", keep=4, of=8), HALF, 129, 0) == "bitmap"


@pytest.mark.usefixtures("h200")
def test_49_to_128_tokens_go_to_one_call_or_two() -> None:
    """An H200's us of gate, up, half kept: 64 by r24 33, by p24 in two calls 52, as stored 60; 96 46, 63, 72.

    r24 and p24 together would be larger than the weight densely, so neither is made for more tokens where
    the other is.
    """
    bitmap = Layout("bitmap", N, K, "bf16")

    def forms(*tokens: int, beside: tuple[str, ...] = (), nnz: int = HALF) -> list[str]:
        return [cuda_choice.form_for(bitmap, nnz, m, 0, beside=beside) for m in tokens]

    assert forms(48, 49, 64, 96, 128, 129) == ["p24", *["r24"] * 4, "bitmap"]
    assert forms(48, 64, 96, beside=("p24",)) == ["p24"] * 3
    assert forms(8, 48, 49, 96, beside=("r24",)) == ["p24"] * 2 + ["r24"] * 2
    assert forms(49, 64, 128, nnz=3 * N * K // 10) == ["r24"] * 3
    assert forms(48, 64, nnz=3 * N * K // 10, beside=("p24",)) == ["p24"] * 2
    small = Layout("bitmap", 1024, K, "bf16")
    found = [cuda_choice.form_for(small, 512 * K, m, 0) for m in (64, 65, 128)]
    assert found == ["r24"] * 3
    assert cuda_choice.tokens_of_call(bitmap, HALF, "p24", 0) == 48
    assert cuda_choice.tokens_of_call(bitmap, HALF, "r24", 0) == 128
    pays = [cuda_choice.calls_pay(bitmap, HALF, "p24", m, 0, packs=True) for m in (64, 96, 128)]
    assert pays == [True, True, False]
    assert not any(f == "r24" for f in [cuda_choice.form_for(bitmap, HALF, m, 1) for m in (40, 64)])
    assert cost.sparse_ns(bitmap, HALF, 64, device=0) == pytest.approx(31.7e3, rel=0.02)
    assert cost.sparse_ns(bitmap, HALF, 96, device=0) == pytest.approx(46.3e3, rel=0.02)


@pytest.mark.usefixtures("h200")
@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)])
def test_a_mask_of_2_of_4_is_stored_as_such(shape: tuple[int, int]) -> None:
    """As a bitmap it would be multiplied like any mask, and from 17 tokens on slower than dense."""
    half = shape[0] * shape[1] // 2
    pairs = Layout("nm", *shape, "bf16", keep=2, of=4)
    found = cost.fastest([(Layout("bitmap", *shape, "bf16"), half), (pairs, half)], device=0)
    assert found == (pairs, half)


@pytest.mark.usefixtures("h200")
def test_few_tokens_of_codes_have_a_form_of_their_own() -> None:
    codes = Layout("groupq", N, K, "u4", group_size=16)
    assert [cuda_choice.form_for(codes, HALF, m, 0) for m in (1, 4, 9, 64)] == ["sell4"] * 2 + [
        "g4"
    ] * 2
    assert cuda_choice.few_tokens(codes, HALF, 0) >= 4
    times = [cost.sparse_ns(codes, HALF, m, device=0) for m in (1, 2, 4, 8, 9, 17, 33)]
    assert times == sorted(times)
    wide = Layout("groupq", 16, 1 << 17, "u4", group_size=16)
    assert cuda_choice.few_tokens(wide, 1 << 20, 0) == 0


@pytest.mark.usefixtures("h200")
def test_few_rows_are_shared_by_clusters() -> None:
    """An H200's us of k, v: p24 3.9 and 4.0 up to 8 tokens, gap 4.5 and 4.8; sell4 3.65 at 4, g4 5.0."""
    rows, cols = 1024, 4096
    bitmap = Layout("bitmap", rows, cols, "bf16")
    codes = Layout("groupq", rows, cols, "u4", group_size=16)
    half = rows * cols // 2
    assert [cuda_choice.form_for(bitmap, half, m, 0) for m in (1, 2, 4, 16)] == ["p24"] * 4
    assert [cuda_choice.form_for(codes, half, m, 0) for m in (1, 4, 5, 8)] == ["sell4"] * 2 + [
        "g4"
    ] * 2
    assert cost.sparse_ns(bitmap, half, 1, device=0) == pytest.approx(3.95e3, rel=0.05)
    assert cost.sparse_ns(codes, half, 4, device=0) == pytest.approx(3.65e3, rel=0.05)
    # More rows leave each slice a block of its own (7.9 us by gap, 7.6 by p24), few columns p24 a panel.
    assert cuda_choice.form_for(Layout("bitmap", 4096, cols, "bf16"), 4 * half, 1, 0) == "p24"
    assert cuda_choice.form_for(Layout("bitmap", rows, 1024, "bf16"), half // 4, 1, 0) == "gap"


@pytest.mark.usefixtures("h200")
def test_short_prompts_are_some_calls_of_the_form_for_few() -> None:
    """On an H200 8 tokens of gate, up took 60 us in two calls and 86 written out, 12 took 90."""
    bitmap, codes = Layout("bitmap", N, K, "bf16"), Layout("groupq", N, K, "u4", group_size=16)
    pays = [cuda_choice.calls_pay(bitmap, HALF, "gap", m, 0) for m in (5, 8, 12, 20)]
    assert pays == [True, True, False, False]
    assert cuda_choice.calls_pay(codes, HALF, "sell4", 16, 0)
    assert not cuda_choice.calls_pay(bitmap, HALF, "t16", 65, 0)
    assert not cuda_choice.calls_pay(bitmap, HALF, "gap", 8, 1)  # an unmeasured device
    square = Layout("bitmap", K, K, "bf16")
    pays = [
        cuda_choice.calls_pay(square, K * K // 2, "p24", m, 0, packs=True) for m in (32, 49, 128)
    ]
    assert pays == [True, True, False]  # two of 25 took 22.7 us, as stored 24.1
    assert not cuda_choice.calls_pay(bitmap, HALF, "gap", 8, 0, packs=True)  # p24 is faster


@pytest.mark.usefixtures("h200")
def test_only_what_a_kernel_takes_is_chosen_on_a_device() -> None:
    few = N * K // 20
    csr8, bitmap = Layout("csr8", N, K, "bf16"), Layout("bitmap", N, K, "bf16")
    # As a bitmap that is made of it, whose mask lies nowhere.
    assert cost.sparse_ns(csr8, few, device=0) == cuda_choice.sparse_ns(
        bitmap, few, 1, 0, stored=False
    )
    assert cost.fastest([(csr8, few), (bitmap, few)], device=0) == (bitmap, few)
    assert cost.fastest([(csr8, few)], device=0) == (csr8, few)
    assert cost.sparse_ns(bitmap, few, device=1) is None  # an unmeasured device
    assert tokens_of(bitmap, HALF, 0) == "; on CUDA no slower than dense up to 64 tokens"
    assert tokens_of(csr8, few, 0) == "; on CUDA no slower than dense up to 64 tokens"
    assert tokens_of(bitmap, HALF, 1) == ""


@pytest.mark.usefixtures("h200")
def test_32_bit_values_are_multiplied_as_they_are_stored() -> None:
    """By an H200's us of gate, up, half kept, and torch's in f32."""
    wide = Layout("bitmap", N, K, "f32")
    assert [cuda_choice.form_for(wide, HALF, m, 0) for m in (1, 16, 17, 300)] == ["bitmap"] * 4
    measured = {1: (43.9, 63.6), 2: (47.4, 83.6), 4: (54.5, 87.7), 8: (78.5, 121.2)}
    for m, (ours, dense) in measured.items():
        assert cost.sparse_ns(wide, HALF, m, device=0) == pytest.approx(1e3 * ours, rel=0.05)
        assert cost.dense_ns("f32", N, K, m, device=0) == pytest.approx(1e3 * dense, rel=0.1)
    times = [cost.sparse_ns(wide, HALF, m, device=0) for m in (1, 2, 4, 8, 16, 17, 32, 64, 300)]
    assert times == sorted(times)
    assert cuda_choice.most_tokens(wide, HALF, 0) == 16
    # Of small and of dense weights one token loses (0.95, 0.95), before others that gain.
    small, full = Layout("bitmap", 1024, K, "f32"), N * K
    assert cuda_choice.most_tokens(small, 7 * 1024 * K // 10, 0) == 0
    assert cost.sparse_ns(wide, full, device=0) > cost.dense_ns("f32", N, K, device=0)
    pays = [cuda_choice.calls_pay(wide, HALF, "bitmap", m, 0) for m in (17, 32, 33, 64)]
    assert pays == [True, True, False, False]  # 32: two calls 236, written out 300
    assert cost.sparse_ns(wide, HALF, 1, device=1) is None  # an unmeasured device
    # Other formats are read as a bitmap of x's dtype, without a mask that lies on the device.
    assert cuda_forms.read_as(wide) is wide
    assert cuda_forms.read_as(wide, "bf16") == Layout("bitmap", N, K, "bf16")
    for other in (Layout("csr", N, K, "f32"), Layout("block", N, K, "f32", block=(16, 16))):
        assert cuda_forms.read_as(other) == wide
        assert cost.sparse_ns(other, HALF, device=0) == cost.sparse_ns(wide, HALF, device=0)


@pytest.mark.usefixtures("h200")
def test_what_no_run_on_the_device_says_is_called_an_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bitmap, codes = Layout("bitmap", N, K, "bf16"), Layout("groupq", N, K, "u4", group_size=16)
    pairs = Layout("nm", N, K, "bf16", keep=2, of=4)
    assert not any(cuda_choice.estimated(layout, HALF, 0) for layout in (bitmap, codes, pairs))
    assert not cuda_choice.estimated(bitmap, HALF, 1)  # nothing is expected of it
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("NVIDIA H100 80GB HBM3", 90)])
    assert all(cuda_choice.estimated(layout, HALF, 0) for layout in (bitmap, codes, pairs))
    assert tokens_of(pairs, HALF, 0).endswith("tokens, estimated from another device's times")
    odd = Layout("bitmap", N + 4, K, "bf16")
    assert not cuda_choice.estimated(odd, odd.rows * K, 0)  # t16 at any number of tokens


@pytest.mark.usefixtures("h200")
def test_codes_of_4_bits_name_the_kernel_that_reads_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"name": f"spmm_{form}_i8_bf16_sm80", "op": "spmm", "format": form, "x_dtype": "bf16",
         "runs_here": True} for form in ("m24i8", "m24i4")
    ]  # fmt: skip
    monkeypatch.setattr(cuda_forms._C, "cuda_kernels", lambda _: rows)
    keep = torch.rand(16, 32, 4).argsort(-1).lt(2).view(16, 128)
    for dtype in ("i8", "i4"):
        a = tamis.compress(torch.randn(16, 128), keep=keep, format="nm", dtype=dtype)
        name = cuda_spmm.kernel(a.layout, a.arrays["values"], a.nnz, 1, 0)
        assert name == f"spmm_m24{dtype}_i8_bf16_sm80"


def test_attention_gives_the_output_of_sparse_attention() -> None:
    q, k, v = torch.randn(2, 8, 1, 64), torch.randn(2, 2, 50, 64), torch.randn(2, 2, 50, 64)
    for lists in (ALL, Lists(begin=torch.full((2, 2), 3, dtype=torch.int32))):
        parts = [DenseSegment(k, v, lists)]
        assert torch.equal(attention(q, parts), sparse_attention(q, parts)[0])


@needs_device
def test_dense_rows_go_to_torch() -> None:
    q = torch.randn(2, 8, 1, 64, device="cuda").bfloat16()
    k, v = torch.randn(2, 2, 2, 500, 64, device="cuda").bfloat16()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.equal(attention(q, [DenseSegment(k, v)]), wanted)
    torch.testing.assert_close(
        sparse_attention(q, [DenseSegment(k, v)])[0], wanted, rtol=2e-2, atol=2e-2
    )


@needs_device
def test_models_on_a_device_are_sparsified_and_timed_there() -> None:
    """At one token 2:4 is faster and stays; at 512 tokens of few rows optimize_ measures that dense is."""
    linear = torch.nn.Linear(4096, 1024, bias=False, device="cuda", dtype=torch.bfloat16)
    model = torch.nn.Sequential(linear)
    report = tamis.sparsify_(model, "magnitude", pattern="2:4")
    assert isinstance(model[0], tamis.nn.SparseLinear)
    assert "on CUDA" in report.layers[0].reason or "H" not in torch.cuda.get_device_name()
    row = tamis.explain(model, measure=True).layers[0]
    assert row.kernel.startswith("spmm_m24_bf16_bf16_sm")
    assert row.measured_ms < row.dense_ms
    tamis.optimize_(model, tokens=512)
    assert isinstance(model[0], torch.nn.Linear)

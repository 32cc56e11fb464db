"""Which form of a weight the calls that come read, on a device that NumPy plays."""

import gc
from dataclasses import replace

import pytest
import torch
from played_device import Graphs, Played, call, expect_product, half_kept

import tamis
from tamis.ops import cuda_choice, cuda_cost, cuda_forms, cuda_packed, cuda_spmm


def test_codes_reach_the_kernel(played: type[Played]) -> None:
    w = torch.randn(40, 160)
    w.view(40, 10, 16)[torch.rand(40, 10) < 0.5] = 0
    for size in (16, 32):
        for tokens, made in (
            ((1, 65, 4, 40), ["sell4", "g4"]),
            ((65, 1), ["sell4"]),
            ((40, 2), ["g4", "sell4"]),
        ):
            a = tamis.compress(w, format="groupq", dtype="u4", group_size=size)
            played.made.clear()
            for m in tokens:
                expect_product(torch.randn(m, 160, dtype=torch.bfloat16), a, step=2e-2)
            assert played.made == made


@pytest.mark.parametrize("pattern", ["bitmap", "nm"])
def test_calls_reach_the_kernel(played: type[Played], pattern: str) -> None:
    w = torch.randn(40, 136, dtype=torch.bfloat16)
    w[:, ::2] = 0
    a = tamis.compress(w, format=pattern, **({"n_m": (2, 4)} if pattern == "nm" else {}))
    bias = torch.randn(40, dtype=torch.bfloat16)
    for m in (1, 5, 64, 65):
        expect_product(torch.randn(m, 136, dtype=torch.bfloat16), a, bias)
    wide = torch.randn(3, 2, 150, dtype=torch.bfloat16)
    expect_product(wide[..., 3:139], a)
    assert call(wide[:0, :, :136], a) is not None
    assert played.made == (["gap", "p24", "t16"] if pattern == "bitmap" else ["m24"])


def test_packs_again_only_after_a_write(played: type[Played]) -> None:
    a = tamis.compress(torch.ones(16, 64, dtype=torch.bfloat16), format="bitmap")
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    for factor, made in ((1, 1), (1, 1), (2, 2), (1, 2)):
        if factor != 1:
            a.arrays["values"].mul_(factor)
        y = call(x, a)
        assert y is not None
        assert len(played.made) == made
    assert bool((y == 128).all())
    assert set(played.made) == {"t16"}  # all is kept
    key = id(a.arrays["values"])
    assert key in cuda_packed.forms_held
    del a
    gc.collect()
    assert key not in cuda_packed.forms_held


@pytest.mark.parametrize(
    ("shapes", "made"),
    [
        ([(1, 1, 64), (4, 64), (4, 1, 64)], ["gap"]),
        ([(1, 20, 64), (1, 1, 64), (1, 20, 64), (2, 40, 64)], ["gap"]),  # prompts, and their tokens
        ([(100, 64), (1, 64)], ["gap"]),
        ([(16, 1, 64), (16, 64), (1, 20, 64)], ["p24"]),
        ([(17, 1, 64), (64, 64), (1, 20, 64)], ["t16"]),
        ([(1, 64), (16, 64), (1, 64), (64, 64)], ["gap", "p24", "t16"]),
        ([(16, 64), (1, 64), (1, 20, 64)], ["p24", "gap"]),
    ],
)
def test_a_weight_is_packed_for_the_calls_that_come(
    played: type[Played], shapes: list[tuple[int, ...]], made: list[str]
) -> None:
    a = half_kept(40, 64)
    for shape in shapes:
        expect_product(torch.randn(shape, dtype=torch.bfloat16), a)
    assert played.made == made


@pytest.mark.parametrize(
    ("shapes", "made", "calls"),
    [
        ([(64, 64), (64, 1, 64), (96, 64), (128, 1, 64), (1, 100, 64)], ["r24"], 5),
        ([(96, 64), (64, 64)], ["r24"], 2),
        ([(20, 64), (64, 64), (20, 64)], ["p24"], 5),  # both would be larger than the dense weight
        ([(64, 64), (20, 64), (64, 64)], ["r24", "p24"], 3),
    ],
)
def test_more_tokens_take_one_form_in_calls(
    played: type[Played],
    monkeypatch: pytest.MonkeyPatch,
    shapes: list[tuple[int, ...]],
    made: list[str],
    calls: int,
) -> None:
    """On a device where a call of r24 takes half as long again as one of p24, and the rest far longer."""
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("NVIDIA H200", 90)])
    monkeypatch.setattr(cuda_forms._C, "p24_most_tokens", lambda *_: 24)
    costs = {
        "p24": {"more": (0.0,) * 7},
        "r24": {"more": (100.0,) * 2},
        "t16": {"decode": (99.0,) * 4},
    }
    for form, changed in costs.items():
        monkeypatch.setitem(cuda_cost.COSTS, form, replace(cuda_cost.COSTS[form], **changed))
    monkeypatch.setattr(cuda_cost, "P24_ALONE", -2000.0)
    monkeypatch.setattr(cuda_cost, "STORED_MORE", (9e4,) * 4)
    counted: list[int] = []
    spmm = played.spmm
    monkeypatch.setattr(
        played, "spmm", lambda self, m, *rest: counted.append(m) or spmm(self, m, *rest)
    )
    a = half_kept(40, 64)
    for shape in shapes:
        expect_product(torch.randn(shape, dtype=torch.bfloat16), a)
    assert played.made == made
    assert len(counted) == calls
    assert played.expanded == []


@pytest.mark.parametrize(
    ("rows", "cols", "way"), [(40, 64, "mask"), (36, 64, "gap"), (40, 68, "gap")]
)
def test_prompts_by_gap_are_written_out_from_the_mask_where_it_has_a_kernel(
    played: type[Played], rows: int, cols: int, way: str
) -> None:
    a = half_kept(rows, cols)
    assert call(torch.randn(1, cols, dtype=torch.bfloat16), a) is not None
    for factor in (1, 2):  # each write packs anew
        a.arrays["values"].mul_(factor)
        expect_product(torch.randn(1, 80, cols, dtype=torch.bfloat16), a)
    assert played.expanded == [way, way]
    assert played.made == ["gap"] * 3
    played.made.clear()
    for shape in ((1, cols), (1, 20, cols), (1, 1, cols)):
        assert call(torch.randn(shape, dtype=torch.bfloat16), a) is not None
    assert played.made == []


@pytest.mark.parametrize(("tokens", "expanded"), [(5, []), (8, []), (12, ["mask"]), (70, ["mask"])])
def test_short_prompts_by_gap_are_some_calls(
    played: type[Played], monkeypatch: pytest.MonkeyPatch, tokens: int, expanded: list[str]
) -> None:
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("NVIDIA H200", 90)])
    a = half_kept(40, 64)
    bias = torch.randn(40, dtype=torch.bfloat16)
    for x in (torch.randn(1, tokens, 64), torch.randn(1, tokens, 70)[..., 3:67]):
        expect_product(x.bfloat16(), a, bias)
    assert played.expanded == 2 * expanded
    assert played.made == ["gap"]


def test_many_tokens_read_the_weight_as_it_is_stored(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On sm_90, prompts and batches; nothing is packed for them, and the most are written out."""
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("Unmeasured", 90)])
    a = half_kept(40, 64)
    for shape in ((1, 20, 64), (17, 64), (1, 64), (4, 1, 64), (1, 90, 64), (300, 64)):
        expect_product(torch.randn(shape, dtype=torch.bfloat16), a)
    assert played.made == ["bitmap", "gap"]
    assert played.expanded == ["mask"]
    shifted = torch.empty(a.nnz + 1, dtype=torch.bfloat16)[1:]  # off 16 bytes
    b = tamis.SparseMatrix(a.layout, {**a.arrays, "values": shifted.copy_(a.arrays["values"])})
    expect_product(torch.randn(20, 64, dtype=torch.bfloat16), b)
    assert played.made == ["bitmap", "gap", "t16"]


def test_weights_in_host_memory_are_read_packed_alone(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is multiplied as it is stored, and prompts are written out from what is packed."""
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("NVIDIA H200", 90)])
    monkeypatch.setattr(cuda_packed, "lies_on", lambda *_: False)
    a = half_kept(40, 64)
    for shape in ((1, 64), (1, 20, 64), (1, 90, 64), (17, 64), (48, 64), (300, 64)):
        expect_product(torch.randn(shape, dtype=torch.bfloat16), a)
    assert played.made == ["gap", "t16"]
    assert set(played.expanded) == {"gap"}
    nbytes = cuda_packed.nbytes(a.arrays["values"], 0)
    assert nbytes > 0
    assert nbytes == sum(
        t.numel() * t.element_size()
        for p in cuda_packed.forms_held[id(a.arrays["values"])]
        for t in (p.records, p.offsets)
        if t is not None
    )


def test_more_tokens_than_gain_take_a_dense_copy_that_was_kept(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("NVIDIA H200", 90)])
    monkeypatch.setattr(cuda_packed, "lies_on", lambda *_: False)
    monkeypatch.setattr(cuda_choice, "most_tokens", lambda *_, **__: 4)
    a = half_kept(40, 64)
    w = a.to_dense()
    get, on = a.arrays.get, torch.device("cpu")
    rest = (get("mask"), get("row_offsets"), None, None)
    values = a.arrays["values"]
    alone = cuda_spmm.prepack(a.layout, values, rest, w.dtype, on, 1)
    both = cuda_spmm.prepack(a.layout, values, rest, w.dtype, on, 1, keep_dense=True)
    assert both == alone + w.nbytes
    assert played.expanded == ["gap"]
    for shape in ((1, 64), (4, 64), (9, 64), (64, 64), (1, 5, 64), (1, 20, 64), (300, 64)):
        x = torch.randn(shape, dtype=torch.bfloat16)
        y = expect_product(x, a)
        assert x.numel() <= 4 * 64 or torch.equal(y, torch.nn.functional.linear(x, w))
    assert played.made == ["gap"]
    assert played.expanded == ["gap"]


def test_all_forms_are_forgotten(played: type[Played]) -> None:
    a = half_kept(40, 64)
    for m in (64, 1, 16):
        call(torch.ones(m, 64, dtype=torch.bfloat16), a)
    held = cuda_packed.forms_held[id(a.arrays["values"])]
    assert [(p.least // 64, p.most // 64) for p in held] == [(-1, 4), (4, 16), (16, 64)]
    a.arrays["values"].mul_(2)
    call(torch.ones(1, 64, dtype=torch.bfloat16), a)
    assert len(cuda_packed.forms_held[id(a.arrays["values"])]) == 1  # none of the values before
    del a, held
    gc.collect()
    assert cuda_packed.forms_held == {}


def test_known_operands_go_straight_to_the_kernel(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = half_kept(24, 64)
    w = a.to_dense()
    values, token = a.arrays["values"], a.layout.token
    rest = (a.arrays["mask"], a.arrays["row_offsets"], None, None)
    bias = torch.randn(24, dtype=torch.bfloat16)
    x = torch.randn(6, 1, 64, dtype=torch.bfloat16)
    assert cuda_spmm.direct(x, token, values, rest, None) is None  # never seen
    wanted = call(x, a, bias)
    assert wanted is not None
    assert call(x[:2, 0], a) is not None
    for packed in cuda_packed.forms_held[id(values)]:
        packed.device = -1  # that of x here
    monkeypatch.setattr(cuda_spmm, "current_device", lambda: -1)
    y = cuda_spmm.direct(x, token, values, rest, bias)
    assert y is not None
    assert torch.equal(y, wanted)
    y = cuda_spmm.direct(x[:2, 0], token, values, rest, None)
    assert y is not None
    torch.testing.assert_close(y.float(), x[:2, 0].float() @ w.float().T, rtol=1e-2, atol=0.1)
    strided = torch.randn(5, 70, dtype=torch.bfloat16)[:, 2:66]
    y = cuda_spmm.direct(strided, token, values, rest, None)
    assert y is not None
    torch.testing.assert_close(y.float(), strided.float() @ w.float().T, rtol=1e-2, atol=0.1)
    for other in (x.half(), x[..., :32], x.expand(6, 40, 64), torch.tensor(1.0).bfloat16()):
        assert cuda_spmm.direct(other, token, values, rest, bias) is None
    assert cuda_spmm.direct(x, token, values, rest, bias.clone()) is None
    monkeypatch.setattr(cuda_spmm, "current_device", lambda: 0)
    assert cuda_spmm.direct(x, token, values, rest, bias) is None
    monkeypatch.setattr(cuda_spmm, "current_device", lambda: -1)
    values.mul_(2)
    assert cuda_spmm.direct(x, token, values, rest, bias) is None
    assert played.made == ["p24", "gap"]


@pytest.mark.parametrize("format", ["bitmap", "nm"])
def test_32_bit_values_are_multiplied_as_they_are_stored(played: type[Played], format: str) -> None:
    """Any number of tokens, written out beyond what a call takes, and trained without a copy."""
    keep = torch.rand(40, 16, 4).argsort(-1).lt(2).view(40, 64)
    a = tamis.compress(torch.randn(40, 64), keep=keep, format=format)
    values = a.arrays["values"].requires_grad_()
    for shape in ((1, 64), (16, 64), (4, 1, 64), (17, 64), (1, 20, 64), (300, 64)):
        expect_product(torch.randn(shape), a, step=1e-5)
    assert played.made == ["bitmap"]
    assert played.expanded == ["bitmap"] * 3
    with torch.no_grad():
        values.mul_(2)
    expect_product(torch.randn(3, 64), a, step=1e-5)
    assert cuda_packed.nbytes(values, 0) == 0


def test_a_mask_of_32_bit_values_is_looked_at_before_a_kernel_follows_it(
    played: type[Played],
) -> None:
    a = tamis.compress(torch.randn(8, 64), keep=torch.rand(8, 64) < 0.5, format="bitmap")
    a.arrays["mask"][0] ^= 3
    a.arrays["mask"][3] ^= 1
    with pytest.raises(tamis.TamisValueError, match="mask"):
        call(torch.ones(1, 64), a)
    assert played.made == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["csr", "csr8", "block", "u8", "u4", "i8", "f32", "bf16"])
def test_what_no_kernel_reads_is_made_a_bitmap_of_once(
    played: type[Played], graphs: Graphs, format: str, dtype: torch.dtype
) -> None:
    """Formats without a kernel, and other dtypes than x's: by x's dtype, not in a capture."""
    w = torch.randn(32, 64)
    w.view(32, 4, 16)[:, ::2] = 0  # blocks, and groups
    options = {
        "u8": {"format": "groupq", "dtype": "u8", "group_size": 16},
        "u4": {"format": "groupq", "dtype": "u4", "group_size": 16},
        "i8": {"format": "csr", "dtype": "i8"},
        "f32": {"format": "bitmap"},
        "bf16": {"format": "bitmap"},
    }.get(format, {"format": format})
    source = w.to(dtype) if "dtype" not in options else w
    if format in ("f32", "bf16"):
        source = w.to(torch.bfloat16 if dtype == torch.float32 else torch.float32)
    a = tamis.compress(source, **options)
    x = torch.randn(3, 64, dtype=dtype)
    graphs.now = 1
    if format != "u4" or dtype == torch.float32:
        with pytest.raises(tamis.TamisError, match=r"weight of .* call prepack_\(model\), or"):
            call(x, a)
    graphs.now = 0
    for tokens in (x, x[:1], torch.randn(2, 20, 64, dtype=dtype)):
        expect_product(tokens, a, step=1e-5 if dtype == torch.float32 else 1e-2)
    made = "bitmap" if dtype == torch.float32 else "gap"
    assert played.made == (["sell4"] if made == "gap" and format == "u4" else [made])
    assert cuda_packed.nbytes(a.arrays["values"], 0) > 0
    graphs.now = 1
    expect_product(x, a, step=1e-5 if dtype == torch.float32 else 1e-2)
    a.arrays["values"].add_(0)
    with pytest.raises(tamis.TamisError, match="weight of"):
        call(x, a)

"""The CUDA side: why it is off, what it packs, and the way to its kernels, which NumPy plays."""

import contextlib
import gc
import itertools
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from played_device import Played, decode_gap, decode_p24, decode_r24, play_unpack
from torch import Tensor

import tamis
from tamis import _C
from tamis.ops import (
    cuda,
    cuda_choice,
    cuda_cost,
    cuda_forms,
    cuda_memory,
    cuda_packed,
    cuda_spmm,
    cuda_spmm_grad,
)
from tamis.ops.handle import make_matrix


def output_of(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_info_says_why_cuda_is_off() -> None:
    said = tamis.info()["backends"]["cuda"]
    reason = cuda.why_off()
    assert said == f"off, {reason}" if reason else said.startswith("on, ")
    assert output_of("import tamis; print(tamis.info()['backends']['cuda'])", TAMIS_CUDA="0") == (
        "off, TAMIS_CUDA=0"
    )


def test_importing_loads_no_cuda_library() -> None:
    code = "import tamis.ops.cuda; print('libtamis_cuda' in open('/proc/self/maps').read())"
    assert output_of(code) == "False"


def test_a_file_that_is_no_library_is_a_reason(tmp_path: Path) -> None:
    broken = tmp_path / "libtamis_cuda.so"
    broken.write_bytes(b"not a library")
    code = f"from tamis import _C; print(_C.cuda_load({str(broken)!r}))"
    assert str(broken) in output_of(code)


@pytest.mark.skipif(not cuda.why_off(), reason="CUDA is on")
def test_without_cuda_nothing_is_listed_and_handles_refuse() -> None:
    assert cuda.kernel_rows() == []
    with pytest.raises(NotImplementedError, match="not loaded"):
        _C.CudaMatrix(0, 0, 0, 0, 16, 64, "bf16", 0, "t16")


def test_tiles_hold_every_value_once() -> None:
    rng = np.random.default_rng(3)
    w = rng.integers(1, 60000, (40, 200), dtype=np.uint16)
    w[rng.random(w.shape) < 0.6] = 0
    arrays = _C.pack("bitmap", w, "bf16", None, "bf16")
    tiles = _C.pack_for_cuda(_C.Matrix("bitmap", arrays, 40, 200, "bf16"), "t16")
    offsets = tiles["offsets"].astype(np.int64) * 16
    found = []
    for begin, end in zip(offsets[:-1], offsets[1:], strict=True):
        assert end - begin <= tiles["max_record_bytes"]
        record = tiles["records"][begin:end]
        kept = int(np.unpackbits(record[:128]).sum())
        found += record[144 : 144 + 2 * kept].view(np.uint16).tolist()
        assert not record[144 + 2 * kept :].any()
    assert offsets[-1] == tiles["records"].size
    assert sorted(found) == sorted(w[w != 0].tolist())


def test_packers_refuse_other_formats() -> None:
    w = np.ones((2, 4), np.uint16)
    csr = _C.Matrix("csr", _C.pack("csr", w, "bf16", None, "bf16"), 2, 4, "bf16")
    for name in ("t16", "gap", "p24", "r24"):
        with pytest.raises(ValueError, match=f"{name}: format: got csr, wanted bitmap or nm"):
            _C.pack_for_cuda(csr, name)
    with pytest.raises(ValueError, match="pack_for_cuda: format: got t17, wanted t16, m24, g4"):
        _C.pack_for_cuda(csr, "t17")


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_gap_streams_hold_the_weights(density: float) -> None:
    rng = np.random.default_rng(4)
    w = rng.integers(1, 60000, (150, 300), dtype=np.uint16)
    w[rng.random(w.shape) >= density] = 0
    w[7] = 0
    arrays = _C.pack("bitmap", w, "bf16", None, "bf16")
    packed = _C.pack_for_cuda(_C.Matrix("bitmap", arrays, 150, 300, "bf16"), "gap")
    assert np.array_equal(decode_gap(packed["records"], packed["offsets"], *w.shape), w)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 0.5, 1.0])
def test_groups_of_columns_hold_the_weights(density: float) -> None:
    rng = np.random.default_rng(5)
    w = rng.integers(1, 60000, (150, 300), dtype=np.uint16)
    w[rng.random(w.shape) >= density] = 0
    arrays = _C.pack("bitmap", w, "bf16", None, "bf16")
    packed = _C.pack_for_cuda(_C.Matrix("bitmap", arrays, 150, 300, "bf16"), "p24")
    longest = packed["max_record_bytes"]
    assert density not in (0.3, 0.5) or longest == (1344 if density == 0.3 else 1280)
    found = decode_p24(packed["records"], longest, packed["offsets"], *w.shape)
    assert np.array_equal(found, w)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 0.5, 0.9, 1.0])
def test_pairs_in_place_and_a_residual_hold_the_weights(density: float) -> None:
    rng = np.random.default_rng(5)
    w = rng.integers(1, 60000, (150, 300), dtype=np.uint16)
    w[rng.random(w.shape) >= density] = 0
    arrays = _C.pack("bitmap", w, "bf16", None, "bf16")
    packed = _C.pack_for_cuda(_C.Matrix("bitmap", arrays, 150, 300, "bf16"), "r24")
    starts = 16 * packed["offsets"].astype(np.int64)
    found = np.zeros((160, 320), np.uint16)
    for tile, (begin, end) in enumerate(itertools.pairwise(starts)):
        r, c = divmod(tile, 5)
        part = found[16 * r : 16 * r + 16, 64 * c : 64 * c + 64]
        decode_r24(packed["records"][begin:end], part)
    assert starts[-1] == packed["records"].size
    assert np.array_equal(found[:150, :300], w)
    assert not found[150:].any()
    assert not found[:, 300:].any()


# ---- the way to the kernels, with a device that is played by NumPy


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    monkeypatch.setattr(cuda, "why_off", lambda: "")
    monkeypatch.setattr(cuda_packed._C, "CudaMatrix", Played)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda_spmm, "current_device", lambda: 0)
    monkeypatch.setattr(cuda_packed, "raw_stream", lambda _: 7)
    monkeypatch.setattr(cuda_memory, "_device", lambda _: torch.device("cpu"))
    cuda_packed.forms_held.clear()
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("Unmeasured", 80)])
    monkeypatch.setattr(cuda_memory, "capturing", lambda: False)
    monkeypatch.setattr(cuda_memory, "workspaces", {})
    monkeypatch.setattr(cuda_spmm_grad, "unpack", play_unpack)
    monkeypatch.setattr(Played, "made", [])
    monkeypatch.setattr(Played, "expanded", [])
    return Played


class Graphs:
    """Captures, one at a time, whose workspaces come from here."""

    def __init__(self) -> None:
        self.now = 0  # 0: none
        self.given: dict[tuple[int, int], Tensor] = {}

    def workspace(self, device: int, stream: int, nbytes: int) -> tuple[int, int]:
        assert device == 0
        assert self.now
        found = self.given.setdefault((self.now, stream), torch.zeros(nbytes, dtype=torch.uint8))
        return found.data_ptr(), found.numel()


@pytest.fixture
def graphs(played: type[Played], monkeypatch: pytest.MonkeyPatch) -> Graphs:
    graphs = Graphs()
    monkeypatch.setattr(cuda_memory, "capturing", lambda: graphs.now > 0)
    monkeypatch.setattr(_C, "cuda_graph_workspace", graphs.workspace)
    return graphs


def test_calls_on_a_stream_take_turns_with_one_workspace(played: type[Played]) -> None:
    small = cuda_memory.workspace(0, 7, 10)
    assert small.nbytes == cuda_memory.LEAST
    assert cuda_memory.workspace(0, 7, small.nbytes) is small
    assert cuda_memory.workspace(0, 8, 10).pointer != small.pointer
    large = cuda_memory.workspace(0, 7, small.nbytes + 1)
    assert large.nbytes == 2 * small.nbytes
    assert cuda_memory.workspace(0, 7, small.nbytes) is large


def test_a_capture_has_a_workspace_of_its_own_on_each_stream(graphs: Graphs) -> None:
    eager = cuda_memory.workspace(0, 7, 10)
    taken = [eager.pointer]
    for graphs.now in (1, 2):
        for stream in (7, 8):
            captured = cuda_memory.workspace(0, stream, 10)
            assert cuda_memory.workspace(0, stream, 20) == captured
            assert captured.nbytes == cuda_memory.LEAST
            taken.append(captured.pointer)
    graphs.now = 0
    assert cuda_memory.workspace(0, 7, 10) is eager
    assert len(set(taken)) == 5


def test_a_capture_takes_no_workspace_until_a_call_needs_one(graphs: Graphs) -> None:
    graphs.now = 1
    assert cuda_memory.workspace(0, 7, 0) == (0, 0, None)
    assert not graphs.given


def test_a_weight_that_no_call_packed_is_refused_in_a_capture(graphs: Graphs) -> None:
    a, x = half_kept(32, 64), torch.randn(1, 64, dtype=torch.bfloat16)
    graphs.now = 1
    with pytest.raises(tamis.TamisError, match="not used before in the capture of a CUDA gr"):
        call(x, a)
    graphs.now = 0
    want = call(x, a)
    assert want is not None
    graphs.now = 1
    got = call(x, a)
    assert got is not None
    assert torch.equal(got, want)


def test_values_that_may_be_trained_are_expanded_in_a_capture_with_a_word(graphs: Graphs) -> None:
    a, x = half_kept(32, 64), torch.randn(1, 64, dtype=torch.bfloat16)
    a.arrays["values"].requires_grad_()
    assert call(x, a) is None  # may be written at once
    graphs.now = 1
    with pytest.warns(UserWarning, match="not packed yet in the capture of a CUDA graph"):
        assert call(x, a) is None
    graphs.now = 0
    assert call(x, a) is not None


def test_memory_that_lasts_is_made_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[object] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda s: contextlib.nullcontext(streams.append(s)))
    on = torch.device("cuda", 1)
    assert cuda_memory.lasting(on, threading.get_ident) != threading.get_ident()
    assert streams == [("stream of", on)]
    with pytest.raises(ZeroDivisionError):
        cuda_memory.lasting(on, lambda: 1 / 0)


def test_products_of_two_graphs_of_a_stream_share_no_workspace(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers: list[int] = []
    spmm = Played.spmm

    def noted(self: Played, *arguments: int) -> None:
        pointers.append(arguments[6])
        spmm(self, *arguments)

    monkeypatch.setattr(Played, "spmm", noted)
    a, x = half_kept(32, 64), torch.randn(1, 64, dtype=torch.bfloat16)
    for graphs.now in (0, 1, 1, 2, 0):
        assert call(x, a) is not None
    assert pointers[1] == pointers[2]
    assert pointers[0] == pointers[4]
    assert len(set(pointers)) == 3


def call(x: Tensor, a: tamis.SparseMatrix, bias: Tensor | None = None) -> Tensor | None:
    get = a.arrays.get
    rest = (get("mask"), get("row_offsets"), get("col_indices"), get("scales"))
    return cuda_spmm.spmm(x, a.arrays["values"], rest, bias, a.layout)


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
                x = torch.randn(m, 160, dtype=torch.bfloat16)
                y = call(x, a)
                assert y is not None
                wanted = x.float() @ a.to_dense().float().T
                torch.testing.assert_close(y.float(), wanted, rtol=2e-2, atol=0.2)
            assert played.made == made


@pytest.mark.parametrize("pattern", ["bitmap", "nm"])
def test_calls_reach_the_kernel(played: type[Played], pattern: str) -> None:
    w = torch.randn(40, 136, dtype=torch.bfloat16)
    w[:, ::2] = 0
    a = tamis.compress(w, format=pattern, **({"n_m": (2, 4)} if pattern == "nm" else {}))
    bias = torch.randn(40, dtype=torch.bfloat16)
    for m in (1, 5, 64, 65):
        x = torch.randn(m, 136, dtype=torch.bfloat16)
        y = call(x, a, bias)
        assert y is not None
        wanted = x.float() @ w.float().T + bias.float()
        torch.testing.assert_close(y.float(), wanted, rtol=1e-2, atol=0.1)
    wide = torch.randn(3, 2, 150, dtype=torch.bfloat16)
    y = call(wide[..., 3:139], a)
    assert y is not None
    assert y.shape == (3, 2, 40)
    torch.testing.assert_close(
        y.float(), wide[..., 3:139].float() @ w.float().T, rtol=1e-2, atol=0.1
    )
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


def half_kept(n: int, k: int) -> tamis.SparseMatrix:
    w = torch.randn(n, k, dtype=torch.bfloat16)
    w[torch.rand(n, k) < 0.5] = 0
    return tamis.compress(w, format="bitmap")


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
    w = a.to_dense().float()
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.bfloat16)
        y = call(x, a)
        assert y is not None
        torch.testing.assert_close(y.float(), x.float() @ w.T, rtol=1e-2, atol=0.1)
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
    w = a.to_dense().float()
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.bfloat16)
        y = call(x, a)
        assert y is not None
        torch.testing.assert_close(y.float(), x.float() @ w.T, rtol=1e-2, atol=0.1)
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
        x = torch.randn(1, 80, cols, dtype=torch.bfloat16)
        y = call(x, a)
        assert y is not None
        torch.testing.assert_close(
            y.float(), x.float() @ a.to_dense().float().T, rtol=1e-2, atol=0.1
        )
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
        x = x.bfloat16()
        y = call(x, a, bias)
        assert y is not None
        assert y.shape == (1, tokens, 40)
        wanted = x.float() @ a.to_dense().float().T + bias.float()
        torch.testing.assert_close(y.float(), wanted, rtol=1e-2, atol=0.1)
    assert played.expanded == 2 * expanded
    assert played.made == ["gap"]


def test_many_tokens_read_the_weight_as_it_is_stored(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On sm_90, prompts and batches; nothing is packed for them, and the most are written out."""
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("Unmeasured", 90)])
    a = half_kept(40, 64)
    w = a.to_dense().float()
    for shape in ((1, 20, 64), (17, 64), (1, 64), (4, 1, 64), (1, 90, 64), (300, 64)):
        x = torch.randn(shape, dtype=torch.bfloat16)
        y = call(x, a)
        assert y is not None
        torch.testing.assert_close(y.float(), x.float() @ w.T, rtol=1e-2, atol=0.1)
    assert played.made == ["bitmap", "gap"]
    assert played.expanded == ["mask"]
    shifted = torch.empty(a.nnz + 1, dtype=torch.bfloat16)[1:]  # off 16 bytes
    b = tamis.SparseMatrix(a.layout, {**a.arrays, "values": shifted.copy_(a.arrays["values"])})
    x = torch.randn(20, 64, dtype=torch.bfloat16)
    y = call(x, b)
    assert y is not None
    torch.testing.assert_close(y.float(), x.float() @ w.T, rtol=1e-2, atol=0.1)
    assert played.made == ["bitmap", "gap", "t16"]


def test_weights_in_host_memory_are_read_packed_alone(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is multiplied as it is stored, and prompts are written out from what is packed."""
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("NVIDIA H200", 90)])
    monkeypatch.setattr(cuda_packed, "lies_on", lambda *_: False)
    a = half_kept(40, 64)
    w = a.to_dense().float()
    for shape in ((1, 64), (1, 20, 64), (1, 90, 64), (17, 64), (48, 64), (300, 64)):
        x = torch.randn(shape, dtype=torch.bfloat16)
        y = call(x, a)
        assert y is not None
        torch.testing.assert_close(y.float(), x.float() @ w.T, rtol=1e-2, atol=0.1)
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
        y, dense = call(x, a), torch.nn.functional.linear(x, w)
        assert y is not None
        torch.testing.assert_close(y.float(), x.float() @ w.float().T, rtol=1e-2, atol=0.1)
        assert x.numel() <= 4 * 64 or torch.equal(y, dense)
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


def expect_close(y: Tensor | None, x: Tensor, a: tamis.SparseMatrix, step: float) -> None:
    assert y is not None
    assert y.dtype == x.dtype
    dense = a.to_dense().to(x.dtype).float()
    torch.testing.assert_close(y.float(), x.float() @ dense.T, rtol=step, atol=20 * step)


@pytest.mark.parametrize("format", ["bitmap", "nm"])
def test_32_bit_values_are_multiplied_as_they_are_stored(played: type[Played], format: str) -> None:
    """Any number of tokens, written out beyond what a call takes, and trained without a copy."""
    keep = torch.rand(40, 16, 4).argsort(-1).lt(2).view(40, 64)
    a = tamis.compress(torch.randn(40, 64), keep=keep, format=format)
    values = a.arrays["values"].requires_grad_()
    for shape in ((1, 64), (16, 64), (4, 1, 64), (17, 64), (1, 20, 64), (300, 64)):
        x = torch.randn(shape)
        expect_close(call(x, a), x, a, 1e-5)
    assert played.made == ["bitmap"]
    assert played.expanded == ["bitmap"] * 3
    with torch.no_grad():
        values.mul_(2)
    x = torch.randn(3, 64)
    expect_close(call(x, a), x, a, 1e-5)
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
        expect_close(call(tokens, a), tokens, a, 1e-5 if dtype == torch.float32 else 1e-2)
    made = "bitmap" if dtype == torch.float32 else "gap"
    assert played.made == (["sell4"] if made == "gap" and format == "u4" else [made])
    assert cuda_packed.nbytes(a.arrays["values"], 0) > 0
    graphs.now = 1
    expect_close(call(x, a), x, a, 1e-5 if dtype == torch.float32 else 1e-2)
    a.arrays["values"].add_(0)
    with pytest.raises(tamis.TamisError, match="weight of"):
        call(x, a)


def test_four_bit_codes_are_int8_ones_that_pack_in_half() -> None:
    keep = torch.rand(40, 50, 4).argsort(-1).lt(2).view(40, 200)
    w = torch.randn(40, 200)
    for dtype, limit in (("i4", 7), ("i8", 127)):
        a = tamis.compress(w, keep=keep, format="nm", dtype=dtype)
        assert a.layout.dtype == "i8"
        assert int(a.arrays["values"].abs().max()) == limit
        step = (w * keep).abs().amax(1, keepdim=True) / limit
        assert bool(((a.to_dense() - w * keep).abs() <= step * 0.5001).all())
        matrix = make_matrix(a.layout, {n: t.numpy() for n, t in a.arrays.items()})
        if dtype == "i4":
            halves, whole = (_C.pack_for_cuda(matrix, s)["records"] for s in ("m24i4", "m24i8"))
            assert halves.size * 5 == whole.size * 3
        else:
            with pytest.raises(NotImplementedError, match="wanted codes of 4 bits"):
                _C.pack_for_cuda(matrix, "m24i4")

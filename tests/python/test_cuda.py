"""The CUDA side: why it is off, what it takes, and on a device every product against float64."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tamis
from tamis import _C
from tamis.ops import cuda

needs_device = pytest.mark.skipif(bool(cuda.why_off()), reason=f"CUDA is off: {cuda.why_off()}")
SHAPES = [(16, 64), (1, 8), (17, 65), (50, 200), (130, 321), (1024, 4096), (4096, 1024)]


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
        _C.CudaMatrix(0, 0, 0, 0, 16, 64, "bf16", 0)


def test_tiles_hold_every_value_once() -> None:
    rng = np.random.default_rng(3)
    w = rng.integers(1, 60000, (40, 200), dtype=np.uint16)
    w[rng.random(w.shape) < 0.6] = 0
    arrays = _C.pack("bitmap", w, "bf16", None, "bf16")
    tiles = _C.pack_t16(_C.Matrix("bitmap", arrays, 40, 200, "bf16"))
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


def test_pack_t16_refuses_other_formats() -> None:
    w = np.ones((2, 4), np.uint16)
    csr = _C.Matrix("csr", _C.pack("csr", w, "bf16", None, "bf16"), 2, 4, "bf16")
    with pytest.raises(ValueError, match="t16: format: got csr, wanted bitmap or nm"):
        _C.pack_t16(csr)


# ---- on a device


def make(n: int, k: int, density: float, dtype: torch.dtype) -> tuple[Tensor, tamis.SparseMatrix]:
    """Dense weights on the device, and compressed."""
    w = torch.randn(n, k, dtype=dtype)
    w[torch.rand(n, k) >= density] = 0
    a = tamis.compress(w, format="bitmap")
    moved = {name: array.cuda() for name, array in a.arrays.items()}
    return w.cuda(), tamis.SparseMatrix(a.layout, moved)


def check(x: Tensor, w: Tensor, a: tamis.SparseMatrix, bias: Tensor | None) -> None:
    y = tamis.ops.spmm.spmm(x, a, bias)
    assert torch.equal(y, tamis.ops.spmm.spmm(x, a, bias)), "two runs differ"
    wanted = x.double() @ w.double().T
    scale = x.double().abs() @ w.double().abs().T
    if bias is not None:
        wanted += bias.double()
    eps = 2.0**-8 if x.dtype == torch.bfloat16 else 2.0**-11
    allowed = eps * wanted.abs() + 32 * 2.0**-23 * scale
    assert bool(((y.double() - wanted).abs() <= allowed).all())


@needs_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int], density: float, dtype: torch.dtype) -> None:
    w, a = make(*shape, density, dtype)
    bias = torch.randn(shape[0], dtype=dtype, device="cuda")
    for m in (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 200):
        x = torch.randn(m, shape[1], dtype=dtype, device="cuda")
        check(x, w, a, bias if m % 2 else None)


@needs_device
def test_strided_and_misaligned_inputs() -> None:
    w, a = make(96, 200, 0.5, torch.bfloat16)
    x = torch.randn(9, 211, dtype=torch.bfloat16, device="cuda")
    for begin in (0, 1, 8):
        check(x[:, begin : begin + 200], w, a, None)
    check(x[:1, 3:203], w, a, None)


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

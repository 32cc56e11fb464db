"""A CUDA device played by NumPy, and products that go to it as they go to one."""

import contextlib
import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from packed_forms import (
    decode,
    decode_g4,
    decode_gap,
    decode_m24,
    decode_p24,
    decode_r24,
    decode_sell4,
    sell4_slices,
)
from torch import Tensor

import tamis
from tamis import _C
from tamis.ops import cuda, cuda_forms, cuda_memory, cuda_packed, cuda_spmm, cuda_spmm_grad


def at_address(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


def floats(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.copy()).view(torch.bfloat16).float()


class Played:
    """CudaMatrix over host memory."""

    kernel = "played"
    made: list[str] = []
    expanded: list[str] = []

    def __init__(
        self,
        records: int,
        nbytes: int,
        longest: int,
        offsets: int,
        rows: int,
        cols: int,
        *rest: Any,
        mask_ptr: int = 0,
        **_: int,
    ) -> None:
        form = self.form = rest[2]
        Played.made.append(form)
        self.most_tokens = {"gap": 4, "p24": 24, "sell4": 8, "r24": 128}.get(form, 64)
        self.dtype: type = np.uint16  # of bits of bf16
        if form == "bitmap":
            words = at_address(mask_ptr, (rows, 8 * -(-cols // 64)), np.uint8)
            kept = np.unpackbits(words, axis=1, bitorder="little")[:, :cols].astype(bool)
            if rest[0] == "f32":
                self.dtype, self.most_tokens = np.float32, 16
                self.bits = np.zeros((rows, cols), np.float32)
                self.bits[kept] = at_address(records, (nbytes // 4,), np.float32)
                return
            self.bits = np.zeros((rows, cols), np.uint16)
            self.bits[kept] = at_address(records, (nbytes // 2,), np.uint16)
            self.most_tokens = 1 << 20
            return
        if form == "sell4":
            slices = sell4_slices(rows)
            self.bits = np.zeros((rows, cols), np.uint16)
            decode_sell4(
                at_address(records, (nbytes,), np.uint8),
                at_address(offsets, (33 * slices + 1,), np.uint32),
                self.bits,
            )
            return
        if form == "gap":
            starts = at_address(offsets, (-(-rows // 32) + 1,), np.uint32)
            self.bits = decode_gap(at_address(records, (nbytes,), np.uint8), starts, rows, cols)
            return
        down, across = -(-rows // 16), -(-cols // 64)
        if form == "p24":
            starts = at_address(offsets, (down + 1,), np.uint32)
            kept = at_address(records, (nbytes,), np.uint8)
            self.bits = decode_p24(kept, longest, starts, rows, cols)
            return
        starts = 1152 * np.arange(down * across + 1)
        if offsets:
            starts = 16 * at_address(offsets, (down * across + 1,), np.uint32).astype(np.int64)
        dense = np.zeros((16 * down, 64 * across), np.uint16)
        for tile, (begin, end) in enumerate(itertools.pairwise(starts)):
            r, c = divmod(tile, across)
            record = at_address(records, (nbytes,), np.uint8)[begin:end]
            assert len(record) <= longest
            {"t16": decode, "m24": decode_m24, "g4": decode_g4, "r24": decode_r24}[form](
                record, dense[16 * r : 16 * r + 16, 64 * c : 64 * c + 64]
            )
        self.bits = dense[:rows, :cols].copy()

    def workspace(self, m: int) -> int:
        return 1000 * m

    def spmm(self, m: int, x: int, stride: int, bias: int, y: int, *rest: int) -> None:
        y_stride, _, nbytes, _ = rest
        assert nbytes >= self.workspace(m)
        assert m <= self.most_tokens
        rows, cols = self.bits.shape
        tokens = self.read(at_address(x, ((m - 1) * stride + cols,), self.dtype))
        tokens = torch.stack([tokens[i * stride : i * stride + cols] for i in range(m)])
        out = tokens @ self.read(self.bits).T
        if bias:
            out += self.read(at_address(bias, (rows,), self.dtype))
        assert y_stride == rows
        narrow = out if self.dtype is np.float32 else out.bfloat16().view(torch.uint16)
        at_address(y, (m, rows), self.dtype)[:] = narrow.numpy()

    def read(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers.copy()) if self.dtype is np.float32 else floats(numbers)

    def unpack(self, out: int, stride: int, _: int) -> None:
        Played.expanded.append(self.form)
        assert stride == self.bits.shape[1]
        at_address(out, self.bits.shape, self.dtype)[:] = self.bits


def play_unpack(mask: cuda_spmm_grad.Mask, values: Tensor) -> Tensor:
    """unpack over host memory."""
    rows, cols, nnz = mask[2]
    words = at_address(mask[4], (rows, 8 * -(-cols // 64)), np.uint8)
    kept = np.unpackbits(words, axis=1, bitorder="little")[:, :cols].astype(bool)
    assert kept.sum() == nnz
    dense = values.new_zeros(rows, cols)
    dense[torch.from_numpy(kept)] = values
    Played.expanded.append("mask")
    return dense


def play(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    """Plays one device, of sm_80 and of rates that nobody measured, until the test ends."""
    cuda_packed.forms_held.clear()
    monkeypatch.setattr(cuda, "why_off", lambda: "")
    monkeypatch.setattr(cuda_forms, "devices", lambda: [("Unmeasured", 80)])
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda_spmm, "current_device", lambda: 0)
    monkeypatch.setattr(cuda_packed, "raw_stream", lambda _: 7)
    monkeypatch.setattr(cuda_packed._C, "CudaMatrix", Played)
    monkeypatch.setattr(cuda_spmm_grad, "unpack", play_unpack)
    monkeypatch.setattr(cuda_memory, "_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(cuda_memory, "capturing", lambda: False)
    monkeypatch.setattr(cuda_memory, "workspaces", {})
    monkeypatch.setattr(Played, "made", [])
    monkeypatch.setattr(Played, "expanded", [])
    return Played


class Graphs:
    """Captures, one at a time, whose workspaces come from here."""

    def __init__(self) -> None:
        self.now = 0  # 0: none
        self.given: dict[tuple[int, int], Tensor] = {}

    def play(self, monkeypatch: pytest.MonkeyPatch) -> "Graphs":
        """Has the played device capture where ``now`` says so."""
        monkeypatch.setattr(cuda_memory, "capturing", lambda: self.now > 0)
        monkeypatch.setattr(_C, "cuda_graph_workspace", self.workspace)
        return self

    def workspace(self, device: int, stream: int, nbytes: int) -> tuple[int, int]:
        assert device == 0
        assert self.now
        found = self.given.setdefault((self.now, stream), torch.zeros(nbytes, dtype=torch.uint8))
        return found.data_ptr(), found.numel()


def call(x: Tensor, a: tamis.SparseMatrix, bias: Tensor | None = None) -> Tensor | None:
    """x @ a.T + bias as an operator gives it to the kernels."""
    get = a.arrays.get
    rest = (get("mask"), get("row_offsets"), get("col_indices"), get("scales"))
    return cuda_spmm.spmm(x, a.arrays["values"], rest, bias, a.layout)


def expect_product(
    x: Tensor, a: tamis.SparseMatrix, bias: Tensor | None = None, step: float = 1e-2
) -> Tensor:
    """Y, which a kernel multiplied: within ``step`` of what torch says in 32 bits."""
    y = call(x, a, bias)
    assert y is not None
    assert y.dtype == x.dtype
    wanted = x.float() @ a.to_dense().to(x.dtype).float().T
    if bias is not None:
        wanted += bias.float()
    torch.testing.assert_close(y.float(), wanted, rtol=step, atol=10 * step)
    return y


def half_kept(n: int, k: int) -> tamis.SparseMatrix:
    """A bitmap [n, k] of random places."""
    w = torch.randn(n, k, dtype=torch.bfloat16)
    w[torch.rand(n, k) < 0.5] = 0
    return tamis.compress(w, format="bitmap")

"""A CUDA device played by NumPy: every packed form decoded by its layout comment, and CudaMatrix."""

import ctypes
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tamis.ops import cuda_spmm_grad


def floats(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.copy()).view(torch.bfloat16).float()


def decode(record: np.ndarray, tile: np.ndarray) -> None:
    """Adds the weights of one record to a tile [16, 64] of bits, by the layout comment of t16.h."""
    words, values = record[:128].view(np.uint32), record[144:].view(np.uint16)
    at = 0
    for run in range(8):
        assert record[128:144].view(np.uint16)[run] == 144 + 2 * at
        for lane, word in enumerate(words):
            for bit in range(4):
                if int(word) >> (4 * run + bit) & 1:
                    row = lane // 4 + 8 * (run % 2)
                    tile[row, 16 * (lane % 4) + 4 * (run // 2) + bit] = values[at]
                    at += 1


def at_address(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


def decode_m24(record: np.ndarray, tile: np.ndarray) -> None:
    """The same by the layout comment of m24.h."""
    places, values = record[:128].view(np.uint32), record[128:].view(np.uint16)
    for step, lane, row, part, i in itertools.product(range(2), range(32), *[range(2)] * 3):
        element = 8 * part + 2 * (lane % 4) + i
        word = int(places[lane // 4 * 4 + 2 * step + part])
        place = word >> (16 * row + 2 * (element % 8)) & 3
        col = 32 * step + element // 2 * 4 + place
        value = values[256 * step + 8 * lane + 4 * part + 2 * row + i]
        tile[lane // 4 + 8 * row, col] |= value


def decode_g4(record: np.ndarray, tile: np.ndarray) -> None:
    """The same by the layout comment of g4.h, rounded to bf16."""
    mask, at = int(record[:8].view(np.uint64)[0]), 16
    kept = mask.bit_count()
    for rank, bit in enumerate(b for b in range(64) if mask >> b & 1):
        words = record[at + 8 * rank : at + 8 * rank + 8].view(np.uint32)
        scale, zero = record[at + 8 * kept + 4 * rank :][:4].view(np.float16).astype(np.float32)
        for j in range(16):
            code = int(words[j // 8]) >> (j % 8 // 2 * 4 + j % 2 * 16) & 15
            row, col = bit % 32 // 4 + 8 * (bit // 32), 16 * (bit % 4) + j
            w = torch.tensor(scale * (code - zero)).bfloat16()
            tile[row, col] = w.view(torch.uint16).item()


def decode_gap(records: np.ndarray, offsets: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Bits [rows, cols] by the layout comment of gap.h; 64 parts a slice, as of few rows."""
    w = np.zeros((rows, cols), np.uint16)
    for begin, end in itertools.pairwise(128 * offsets.astype(np.int64)):
        order = records[begin : begin + 128].view(np.uint32)
        firsts = records[begin + 128 : begin + 128 + 4096].view(np.uint16).reshape(64, 32)
        body = records[begin + 128 + 4096 : end].reshape(-1, 640)
        steps = len(body)
        values = body[:, :512].copy().view(np.uint16).reshape(steps, 32, 8)
        nibbles = body[:, 512:].reshape(steps, 32, 4)
        gaps = np.concatenate([nibbles & 15, nibbles >> 4], 2).astype(np.int64)
        for lane, row in enumerate(order):
            if row == 2**32 - 1:
                assert not values[:, lane].any()
                continue
            columns = int(firsts[0, lane]) + np.cumsum(gaps[:, lane].reshape(-1))
            for part in range(64):  # where it begins
                entry = steps * part // 64 * 8
                assert firsts[part, lane] == (columns[entry - 1] if entry else firsts[0, lane])
            kept = values[:, lane].reshape(-1)
            w[row, columns[kept != 0]] = kept[kept != 0]
    assert 128 * int(offsets[-1]) == len(records)
    return w


def decode_p24(
    records: np.ndarray, longest: int, offsets: np.ndarray, rows: int, cols: int
) -> np.ndarray:
    """Bits [rows, cols] by the layout comment of p24.h; one panel, as of few columns."""
    w = np.zeros((-(-rows // 16) * 16, -(-cols // 8) * 8), np.uint16)
    assert longest * int(offsets[-1]) == len(records)

    def put(row: int, byte: int, value: int) -> None:
        if value:
            column = byte // 16 ^ byte // 128 & 7
            assert w[row, column] == 0, "a column twice"
            w[row, column] = value

    for tile, (begin, end) in enumerate(itertools.pairwise(offsets)):
        for i in range(begin, end):
            record = records[longest * i : longest * (i + 1)]
            lanes = itertools.product(range(32), *[range(2)] * 4)
            for lane, step, part, down, j in lanes:
                group, row = 4 * part + lane % 4, 16 * tile + lane // 4 + 8 * down
                at = lane // 4 * 4 + part
                if longest == 1280:  # two of four: j is the element
                    heads = record[:256].view(np.uint16).reshape(32, 4)
                    places = int(heads[at + 2 * step, :2].view(np.uint32)[0])
                    place = places >> (16 * down + 4 * (lane % 4) + 2 * j) & 3
                    values = record[256:].view(np.uint16).reshape(2, 32, 2, 2, 2)
                    put(
                        row,
                        int(heads[4 * group + place, 2 + step]),
                        values[step, lane, part, down, j],
                    )
                    continue
                places = int(record[:128].view(np.uint32)[at + 2 * step])  # j is the second step
                place = places >> (16 * down + 4 * (lane % 4) + 2 * j) & 3
                columns = record[128:320].view(np.uint16).reshape(24, 4)
                values = record[320:].view(np.uint16).reshape(2, 32, 2, 2, 2)
                byte = int(columns[3 * group + place, 2 * step + j])
                put(row, byte, values[step, lane, j, part, down])
    return w[:rows, :cols].copy()


R24_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def decode_r24(record: np.ndarray, tile: np.ndarray) -> None:
    """Bits [16, 64] by the layout comment of r24.h."""
    codes = record[:128].view(np.uint32)
    values = record[128:1152].view(np.uint16).reshape(2, 32, 4, 2)
    for lane, four in itertools.product(range(32), range(8)):
        row, first = 4 * (four // 2) + lane // 8, 8 * (lane % 8) + 4 * (four % 2)
        pair = R24_PAIRS[int(codes[lane]) >> (4 * four) & 15]
        tile[row, [first + pair[0], first + pair[1]]] = values[four // 4, lane, four % 4]
    for entry in record[1152:].view(np.uint32).tolist():
        row, part = divmod(entry >> 16, 128)
        column = 8 * (part // 16 ^ row % 8) + part % 16 // 2
        assert tile[row, column] in (0, entry & 0xFFFF), "a column twice"
        tile[row, column] = entry & 0xFFFF


def sell4_slices(rows: int) -> int:
    """As many as rows have lanes: four a row where that leaves 132 slices, or two."""
    lanes = 4 if 4 * rows <= 132 * 32 else 2 if 2 * rows <= 132 * 32 else 1
    return -(-rows * lanes // 32)


def decode_sell4(records: np.ndarray, offsets: np.ndarray, dense: np.ndarray) -> None:
    """All weights by the layout comment of sell4.h, rounded to bf16."""
    slices = sell4_slices(dense.shape[0])
    rows = offsets[slices + 1 :]
    for s, lane in itertools.product(range(slices), range(32)):
        for r in range(offsets[s], offsets[s + 1]):
            words = records[1536 * r : 1536 * r + 1536].view(np.uint32)
            for step in range(4):
                unit = int(words[256 + 4 * lane + step])
                scale = float(np.array([unit & 0xFFFF], np.uint16).view(np.float16)[0])
                if scale == 0:
                    continue
                for j in range(16):
                    word = int(words[128 * (step // 2) + 4 * lane + 2 * (step % 2) + j // 8])
                    code = word >> (j % 8 // 2 * 4 + j % 2 * 16) & 15
                    w = torch.tensor(scale * (code - (unit >> 16 & 15))).bfloat16()
                    dense[rows[32 * s + lane], 16 * (unit >> 20) + j] = w.view(torch.uint16).item()


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

"""Every packed form decoded in NumPy by its layout comment in csrc/format."""

import itertools

import numpy as np
import torch


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

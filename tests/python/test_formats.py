"""The formats as Python sees them: laws against NumPy decoders written from the layout comments."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tamis import _C

Array = np.ndarray[Any, Any]
BITS = {"f32": np.dtype("u4"), "f16": np.dtype("u2"), "bf16": np.dtype("u2")}
STORAGE = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "i8": np.int8}


@dataclasses.dataclass(frozen=True)
class Pattern:
    format: str
    keep: int = 0
    of: int = 0
    block_rows: int = 0
    block_cols: int = 0

    def __str__(self) -> str:
        sizes = f"{self.keep}:{self.of}" if self.of else f"{self.block_rows}x{self.block_cols}"
        return self.format if self.format in ("bitmap", "csr", "csr8") else f"{self.format}-{sizes}"

    def pack(self, w: Array, w_dtype: str, keep: Array | None, dtype: str, **extra: int) -> Any:
        return _C.pack(
            self.format,
            w,
            w_dtype,
            keep,
            dtype,
            keep_n=self.keep,
            of=self.of,
            block_rows=self.block_rows,
            block_cols=self.block_cols,
            **extra,
        )

    def matrix(self, arrays: Any, shape: tuple[int, int], dtype: str, **extra: Any) -> _C.Matrix:
        fields = dataclasses.asdict(self) | extra
        return _C.Matrix(fields.pop("format"), arrays, *shape, dtype, **fields)


FORMATS = [
    Pattern("bitmap"),
    Pattern("csr"),
    Pattern("csr8"),
    Pattern("nm", keep=2, of=4),
    Pattern("nm", keep=1, of=1),
    Pattern("nm", keep=3, of=5),
    Pattern("nm", keep=13, of=32),
    Pattern("block", block_rows=1, block_cols=1),
    Pattern("block", block_rows=4, block_cols=16),
    Pattern("block", block_rows=3, block_cols=65),
]
COLUMNS = [1, 5, 32, 60, 63, 64, 65, 130, 160]
every_format = pytest.mark.parametrize("pattern", FORMATS, ids=str)


def mask_bits(words: Array, cols: int) -> Array:
    """Keep [rows, cols] of mask words [rows, ceil(cols/64)]."""
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, cols:].any(), "bits beyond the last column"
    return bits[:, :cols].astype(bool)


def decode(pattern: Pattern, arrays: dict[str, Array], rows: int, cols: int) -> tuple[Array, Array]:
    """Stored values [rows, cols] (0 where none) and where they are, read from the layout comment."""
    values = arrays["values"]
    dense = np.zeros((rows, cols), values.dtype)
    where = np.zeros((rows, cols), bool)
    if pattern.format in ("bitmap", "nm"):
        where = mask_bits(arrays["mask"], cols)
        dense[where] = values  # row-major, ascending columns
        if pattern.format == "bitmap":
            counts = where.sum(axis=1)
            assert (arrays["row_offsets"] == np.concatenate([[0], np.cumsum(counts)])).all()
    elif pattern.format == "csr":
        offsets = arrays["row_offsets"]
        row = np.repeat(np.arange(rows), np.diff(offsets))
        dense[row, arrays["col_indices"]] = values
        where[row, arrays["col_indices"]] = True
    elif pattern.format == "csr8":
        words = -(-cols // 64)
        counts, columns = np.split(arrays["col_indices"].astype(np.int64), [rows * words])
        word = np.repeat(np.arange(rows * words), counts)
        row, column = word // words if words else word, word % max(words, 1) * 64 + columns
        assert (counts.reshape(rows, words).sum(1) == np.diff(arrays["row_offsets"])).all()
        dense[row, column] = values
        where[row, column] = True
    else:
        r, c = pattern.block_rows, pattern.block_cols
        blocks = values.reshape(-1, r, c)
        row = np.repeat(np.arange(rows // r), np.diff(arrays["row_offsets"]))
        for block, i, j in zip(blocks, row, arrays["col_indices"], strict=True):
            dense[i * r : (i + 1) * r, j * c : (j + 1) * c] = block
            where[i * r : (i + 1) * r, j * c : (j + 1) * c] = True
    return dense, where


def widen(pattern: Pattern, keep: Array) -> Array:
    """What the format stores for this mask: itself, or whole blocks."""
    if pattern.format != "block":
        return keep
    rows, cols = keep.shape
    r, c = pattern.block_rows, pattern.block_cols
    blocks = keep.reshape(rows // r, r, cols // c, c).any(axis=(1, 3))
    return np.repeat(np.repeat(blocks, r, axis=0), c, axis=1)


@st.composite
def problems(draw: Callable[..., Any], pattern: Pattern, finite: bool) -> Any:
    """Weights (as raw bits, so that -0, denormals, Inf and NaN occur), their dtype, and a mask."""
    dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    unit = max(1, pattern.of, pattern.block_cols)
    cols = draw(st.sampled_from([c for c in COLUMNS if c % unit == 0] or [2 * unit]))
    rows = draw(st.integers(0, 4)) * max(1, pattern.block_rows)
    kind = BITS[dtype]
    bits = draw(hnp.arrays(kind, (rows, cols), elements=hnp.from_dtype(kind), fill=st.just(0)))
    if finite:
        exponent = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80}[dtype]
        bits = np.where(bits & exponent == exponent, 0x3C00, bits).astype(kind)
    if pattern.format == "nm":
        seed = draw(st.integers(0, 2**32 - 1))
        order = np.random.default_rng(seed).random((rows, cols // pattern.of, pattern.of))
        keep = (order.argsort(axis=2).argsort(axis=2) < pattern.keep).reshape(rows, cols)
    else:
        keep = draw(hnp.arrays(bool, (rows, cols)))
    return bits.view(STORAGE[dtype]), dtype, keep


@every_format
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_floats_come_back_bit_for_bit(pattern: Pattern, data: st.DataObject) -> None:
    w, dtype, keep = data.draw(problems(pattern, finite=False))
    arrays = pattern.pack(w, dtype, keep, dtype)
    wanted = np.where(keep, w.view(BITS[dtype]), 0)

    dense, where = decode(pattern, arrays, *w.shape)
    np.testing.assert_array_equal(dense.view(BITS[dtype]), wanted)
    np.testing.assert_array_equal(where, widen(pattern, keep))

    matrix = pattern.matrix(arrays, w.shape, dtype)
    np.testing.assert_array_equal(matrix.unpack().view(BITS[dtype]), wanted)
    np.testing.assert_array_equal(matrix.unpack_keep(), widen(pattern, keep))
    assert (matrix.rows, matrix.cols, matrix.nnz) == (*w.shape, where.sum())
    assert (matrix.format, matrix.dtype) == (pattern.format, dtype)
    assert matrix.unpack().dtype == STORAGE[dtype]


@every_format
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_int8_is_rounded_as_stated(pattern: Pattern, data: st.DataObject) -> None:
    w, dtype, keep = data.draw(problems(pattern, finite=True))
    group = data.draw(st.sampled_from([0, 1, 3, 64, 100]))
    arrays = pattern.pack(w, dtype, keep, "i8", group_size=group)
    real = w.astype(np.float32) if dtype != "bf16" else (w.astype(np.uint32) << 16).view(np.float32)
    kept = np.where(keep, real, 0).astype(np.float32)

    step = group or w.shape[1]
    starts = np.arange(0, w.shape[1], step)
    absmax = np.maximum.reduceat(np.abs(kept), starts, axis=1) if w.size else np.zeros((0, 1))
    scales = (absmax / np.float32(127)).astype(np.float32)
    # Where absmax / 127 is denormal the scale is rounded up so that 127 steps still reach absmax.
    normal = scales >= np.finfo(np.float32).tiny
    np.testing.assert_array_equal(arrays["scales"].reshape(scales.shape)[normal], scales[normal])
    used = np.repeat(arrays["scales"], step, axis=1)[:, : w.shape[1]]
    assert (127 * used.astype(np.float64) >= np.abs(kept) * (1 - 1e-6)).all()

    codes, _ = decode(pattern, arrays, *w.shape)
    wanted = np.rint(kept / np.where(used == 0, np.float32(1), used))
    np.testing.assert_array_equal(codes, np.clip(wanted, -127, 127))

    out = pattern.matrix(arrays, w.shape, "i8", group_size=group).unpack()
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, codes.astype(np.float32) * used)
    error = np.abs(out.astype(np.float64) - kept)
    assert (error <= used.astype(np.float64) * 0.50002).all()


@every_format
def test_no_mask_keeps_what_is_not_zero(pattern: Pattern) -> None:
    rng = np.random.default_rng(1)
    rows, cols = 4 * max(1, pattern.block_rows), 2 * max(32, pattern.of, pattern.block_cols)
    cols -= cols % max(1, pattern.of, pattern.block_cols)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    keep = rng.random((rows, cols)) < 0.4
    if pattern.of:
        order = rng.random((rows, cols // pattern.of, pattern.of)).argsort(axis=2).argsort(axis=2)
        keep = (order < pattern.keep - (pattern.keep > 1)).reshape(rows, cols)
    w[~keep] = 0
    w[0, :] = -0.0
    w[1, :] = 0.0
    arrays = pattern.pack(w, "f32", None, "f32")
    matrix = pattern.matrix(arrays, (rows, cols), "f32")
    np.testing.assert_array_equal(matrix.unpack(), w)
    stored = matrix.unpack_keep()
    if pattern.of:  # groups with fewer nonzeros are filled up with their lowest zeros
        groups = w.reshape(rows, -1, pattern.of) != 0
        need = pattern.keep - groups.sum(axis=2, keepdims=True)
        filled = groups | (~groups & (np.cumsum(~groups, axis=2) <= need))
        np.testing.assert_array_equal(stored, filled.reshape(rows, cols))
    else:
        np.testing.assert_array_equal(stored, widen(pattern, w != 0))


@every_format
def test_rows_may_lie_apart(pattern: Pattern) -> None:
    rng = np.random.default_rng(2)
    rows, cols = 2 * max(1, pattern.block_rows), 2 * max(1, pattern.of, pattern.block_cols)
    base = rng.standard_normal((2 * rows, cols + 7)).astype(np.float32)
    view = base[::2, 3 : 3 + cols]
    keep = np.ones((rows, cols), bool)
    if pattern.of:
        keep[:] = np.arange(cols) % pattern.of < pattern.keep
    one, other = (pattern.pack(w, "f32", keep, "f32") for w in (view, view.copy()))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_matrix_keeps_its_arrays_alive() -> None:
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    matrix = Pattern("bitmap").matrix(Pattern("bitmap").pack(w, "f32", None, "f32"), w.shape, "f32")
    _ = [np.full(1000, np.nan) for _ in range(100)]  # would reuse freed memory
    np.testing.assert_array_equal(matrix.unpack(), w)


def test_nvidia_metadata_matches_an_independent_decode() -> None:
    rng = np.random.default_rng(3)
    for rows, cols in [(1, 4), (2, 32), (5, 60), (3, 64), (4, 68), (7, 256)]:
        groups = rows * cols // 4
        ids = np.sort(rng.permuted(np.tile(np.arange(4), (groups, 1)), axis=1)[:, :2], axis=1)
        nibbles = np.zeros(-(-groups // 8) * 8, np.uint32)
        nibbles[:groups] = ids[:, 0] | ids[:, 1] << 2
        meta = (nibbles.reshape(-1, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(axis=1)
        keep = np.zeros((groups, 4), bool)
        np.put_along_axis(keep, ids, True, axis=1)
        mask = _C.import_nvidia_24(meta.astype(np.uint32), rows, cols)
        assert mask.dtype == np.int64
        np.testing.assert_array_equal(mask_bits(mask, cols), keep.reshape(rows, cols))
    with pytest.raises(ValueError, match=r"meta\[0\]: got column ids 0 and 0 in group 0"):
        _C.import_nvidia_24(np.zeros(1, np.uint32), 1, 4)
    with pytest.raises(ValueError, match="got 1 words for 1 x 64"):
        _C.import_nvidia_24(np.zeros(1, np.uint32), 1, 64)
    with pytest.raises(ValueError, match="got 1 words for"):
        _C.import_nvidia_24(np.zeros(1, np.uint32), 2**62, 4)


W = np.arange(1, 9, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, "pack: w: got list, wanted a numpy array of float32", {"w": W.tolist()}),
        (TypeError, "pack: w: got dtype float64, wanted float32", {"w": W.astype(float)}),
        (TypeError, "pack: w: got dtype >f4, wanted float32", {"w": W.astype(">f4")}),
        (ValueError, r"pack: w: got shape \(8,\), wanted 2 dimensions", {"w": W.ravel()}),
        (ValueError, r"pack: w: got strides .* wanted contiguous rows", {"w": W.T.copy().T}),
        (ValueError, r"pack: w: got strides .* wanted contiguous rows", {"w": W[::-1]}),
        (ValueError, r"pack: w: got strides", {"w": np.broadcast_to(W[0], (3, 4))}),
        (
            ValueError,
            "pack: w: got memory that is not aligned",
            {"w": np.frombuffer(b"0" * 33, np.uint8)[1:].view(np.float32).reshape(2, 4)},
        ),
        (TypeError, "pack: keep: got dtype float32, wanted bool", {"keep": W}),
        (ValueError, r"pack: keep: got shape \(4,\), wanted the weights'", {"keep": W[0] > 0}),
        (ValueError, "pack: keep: got a strided array", {"keep": (W.T > 0).copy().T}),
        (ValueError, "pack: format: got 'coo', wanted one of bitmap, csr", {"format": "coo"}),
        (
            ValueError,
            "pack: dtype: got 'f64', wanted f32, f16, bf16, i8, u4 or u8",
            {"dtype": "f64"},
        ),
        (TypeError, "pack: dtype: got bf16 from f32 weights", {"dtype": "bf16"}),
        (ValueError, "pack: keep, of: got 0 of 0", {"format": "nm"}),
        (
            ValueError,
            "pack: w: got 4 kept weights in row 0, columns 0 to 3, wanted 2 of every 4",
            {"format": "nm", "keep_n": 2, "of": 4},
        ),
    ],
)
def test_pack_refuses(error: type[Exception], text: str, arguments: dict[str, Any]) -> None:
    good = {"format": "bitmap", "w": W, "w_dtype": "f32", "keep": None, "dtype": "f32"}
    with pytest.raises(error, match=text):
        _C.pack(**(good | arguments))


def test_matrix_refuses_arrays_that_do_not_fit() -> None:
    arrays = _C.pack("csr", W, "f32", None, "f32")

    def build(**changes: Any) -> None:
        _C.Matrix(
            "csr", {k: v for k, v in (arrays | changes).items() if v is not None}, 2, 4, "f32"
        )

    build()
    with pytest.raises(TypeError, match="Matrix: col_indices: got dtype int64, wanted int32"):
        build(col_indices=arrays["col_indices"].astype(np.int64))
    with pytest.raises(ValueError, match="check: col_indices: got 0 elements, wanted 8"):
        build(col_indices=None)
    with pytest.raises(ValueError, match="wanted only values, mask"):
        build(extra=W)
    with pytest.raises(ValueError, match="Matrix: values: got a strided array"):
        build(values=np.zeros(16, np.float32)[::2])
    with pytest.raises(ValueError, match=r"check: col_indices\[1\]: got 0, wanted more than 0"):
        build(col_indices=np.zeros(8, np.int32))
    # check=False trusts contents, never sizes.
    _C.Matrix("csr", arrays, 2, 4, "f32", check=False)
    with pytest.raises(ValueError, match="check: row_offsets: got 3 elements, wanted 4"):
        _C.Matrix("csr", arrays, 3, 4, "f32", check=False)


EXTREMES = st.sampled_from([-(2**63), -1, 0, 1, 64, 2**31 - 1, 2**31, 2**62, 2**63 - 1])
SMALL = st.sampled_from([-(2**31), -1, 0, 1, 2, 4, 32, 2**31 - 1])


def damaged(data: st.DataObject, array: Array) -> Array:
    """The array with a flipped bit, a missing end or extra elements."""
    raw = bytearray(array.tobytes())
    size = array.itemsize
    match data.draw(st.sampled_from(["flip", "cut", "grow"])):
        case "flip" if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            raw = raw[: data.draw(st.integers(0, len(raw) // size)) * size]
        case "grow":
            raw += bytes(size * data.draw(st.integers(1, 9)))
    return np.frombuffer(bytes(raw), array.dtype)


@every_format
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_files_never_crash(pattern: Pattern, data: st.DataObject) -> None:
    """Damaged arrays and absurd fields: a ValueError, or a matrix that can be used."""
    rows, cols = 2 * max(1, pattern.block_rows), 2 * max(33, pattern.of, pattern.block_cols)
    cols -= cols % max(1, pattern.of, pattern.block_cols)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    keep = rng.random((rows, cols)) < 0.5
    if pattern.of:
        keep[:] = np.arange(cols) % pattern.of < pattern.keep
    dtype = data.draw(st.sampled_from(["f32", "i8"]))
    arrays = pattern.pack(w, "f32", keep, dtype)
    for name in data.draw(st.lists(st.sampled_from(sorted(arrays)), max_size=3)):
        arrays[name] = damaged(data, arrays[name])
    fields: dict[str, Any] = {"rows": rows, "cols": cols} | dataclasses.asdict(pattern)
    for field in data.draw(
        st.sets(st.sampled_from(sorted(fields.keys() - {"format"})), max_size=2)
    ):
        fields[field] = data.draw(EXTREMES if field in ("rows", "cols") else SMALL)
    with contextlib.suppress(ValueError):
        matrix = _C.Matrix(arrays=arrays, dtype=dtype, **fields)
        if matrix.rows * matrix.cols < 10**6:
            shape = (matrix.rows, matrix.cols)
            assert matrix.unpack().shape == matrix.unpack_keep().shape == shape
            assert matrix.unpack_keep().sum() == matrix.nnz

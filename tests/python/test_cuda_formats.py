"""What is packed for CUDA, decoded by its layout comment: every value once, where it belongs."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from packed_forms import decode_gap, decode_p24, decode_r24

import tamis
from tamis import _C
from tamis.ops.handle import make_matrix


def packed(form: str, rows: int, cols: int, density: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Weights of 16 bits of which about ``density`` are kept, none of row 7, and what is packed of them."""
    rng = np.random.default_rng(5)
    w = rng.integers(1, 60000, (rows, cols), dtype=np.uint16)
    w[rng.random(w.shape) >= density] = 0
    w[7] = 0
    matrix = _C.Matrix("bitmap", _C.pack("bitmap", w, "bf16", None, "bf16"), rows, cols, "bf16")
    return w, _C.pack_for_cuda(matrix, form)


def test_tiles_hold_every_value_once() -> None:
    w, tiles = packed("t16", 40, 200, 0.4)
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
    w, made = packed("gap", 150, 300, density)
    assert np.array_equal(decode_gap(made["records"], made["offsets"], *w.shape), w)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 0.5, 1.0])
def test_groups_of_columns_hold_the_weights(density: float) -> None:
    w, made = packed("p24", 150, 300, density)
    longest = made["max_record_bytes"]
    assert density not in (0.3, 0.5) or longest == (1344 if density == 0.3 else 1280)
    found = decode_p24(made["records"], longest, made["offsets"], *w.shape)
    assert np.array_equal(found, w)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 0.5, 0.9, 1.0])
def test_pairs_in_place_and_a_residual_hold_the_weights(density: float) -> None:
    w, made = packed("r24", 150, 300, density)
    starts = 16 * made["offsets"].astype(np.int64)
    found = np.zeros((160, 320), np.uint16)
    for tile, (begin, end) in enumerate(itertools.pairwise(starts)):
        r, c = divmod(tile, 5)
        part = found[16 * r : 16 * r + 16, 64 * c : 64 * c + 64]
        decode_r24(made["records"][begin:end], part)
    assert starts[-1] == made["records"].size
    assert np.array_equal(found[:150, :300], w)
    assert not found[150:].any()
    assert not found[:, 300:].any()


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

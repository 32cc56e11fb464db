"""The forms in which CUDA kernels read weights, and what a device takes of them; no torch here.

A weight has one form for any number of tokens: ``t16`` of any zeros, ``m24`` of 2:4, ``g4`` of 4-bit
codes, ``t16i8`` and ``m24i8`` of 8-bit ones, or, in 32 bits, the canonical arrays of bitmap and nm as
they are, which are called ``bitmap``. Beside it others may serve few tokens: ``gap``, ``p24`` and
``r24`` of any zeros, ``sell4`` of 4-bit codes. csrc/format has a header for each.
"""

from __future__ import annotations

from functools import cache

from tamis import _C
from tamis.layout import Layout
from tamis.ops import cuda

STORED = "bitmap"
STORED_ABOVE = 16  # tokens above which sm_90 takes 16-bit bitmap and nm as they are stored
BY_MASK = ("gap", "p24", "r24", STORED)  # written out from the mask where it is on the device
# Forms for few tokens beside one for any.
FEW = {"t16": ("gap", "p24", "r24"), "g4": ("sell4",)}
# Those of them that take more tokens, up to so many, where that is expected to be fastest: r24 in
# one call, p24 in equal ones.
IN_CALLS, CALLED_TOKENS = ("p24", "r24"), 128
# A kernel takes as long for any number of tokens up to the next of these; all forms together, each
# form for few, and the others.
TOKENS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64)
STEPS = {"gap": TOKENS[:3], "p24": TOKENS[3:], "r24": (64, 128), "sell4": TOKENS[:4]}
_TILES = (8, 16, 32, 64)
MANY_TOKENS = (128, 256, 512, 1024, 2048)  # of which reports speak
_P24_BEFORE_SM90 = 16  # tokens of a call there


def packed_form(layout: Layout) -> str:
    """The form for any number of tokens; "" where kernels read no weight of this layout."""
    if layout.format == "groupq":
        return "g4" if layout.dtype == "u4" else ""
    if layout.format not in ("bitmap", "nm"):
        return ""
    if layout.dtype == "f32":
        return STORED
    sparse24 = layout.format == "nm" and layout.of == 4 and layout.keep <= 2
    if layout.dtype == "i8":  # sums end with groups
        fits = layout.group_size % 128 == 0 or layout.group_size == layout.cols
        return ("m24i8" if sparse24 else "t16i8") if fits else ""
    return "m24" if sparse24 else "t16"


def read_as(layout: Layout, dtype: str = "") -> Layout:
    """The layout as which kernels read a weight with x of that dtype, its own if none is given.

    Where no form takes its own, or x has another dtype than its values, that is a bitmap of what it
    unpacks to.
    """
    dtype = dtype or ("bf16" if layout.quantized else layout.dtype)
    own = dtype != "f32" if layout.quantized else dtype == layout.dtype
    if own and packed_form(layout):
        return layout
    return _bitmap(layout.rows, layout.cols, dtype)


@cache
def _bitmap(rows: int, cols: int, dtype: str) -> Layout:
    return Layout("bitmap", rows, cols, dtype)


def steps_of(form: str) -> tuple[int, ...]:
    """Numbers of tokens up to each of which a call takes as long, whatever the device."""
    return STEPS.get(form, _TILES)


def tokens_of(form: str, layout: Layout, device: int) -> int:
    """Most tokens of a call of a form for few; of p24 as many as panels leave room for (p24_params.h)."""
    if form == "r24":
        return STEPS[form][-1] if sm(device) == 90 else 0
    if form != "p24":
        return STEPS[form][-1]
    if sm(device) < 90:
        return _P24_BEFORE_SM90
    return _C.p24_most_tokens(layout.rows, layout.cols)


def taken_as_stored(layout: Layout, device: int) -> bool:
    """Whether a kernel takes the 16-bit canonical arrays of such a layout there."""
    whole = layout.rows % 8 == 0 and layout.cols % 8 == 0
    if packed_form(layout) != "t16" or not whole or cuda.why_off():
        return False
    return sm(device) == 90


def kernel(layout: Layout, form: str, device: int) -> str:
    """Name of the kernel that takes the layout in that form there; empty if none does."""
    x_dtype = "bf16" if layout.quantized else layout.dtype
    return next(
        (
            row["name"]
            for row in ([] if cuda.why_off() else _C.cuda_kernels(devices()[device][1]))
            if row["op"] == "spmm"
            and row["format"] == form
            and row["x_dtype"] == x_dtype
            and row["runs_here"]
        ),
        "",
    )


def sm(device: int) -> int:
    """Compute capability, 90 for 9.0; 0 where CUDA is off."""
    return 0 if cuda.why_off() else devices()[device][1]


@cache
def devices() -> list[tuple[str, int]]:
    """Name and compute capability of each device."""
    return [(str(d["name"]), int(d["capability"])) for d in _C.cuda_devices()]

"""What products are expected to take on a CUDA device; nothing here knows torch.

A weight is read in records of 16 x 64, in gap's steps of 32 x 8 entries, sell4's of 32 groups or
p24's of groups of columns; a call takes a start, then for each record the larger of its bytes at the
device's rate and what decoding and multiplying it takes, which grows in steps with the tokens. A
dense call takes a start and its bytes. Fitted to every layout of the four shapes of Llama-3-8B on an
H200, and to an H100's times of what ran there (bench/results/gpu.md; the rest is estimated); other
devices are not predicted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from tamis import _C
from tamis.layout import Layout
from tamis.ops import cuda

# A kernel takes as long for any number up to the next of these.
TOKENS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64)
_TILES = (8, 16, 32, 64)
MANY_TOKENS = (128, 256, 512, 1024, 2048)  # of which reports speak
# Above so many tokens sm_90 takes bitmap and nm as they are stored; up to 128 where rates are unknown.
STORED = "bitmap"
STORED_ABOVE, _STORED_UNKNOWN = 16, 128
BY_MASK = ("gap", "p24", "r24", STORED)  # written out from the mask where it is on the device
# Forms for few tokens beside one for any, and the steps of their kernels; all say 65536 columns.
FEW: dict[str, dict[str, tuple[int, ...]]] = {
    "t16": {"gap": TOKENS[:3], "p24": TOKENS[3:], "r24": (64, 128)},
    "g4": {"sell4": TOKENS[:4]},
}
_FEW_COLS = 65536
# Those that take more tokens, up to so many, where that is expected to be fastest: r24 in one call,
# p24 in equal ones. Together they are larger than the weight would be densely, so r24 is not made
# beside p24, nor p24 beside r24 for more tokens than one call of it takes.
IN_CALLS, CALLED_TOKENS, _ONE_CALL = ("p24", "r24"), 128, 48
_CALLED = (80, 96, CALLED_TOKENS)
P24_BEFORE_SM90 = 16  # tokens of p24 there
NEVER = float("inf")


@dataclass(frozen=True)
class Rates:
    """A device: bytes a ns, ns that a call takes whatever it reads, and forms that ran on it.

    ``choose_bytes``: keys and values that choosing tokens must leave out to be worth its own time, in
    launches before the one that attends, and in that one.
    """

    read: float
    start: float
    dense_start: float
    timed: tuple[str, ...]
    choose_bytes: tuple[int, int] = (0, 0)


RATES = {
    "H200": Rates(
        4460.0,
        4000.0,
        5900.0,
        ("gap", "p24", "r24", "t16", "bitmap", "m24", "g4", "sell4", "m24i8", "t16i8"),
        choose_bytes=(90_000_000, 40_000_000),
    ),
    "H100": Rates(3130.0, 6000.0, 7100.0, ("t16", "g4")),  # m24 as it was before warpgroups
}
START = {
    "gap": 0.7,
    "p24": 0.75,
    "r24": 0.75,
    "m24": 0.75,
    "sell4": 0.7,
}  # of the start: no ring to fill, and x alone is waited for
LAUNCH = 1000.0  # ns: what a kernel that does nothing takes
# Where a weight is read and written out: ns more than a dense call, and its rate of that one; from a
# mask, or from records.
MASK_WRITTEN, WRITTEN = (2000.0, 0.92), (LAUNCH, 0.8)
RECORDS_WRITTEN = {"p24": (4000.0, 0.75), "gap": (12000.0, 0.27)}
# ns a record by tokens, both devices' SMs being alike.
DECODE = {
    "gap": (0.155, 0.165, 0.24),
    "p24": (0.29, 0.31, 0.31, 0.352, 0.371, 0.4, 0.52),
    "r24": (0.448, 0.729),
    "t16": (0.46, 0.57, 0.90, 1.38),
    "m24": (0.275, 0.268, 0.305, 0.285),
    "g4": (0.28, 0.49, 0.52, 1.35),
    "sell4": (0.075, 0.112, 0.22, 0.42),
    "m24i8": (0.25, 0.25, 0.31, 0.62),
    "t16i8": (0.38, 0.42, 0.52, 0.9),
}
RECORD_BYTES = {
    "gap": 640.0,
    "p24": 1280.0,
    "sell4": 384.0,
    "m24": 1152.0,
    "m24i8": 640.0,
}
# Bytes of a stored value and of the rest of a record, padding on average.
VALUE_BYTES = {"t16": (2.0, 152.0), "g4": (0.75, 24.0), "t16i8": (1.0, 280.0)}
R24_RECORD, R24_ENTRY, _FOURS = 1152.0 + 6.0, 4.0, 256  # and of what a four keeps beyond two
# Ns of it at least, by tokens: each block of sell4 loads x, however small the weight.
LEAST = {"sell4": (0.0, 500.0, 2200.0, 6200.0)}
# Ns of a call beyond its start by tokens: m24 by warpgroups (both devices are Hopper), as parts of
# sums meet, p24, as every SM copies x.
MORE = {
    "m24": (0.0, 500.0, 900.0, 3500.0),
    "p24": (0.0, 1000.0, 2600.0, 2500.0, 3700.0, 4200.0, 6000.0),
    "r24": (3000.0, 1500.0),
}
# Where rows are so few that several blocks share a slice or a row tile (of two SMs of a device one
# would have none): gap's sums meet in memory, while rows of sell4 have several lanes, and panels of
# p24, where columns are enough for some, are clusters. Ns more (or less) by tokens.
FEW_ROWS = 132 // 2 * 32
SHARED = {
    "gap": (400.0, 400.0, 400.0),
    "p24": (-250.0, -900.0, -1700.0, -1150.0, -1350.0, -1600.0, -2500.0),
    "r24": (-1000.0, 900.0),
    "sell4": (-850.0, -450.0, -1400.0, -2600.0),
}
# Of r24 up to so many rows a record takes that times so much, as parts of k share an output tile.
R24_FEW_ROWS, R24_SHARED = 132 * 64, 1.18
_PANELS_FROM, _ALONE = 2048, 600.0  # columns; what p24 of fewer takes, estimated
# Up to so many tokens records of p24 take as long as their bytes say, above as their steps do, which
# are more of one of three columns, but meet in fewer banks.
_BY_BYTES, _STEPS_OF_TRIPLES = 24, 1.0
# Tokens up to which a form is taken where rates are unknown, and up to which density.
_UNKNOWN = {"gap": 4, "p24": 16, "sell4": 4}
_FEW_DENSITY = 0.6
# m24's of more tokens, up to MANY24: beyond the start, and of each record and token, of as many records
# at least as fill the device. Fewer than FEW24 are written out.
MANY24_START, MANY24_TOKEN, MANY24_FILL = 4500.0, 0.0019, 8192
FEW24, MANY24 = 4096, 1 << 16
# Of weights as they are stored, by tokens: ns beyond the start, and a record of 16 x 64, half kept;
# that times so much where rows are so few that several blocks share a row tile of 128 (1.22 at 128
# tokens, but dense calls of as many columns are expected to take as much too little).
STORED_TOKENS = (32, 64, 128, 256)
STORED_MORE, STORED_RECORD = (3600.0, 4100.0, 7000.0, 8200.0), (0.81, 0.89, 1.05, 1.22)
STORED_SHARED, STORED_FEW_ROWS = (1.1, 1.15, 1.1, 1.3), 132 // 2 * 128
# 32-bit values, which are multiplied as they are stored: tokens of a call; ns of it beyond those of each
# record of 16 x 64, half kept, and that times so much where nothing is.
TOKENS32 = (1, 2, 4, 8, 16)
START32 = (4100.0, 4000.0, 4300.0, 4000.0, 4500.0)
RECORD32, EMPTY32 = (0.695, 0.765, 0.88, 1.306, 1.987), 0.9
READ32 = (0.34, 0.68)  # and at least so much of a record, and as much more as it is kept
# The same by torch up to so many tokens, beyond by its rate; written out, and its share of the device's.
DENSE32_TOKENS = (1, 2, 4, 8, 16, 32)
DENSE32_START = (3200.0, 4000.0, 5000.0, 12000.0, 21000.0, 12000.0)
DENSE32_RECORD = (0.98, 1.38, 1.45, 1.88, 1.753, 2.2)
DENSE32_FLOPS_A_NS = 50e3
WRITTEN32 = (4000.0, 0.8)
_DENSE_FLOPS_A_NS = 650e3  # of large products in 16 bits, Hopper


def packed_form(layout: Layout) -> str:
    """The packed form that CUDA kernels read: tiles of any zeros, of 2:4, of codes; "" for none.

    Of 32-bit values the canonical arrays themselves, whatever the number of tokens.
    """
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

    Where no packed form takes its own, or x has another dtype than its values, that is a bitmap of
    what it unpacks to.
    """
    dtype = dtype or ("bf16" if layout.quantized else layout.dtype)
    own = dtype != "f32" if layout.quantized else dtype == layout.dtype
    if own and packed_form(layout):
        return layout
    return _bitmap(layout.rows, layout.cols, dtype)


@cache
def _bitmap(rows: int, cols: int, dtype: str) -> Layout:
    return Layout("bitmap", rows, cols, dtype)


def form_for(
    layout: Layout,
    nnz: int,
    tokens: int,
    device: int,
    *,
    stored: bool = True,
    beside: Collection[str] = (),
) -> str:
    """The packed form for that many tokens: that for few where it is expected to be faster.

    ``stored``: or the canonical arrays, if they lie on the device. ``beside``: forms that the weight
    is packed as already.
    """
    form, rates = packed_form(layout), _rates(device)
    if form == STORED:
        return form
    # More than 16 tokens were timed with half of the weights and fewer.
    fewer = form == "g4" or nnz <= _FEW_DENSITY * layout.rows * layout.cols
    forms: list[str] = []
    if layout.cols <= _FEW_COLS and (fewer or tokens <= STORED_ABOVE):
        forms += (f for f in FEW.get(form, {}) if tokens <= _most_in_calls(f, layout, device))
    if "p24" in beside or ("r24" in beside and tokens > _ONE_CALL):
        forms = [f for f in forms if f not in IN_CALLS or f in beside]
    as_stored = stored and tokens > STORED_ABOVE and taken_as_stored(layout, device)
    if rates is None:
        few = (f for f in forms if fewer and tokens <= _UNKNOWN.get(f, 0))
        return STORED if as_stored else next(few, form)
    if as_stored:
        forms.insert(0, STORED)
    if not forms:
        return form  # of any number of tokens
    if not as_stored or tokens <= TOKENS[-1]:
        forms.append(form)
    return min(forms, key=lambda f: _expected(rates, layout, nnz, tokens, f, device))


def _most_in_calls(form: str, layout: Layout, device: int) -> int:
    """Tokens up to which a form for few may be chosen."""
    most = _most_of(form, layout, device)
    return CALLED_TOKENS if form in IN_CALLS and most and _rates(device) else most


def _most_of(form: str, layout: Layout, device: int) -> int:
    """Tokens that a form for few takes there: of p24 as many as its panels leave room for (p24_params.h)."""
    most = next(few[form][-1] for few in FEW.values() if form in few)
    if form == "r24":
        return most if _sm(device) == 90 else 0
    if form != "p24":
        return most
    if _sm(device) < 90:
        return P24_BEFORE_SM90
    return _C.p24_most_tokens(layout.rows, layout.cols)


def taken_as_stored(layout: Layout, device: int) -> bool:
    """Whether a kernel takes the canonical arrays of such a layout there."""
    whole = layout.rows % 8 == 0 and layout.cols % 8 == 0
    if packed_form(layout) != "t16" or not whole or cuda.why_off():
        return False
    return _sm(device) == 90


def stored_tokens(layout: Layout, nnz: int, device: int) -> int:
    """Tokens up to which that is expected to take no longer than writing the weight out; 0: none."""
    if not taken_as_stored(layout, device):
        return 0
    rates = _rates(device)
    if rates is None:
        return _STORED_UNKNOWN
    pays = (
        _stored(rates, layout, nnz, m) <= _written(rates, layout, nnz, m, STORED)
        for m in STORED_TOKENS
    )
    return max((m for m, does in zip(STORED_TOKENS, pays, strict=True) if does), default=0)


def form_and_tokens(
    layout: Layout,
    nnz: int,
    tokens: int,
    device: int,
    *,
    stored: bool = True,
    beside: Collection[str] = (),
) -> tuple[str, int, int | None]:
    """The same, and for which tokens around these: more than, up to; None: all that it takes."""
    steps = TOKENS if tokens <= TOKENS[-1] else (*TOKENS, *_CALLED)
    forms = [form_for(layout, nnz, m, device, stored=stored, beside=beside) for m in steps]
    first = last = next((i for i, m in enumerate(steps) if tokens <= m), len(steps) - 1)
    while first > 0 and forms[first - 1] == forms[last]:
        first -= 1
    while last + 1 < len(steps) and forms[last + 1] == forms[last]:
        last += 1
    above = steps[first - 1] if first else 0
    return forms[last], above, steps[last] if last + 1 < len(steps) else None


def few_tokens(layout: Layout, nnz: int, device: int) -> int:
    """Tokens up to which the weight has a form for few; 0 if it never has."""
    form = packed_form(layout)
    few = (form, STORED)
    return max((m for m in TOKENS if form_for(layout, nnz, m, device) not in few), default=0)


def packed_nbytes(layout: Layout, nnz: int, form: str) -> float:
    """Bytes of a packed form, padding on average."""
    if form == STORED:
        return 2.0 * nnz + (layout.cols / 8 + 8) * layout.rows
    records = _records(layout, nnz, form)
    if form == "r24":  # places being random
        kept = nnz / max(1, layout.rows * layout.cols)
        beyond = 4 * kept**3 * (1 - kept) + 2 * kept**4
        return records * (R24_RECORD + R24_ENTRY * _FOURS * beyond)
    if form in RECORD_BYTES:
        return RECORD_BYTES[form] * records
    value, header = VALUE_BYTES[form]
    return value * nnz + header * records


def _records(layout: Layout, nnz: int, form: str) -> float:
    """Tiles; of gap steps: zeros bridge gaps above 15, and a slice's last step is half full."""
    if form == "sell4":
        return 1.02 * nnz / 512
    density = nnz / max(1, layout.rows * layout.cols)
    if form == "p24":
        return _groups(density)[0] * -(-layout.rows // 16) * layout.cols / 64
    if form != "gap":
        return _tiles(layout.rows, layout.cols)
    entries = nnz / (1 - (1 - density) ** 15) if density else 0.0
    return entries / 256 + 1.5 * -(-layout.rows // 32)


def _groups(density: float) -> tuple[float, float]:
    """p24's records of two of four columns a record of 16 x 64; of one of three by bytes, and by steps.

    Places being random, where columns of 16 rows match up to nearly what groups hold.
    """
    pairs, triples = max(1.0, 2.05 * density), max(1.0, 4.0 * density - 0.2)
    some = 1 - (1 - density) ** 16
    if pairs <= 0.7 * triples:
        return pairs * some, pairs * some
    return 0.7 * triples * some, _STEPS_OF_TRIPLES * triples * some


def _stored(rates: Rates, layout: Layout, nnz: int, tokens: int) -> float:
    """Ns of a call that multiplies the weight as it is stored: three quarters of it where nothing is kept."""
    step = next((i for i, most in enumerate(STORED_TOKENS) if tokens <= most), None)
    if step is None:
        return NEVER
    records = _tiles(layout.rows, layout.cols)
    record = STORED_RECORD[step] * (0.75 + 0.5 * nnz / max(1, layout.rows * layout.cols))
    if layout.rows <= STORED_FEW_ROWS:
        record *= STORED_SHARED[step]
    return rates.start + STORED_MORE[step] + records * record


def _product(rates: Rates, layout: Layout, nnz: int, tokens: int, form: str) -> float:
    """Ns of a call of up to 64 tokens."""
    if form == STORED:
        return min(_written(rates, layout, nnz, tokens, form), _stored(rates, layout, nnz, tokens))
    steps = next((few[form] for few in FEW.values() if form in few), _TILES)
    step = next(i for i, most in enumerate(steps) if tokens <= most)
    decode = _records(layout, nnz, form) * DECODE[form][step]
    if form == "p24" and tokens > _BY_BYTES:
        density = nnz / max(1, layout.rows * layout.cols)
        by_bytes, by_steps = _groups(density)
        decode *= by_steps / by_bytes if by_bytes else 1.0
    if form == "r24" and layout.rows <= R24_FEW_ROWS:
        decode *= R24_SHARED
    if form in LEAST:
        decode = max(decode, LEAST[form][step])
    start = rates.start * START.get(form, 1.0) + (MORE[form][step] if form in MORE else 0.0)
    if layout.rows <= FEW_ROWS:
        alone = form == "p24" and layout.cols < _PANELS_FROM
        start += _ALONE if alone else SHARED[form][step] if form in SHARED else 0.0
    return start + max(decode, packed_nbytes(layout, nnz, form) / rates.read)


def _expected(
    rates: Rates,
    layout: Layout,
    nnz: int,
    tokens: int,
    form: str,
    device: int,
    *,
    stored: bool = True,
) -> float:
    """Ns of a product in that form: in one call, in equal ones, or written out."""
    if form in IN_CALLS:
        calls = -(-tokens // _most_of(form, layout, device))
        return calls * _product(rates, layout, nnz, -(-tokens // calls), form)
    if tokens > TOKENS[-1] and form != STORED:
        return _written(rates, layout, nnz, tokens, form, stored=stored)
    return _product(rates, layout, nnz, tokens, form)


def sparse_ns(
    layout: Layout, nnz: int, tokens: int, device: int, *, stored: bool = True
) -> float | None:
    """Expected ns of a product on the device, ``NEVER`` where no kernel takes it; None: unknown.

    Above 64 tokens the weight is written out, then multiplied densely, but for most of 2:4, what is
    taken as it is stored, r24 and what two calls take.
    """
    rates = _rates(device)
    if rates is None:
        return None
    how = read_as(layout)
    layout, stored = how, stored and how is layout
    form = form_for(layout, nnz, tokens, device, stored=stored)
    if layout.dtype == "f32":
        in_calls = _calls32(rates, layout, nnz, tokens)
        return min(in_calls, _written32(rates, layout, nnz, tokens))
    records = _records(layout, nnz, form)
    if TOKENS[-1] < tokens <= MANY24 and form == "m24" and records >= FEW24:
        tile = 128 if tokens <= 128 else 256
        products = MANY24_TOKEN * max(records, MANY24_FILL) * tile * -(-tokens // tile)
        read = packed_nbytes(layout, nnz, form) / rates.read
        return rates.start + MANY24_START + max(products, read)
    return _expected(rates, layout, nnz, tokens, form, device, stored=stored)


def tokens_of_call(layout: Layout, nnz: int, form: str, device: int) -> int:
    """Tokens that calls of a form for few take each: as many as it is chosen for."""
    steps = (*TOKENS, *_CALLED)
    chosen = (m for m in steps if form_for(layout, nnz, m, device, beside=(form,)) == form)
    most = _most_of(form, layout, device)
    return min(most, max(chosen, default=most))


def calls_pay(
    layout: Layout,
    nnz: int,
    form: str,
    tokens: int,
    device: int,
    *,
    packs: bool = False,
    stored: bool = True,
) -> bool:
    """Whether equal calls of no more tokens than a form for few is chosen for are expected to take no longer.

    Than writing the weight out and a dense product, or multiplying it as it is stored; ``packs``: or
    packing it in another form.
    """
    rates = _rates(device)
    if rates is not None and layout.dtype == "f32":
        in_calls = _calls32(rates, layout, nnz, tokens)
        return in_calls <= _written32(rates, layout, nnz, tokens)
    if rates is None or not any(form in few for few in FEW.values()):
        return False
    most = tokens_of_call(layout, nnz, form, device)
    calls = -(-tokens // most)
    call = _product(rates, layout, nnz, -(-tokens // calls), form)
    other = _written(rates, layout, nnz, tokens, form, stored=stored)
    if stored and tokens > STORED_ABOVE and taken_as_stored(layout, device):
        other = min(other, _stored(rates, layout, nnz, tokens))
    if packs and tokens <= CALLED_TOKENS:
        best = form_for(layout, nnz, tokens, device, stored=stored, beside=(form,))
        other = min(other, _expected(rates, layout, nnz, tokens, best, device))
    return calls * call <= other


def dense_ns(rows: int, cols: int, tokens: int, device: int, dtype: str = "bf16") -> float | None:
    """Expected ns of the same product by torch; None where it is unknown.

    Of f32 as torch multiplies unless it is told to take TF32.
    """
    rates = _rates(device)
    if rates is None:
        return None
    return (_dense32 if dtype == "f32" else _dense)(rates, rows, cols, tokens)


def estimated(layout: Layout, nnz: int, device: int) -> bool:
    """Whether what is expected there rests on another device's times of the forms it would take."""
    rates, how = _rates(device), read_as(layout)
    stored = how is layout
    forms = {form_for(how, nnz, tokens, device, stored=stored) for tokens in TOKENS}
    return rates is not None and not forms <= {*rates.timed}


def most_tokens(layout: Layout, nnz: int, device: int, *, stored: bool = True) -> int | None:
    """Tokens up to which the product is expected to take no longer than dense; None: unknown."""
    found = 0
    for tokens in (*TOKENS, *MANY_TOKENS):
        ours = sparse_ns(layout, nnz, tokens, device, stored=stored)
        dense = dense_ns(layout.rows, layout.cols, tokens, device, layout.dtype)
        if ours is None or dense is None:
            return None
        if ours > dense:
            break
        found = tokens
    return found


def kernel(layout: Layout, form: str, device: int) -> str:
    """Name of the kernel that takes the layout in that form there; empty if none does."""
    x_dtype = "bf16" if layout.quantized else layout.dtype
    return next(
        (
            row["name"]
            for row in ([] if cuda.why_off() else _C.cuda_kernels(_devices()[device][1]))
            if row["op"] == "spmm"
            and row["format"] == form
            and row["x_dtype"] == x_dtype
            and row["runs_here"]
        ),
        "",
    )


def choose_bytes(device: int, *, at_once: bool) -> int:
    """Keys and values that choosing tokens must leave out; 0 where that is not measured.

    at_once: the launch that attends to them chooses them.
    """
    rates = _rates(device)
    return rates.choose_bytes[at_once] if rates else 0


def _written(
    rates: Rates, layout: Layout, nnz: int, tokens: int, form: str, *, stored: bool = True
) -> float:
    """Ns of writing the weight out and of a dense call."""
    start, share = WRITTEN
    if stored and form in BY_MASK:
        form, (start, share) = STORED, MASK_WRITTEN
    elif form in RECORDS_WRITTEN:
        start, share = RECORDS_WRITTEN[form]
    nbytes = packed_nbytes(layout, nnz, form) + 2.0 * layout.rows * layout.cols
    return start + nbytes / (share * rates.read) + _dense(rates, layout.rows, layout.cols, tokens)


def _dense(rates: Rates, rows: int, cols: int, tokens: int) -> float:
    flops = 2.0 * rows * cols * tokens
    return rates.dense_start + max(2.0 * rows * cols / rates.read, flops / _DENSE_FLOPS_A_NS)


def _calls32(rates: Rates, layout: Layout, nnz: int, tokens: int) -> float:
    """Ns of 32-bit values multiplied as they are stored, in equal calls."""
    calls = -(-tokens // TOKENS32[-1])
    step = next(i for i, most in enumerate(TOKENS32) if -(-tokens // calls) <= most)
    density = nnz / max(1, layout.rows * layout.cols)
    record = RECORD32[step] * (EMPTY32 + 2 * (1 - EMPTY32) * density)
    record = max(record, READ32[0] + READ32[1] * density)
    return calls * (START32[step] + record * _tiles(layout.rows, layout.cols))


def _written32(rates: Rates, layout: Layout, nnz: int, tokens: int) -> float:
    """Ns of writing 32-bit values out and of a dense call."""
    start, share = WRITTEN32
    nbytes = 4.0 * (nnz + layout.rows * layout.cols) + layout.cols / 8 * layout.rows
    dense = _dense32(rates, layout.rows, layout.cols, tokens)
    return start + nbytes / (share * rates.read) + dense


def _dense32(rates: Rates, rows: int, cols: int, tokens: int) -> float:
    step = next((i for i, most in enumerate(DENSE32_TOKENS) if tokens <= most), None)
    if step is None:
        flops = 2.0 * rows * cols * tokens / DENSE32_FLOPS_A_NS
        return DENSE32_START[-1] + max(flops, DENSE32_RECORD[-1] * _tiles(rows, cols))
    return DENSE32_START[step] + DENSE32_RECORD[step] * _tiles(rows, cols)


def _tiles(rows: int, cols: int) -> int:
    return int(-(-rows // 16) * -(-cols // 64))


def _rates(device: int) -> Rates | None:
    if cuda.why_off():
        return None
    name = _devices()[device][0]
    return next((rates for part, rates in RATES.items() if part in name), None)


def _sm(device: int) -> int:
    """Compute capability, 90 for 9.0."""
    return 0 if cuda.why_off() else _devices()[device][1]


@cache
def _devices() -> list[tuple[str, int]]:
    return [(str(d["name"]), int(d["capability"])) for d in _C.cuda_devices()]

"""What products in one form are expected to take on a CUDA device; nothing here knows torch.

A weight is read in records of 16 x 64, in gap's steps of 32 x 8 entries, sell4's of 32 groups or
p24's of groups of columns; a call takes a start, then for each record the larger of its bytes at the
device's rate and what decoding and multiplying it takes, which grows in steps with the tokens. A
dense call takes a start and its bytes. Fitted to every layout of the four shapes of Llama-3-8B on an
H200, and to an H100's times of what ran there (bench/results/gpu.md; the rest is estimated); other
devices are not predicted.

Times are in ns. ``tamis.ops.cuda_choice`` chooses by them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tamis.layout import Layout
from tamis.ops import cuda, cuda_forms
from tamis.ops.cuda_forms import (
    BY_MASK,
    IN_CALLS,
    STORED,
    TOKENS,
    steps_of,
    tokens_of,
)

_NEVER = float("inf")


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


@dataclass(frozen=True)
class FormCost:
    """A packed form: what its records hold and take, both devices' SMs being alike.

    Tuples are by tokens, one number for each of the form's steps.
    """

    decode: tuple[float, ...]  # ns a record
    record_bytes: float  # without values where these follow
    value_bytes: float = 0.0  # a stored value; records have one length where it is 0
    start: float = 1.0  # of the device's: less where no ring is filled, and x alone is waited for
    more: tuple[float, ...] = ()  # ns of a call beyond its start
    shared: tuple[float, ...] = ()  # ns more, or less, where rows are at most FEW_ROWS
    least: tuple[float, ...] = ()  # ns of all records together at least
    written: tuple[float, float] = (1000.0, 0.8)  # as MASK_WRITTEN; the first: an empty kernel


COSTS = {
    # Sums of a slice's parts meet in memory.
    "gap": FormCost(
        decode=(0.155, 0.165, 0.24),
        record_bytes=640.0,
        start=0.7,
        shared=(400.0, 400.0, 400.0),
        written=(12000.0, 0.27),
    ),
    # Every SM copies x. Panels are clusters, where columns are enough for some.
    "p24": FormCost(
        decode=(0.29, 0.31, 0.31, 0.352, 0.371, 0.4, 0.52),
        record_bytes=1280.0,
        start=0.75,
        more=(0.0, 1000.0, 2600.0, 2500.0, 3700.0, 4200.0, 6000.0),
        shared=(-250.0, -900.0, -1700.0, -1150.0, -1350.0, -1600.0, -2500.0),
        written=(4000.0, 0.75),
    ),
    # Beside its records of one length, what a four keeps beyond two: R24_ENTRY.
    "r24": FormCost(
        decode=(0.448, 0.729),
        record_bytes=1152.0 + 6.0,
        start=0.75,
        more=(3000.0, 1500.0),
        shared=(-1000.0, 900.0),
    ),
    "t16": FormCost(decode=(0.46, 0.57, 0.90, 1.38), record_bytes=152.0, value_bytes=2.0),
    # By warpgroups (both devices are Hopper), where parts of sums meet.
    "m24": FormCost(
        decode=(0.275, 0.268, 0.305, 0.285),
        record_bytes=1152.0,
        start=0.75,
        more=(0.0, 500.0, 900.0, 3500.0),
    ),
    "g4": FormCost(decode=(0.28, 0.49, 0.52, 1.35), record_bytes=24.0, value_bytes=0.75),
    # Rows have several lanes where they are few; each block loads x, however small the weight.
    "sell4": FormCost(
        decode=(0.075, 0.112, 0.22, 0.42),
        record_bytes=384.0,
        start=0.7,
        shared=(-850.0, -450.0, -1400.0, -2600.0),
        least=(0.0, 500.0, 2200.0, 6200.0),
    ),
    "m24i8": FormCost(decode=(0.25, 0.25, 0.31, 0.62), record_bytes=640.0),
    "t16i8": FormCost(decode=(0.38, 0.42, 0.52, 0.9), record_bytes=280.0, value_bytes=1.0),
}
# Rows so few that several blocks share a slice or a row tile (of two SMs of a device one would have
# none).
FEW_ROWS = 132 // 2 * 32
# Where a weight is read and written out from its mask: ns more than a dense call, and its share of
# the device's rate.
MASK_WRITTEN = (2000.0, 0.92)
DENSE_FLOPS_A_NS = 650e3  # of large products in 16 bits, Hopper

# r24: bytes of an entry beyond two of a four, and fours of a record; up to so many rows a record takes
# that times so much, as parts of k share an output tile.
R24_ENTRY, R24_FOURS = 4.0, 256
R24_FEW_ROWS, R24_SHARED = 132 * 64, 1.18
# p24 of fewer columns than panels are made of, in place of `shared`; estimated.
P24_PANELS_FROM, P24_ALONE = 2048, 600.0
# Up to so many tokens records of p24 take as long as their bytes say, above as their steps do, which
# are more of one of three columns, but meet in fewer banks.
P24_BY_BYTES, P24_STEPS_OF_TRIPLES = 24, 1.0

# m24 of more tokens, up to MANY24: beyond the start, and of each record and token, of as many records
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


def rates_of(device: int) -> Rates | None:
    """The device's rates; None where it was not measured, or CUDA is off."""
    if cuda.why_off():
        return None
    name = cuda_forms.devices()[device][0]
    return next((rates for part, rates in RATES.items() if part in name), None)


def choose_bytes(device: int, *, at_once: bool) -> int:
    """Keys and values that choosing tokens must leave out; 0 where that is not measured.

    ``at_once``: the launch that attends to them chooses them.
    """
    rates = rates_of(device)
    return rates.choose_bytes[at_once] if rates else 0


# ---- bytes


def packed_nbytes(layout: Layout, nnz: int, form: str) -> float:
    """Bytes of the weight in that form, padding on average."""
    if form == STORED:
        return 2.0 * nnz + (layout.cols / 8 + 8) * layout.rows
    records, cost = _records(layout, nnz, form), COSTS[form]
    if form == "r24":  # places being random
        kept = _density(layout, nnz)
        beyond = 4 * kept**3 * (1 - kept) + 2 * kept**4
        return records * (cost.record_bytes + R24_ENTRY * R24_FOURS * beyond)
    return cost.value_bytes * nnz + cost.record_bytes * records


def _records(layout: Layout, nnz: int, form: str) -> float:
    """Tiles; of gap steps: zeros bridge gaps above 15, and a slice's last step is half full."""
    if form == "sell4":
        return 1.02 * nnz / 512
    density = _density(layout, nnz)
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
    return 0.7 * triples * some, P24_STEPS_OF_TRIPLES * triples * some


def _tiles(rows: int, cols: int) -> int:
    return int(-(-rows // 16) * -(-cols // 64))


def _density(layout: Layout, nnz: int) -> float:
    return nnz / max(1, layout.rows * layout.cols)


# ---- times of 16-bit x


def expected_ns(
    rates: Rates,
    layout: Layout,
    nnz: int,
    tokens: int,
    form: str,
    device: int,
    *,
    stored: bool = True,
) -> float:
    """Of a product in that form: in one call, in equal ones, or written out.

    ``stored``: the canonical arrays lie on the device.
    """
    if form in IN_CALLS:
        calls = -(-tokens // tokens_of(form, layout, device))
        return calls * call_ns(rates, layout, nnz, -(-tokens // calls), form)
    if tokens > TOKENS[-1] and form != STORED:
        if form == "m24" and tokens <= MANY24 and _records(layout, nnz, form) >= FEW24:
            return _many24_ns(rates, layout, nnz, tokens)
        return written_ns(rates, layout, nnz, tokens, form, stored=stored)
    return call_ns(rates, layout, nnz, tokens, form)


def call_ns(rates: Rates, layout: Layout, nnz: int, tokens: int, form: str) -> float:
    """Of one call of as many tokens as one takes."""
    if form == STORED:
        written = written_ns(rates, layout, nnz, tokens, form)
        return min(written, stored_ns(rates, layout, nnz, tokens))
    cost = COSTS[form]
    step = next(i for i, most in enumerate(steps_of(form)) if tokens <= most)
    decode = _records(layout, nnz, form) * cost.decode[step]
    if form == "p24" and tokens > P24_BY_BYTES:
        by_bytes, by_steps = _groups(_density(layout, nnz))
        decode *= by_steps / by_bytes if by_bytes else 1.0
    if form == "r24" and layout.rows <= R24_FEW_ROWS:
        decode *= R24_SHARED
    if cost.least:
        decode = max(decode, cost.least[step])
    start = rates.start * cost.start + (cost.more[step] if cost.more else 0.0)
    if cost.shared and layout.rows <= FEW_ROWS:
        alone = form == "p24" and layout.cols < P24_PANELS_FROM
        start += P24_ALONE if alone else cost.shared[step]
    return start + max(decode, packed_nbytes(layout, nnz, form) / rates.read)


def _many24_ns(rates: Rates, layout: Layout, nnz: int, tokens: int) -> float:
    """Of a call of m24 with more tokens than tiles of 64."""
    tile = 128 if tokens <= 128 else 256
    records = max(_records(layout, nnz, "m24"), MANY24_FILL)
    products = MANY24_TOKEN * records * tile * -(-tokens // tile)
    return (
        rates.start + MANY24_START + max(products, packed_nbytes(layout, nnz, "m24") / rates.read)
    )


def stored_ns(rates: Rates, layout: Layout, nnz: int, tokens: int) -> float:
    """Of a call that multiplies the weight as it is stored; endless above its most tokens."""
    step = next((i for i, most in enumerate(STORED_TOKENS) if tokens <= most), None)
    if step is None:
        return _NEVER
    # Three quarters of a record's time where nothing is kept.
    record = STORED_RECORD[step] * (0.75 + 0.5 * _density(layout, nnz))
    if layout.rows <= STORED_FEW_ROWS:
        record *= STORED_SHARED[step]
    return rates.start + STORED_MORE[step] + _tiles(layout.rows, layout.cols) * record


def written_ns(
    rates: Rates, layout: Layout, nnz: int, tokens: int, form: str, *, stored: bool = True
) -> float:
    """Of writing the weight out, from its mask if that is on the device, and of a dense call."""
    if form == STORED or (stored and form in BY_MASK):
        form, (start, share) = STORED, MASK_WRITTEN
    else:
        start, share = COSTS[form].written
    nbytes = packed_nbytes(layout, nnz, form) + 2.0 * layout.rows * layout.cols
    return (
        start + nbytes / (share * rates.read) + _dense_ns(rates, layout.rows, layout.cols, tokens)
    )


def dense_ns(rows: int, cols: int, tokens: int, device: int, dtype: str = "bf16") -> float | None:
    """Expected ns of the same product by torch; None where it is unknown.

    Of f32 as torch multiplies unless it is told to take TF32.
    """
    rates = rates_of(device)
    if rates is None:
        return None
    if dtype == "f32":
        return _dense32_ns(rows, cols, tokens)
    return _dense_ns(rates, rows, cols, tokens)


def _dense_ns(rates: Rates, rows: int, cols: int, tokens: int) -> float:
    flops = 2.0 * rows * cols * tokens
    return rates.dense_start + max(2.0 * rows * cols / rates.read, flops / DENSE_FLOPS_A_NS)


# ---- times of 32-bit x


def calls32_ns(layout: Layout, nnz: int, tokens: int) -> float:
    """Of 32-bit values multiplied as they are stored, in equal calls."""
    calls = -(-tokens // TOKENS32[-1])
    step = next(i for i, most in enumerate(TOKENS32) if -(-tokens // calls) <= most)
    density = _density(layout, nnz)
    record = RECORD32[step] * (EMPTY32 + 2 * (1 - EMPTY32) * density)
    record = max(record, READ32[0] + READ32[1] * density)
    return calls * (START32[step] + record * _tiles(layout.rows, layout.cols))


def written32_ns(rates: Rates, layout: Layout, nnz: int, tokens: int) -> float:
    """Of writing 32-bit values out and of a dense call."""
    start, share = WRITTEN32
    nbytes = 4.0 * (nnz + layout.rows * layout.cols) + layout.cols / 8 * layout.rows
    dense = _dense32_ns(layout.rows, layout.cols, tokens)
    return start + nbytes / (share * rates.read) + dense


def _dense32_ns(rows: int, cols: int, tokens: int) -> float:
    step = next((i for i, most in enumerate(DENSE32_TOKENS) if tokens <= most), None)
    if step is None:
        flops = 2.0 * rows * cols * tokens / DENSE32_FLOPS_A_NS
        return DENSE32_START[-1] + max(flops, DENSE32_RECORD[-1] * _tiles(rows, cols))
    return DENSE32_START[step] + DENSE32_RECORD[step] * _tiles(rows, cols)

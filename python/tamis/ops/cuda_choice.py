"""Which form of a weight calls on a CUDA device read, by what each is expected to take."""

from __future__ import annotations

from collections.abc import Collection

from tamis.layout import Layout
from tamis.ops.cuda_cost import (
    STORED_TOKENS,
    call_ns,
    calls32_ns,
    dense_ns,
    expected_ns,
    rates_of,
    stored_ns,
    written32_ns,
    written_ns,
)
from tamis.ops.cuda_forms import (
    CALLED_TOKENS,
    FEW,
    IN_CALLS,
    MANY_TOKENS,
    STEPS,
    STORED,
    STORED_ABOVE,
    TOKENS,
    packed_form,
    read_as,
    taken_as_stored,
    tokens_of,
)

_FEW_COLS = 65536  # that forms for few tokens can say
# Together p24 and r24 are larger than the weight would be densely, so r24 is not made beside p24, nor
# p24 beside r24 for more tokens than one call of it takes.
_ONE_CALL = 48
_STEPS = (*TOKENS, 80, 96, CALLED_TOKENS)
# Where rates are unknown: tokens up to which a form is taken, and the weight as it is stored.
_UNKNOWN, _STORED_UNKNOWN = {"gap": 4, "p24": 16, "sell4": 4}, 128
_FEW_DENSITY = 0.6  # up to which forms for few were timed with more than 16 tokens


def form_for(
    layout: Layout,
    nnz: int,
    tokens: int,
    device: int,
    *,
    stored: bool = True,
    beside: Collection[str] = (),
) -> str:
    """The form for so many tokens: the one expected to be fastest.

    ``stored``: the canonical arrays lie on the device, so they may be that. ``beside``: forms that the
    weight is packed as already.
    """
    form, rates = packed_form(layout), rates_of(device)
    if form == STORED:
        return form
    fewer = form == "g4" or nnz <= _FEW_DENSITY * layout.rows * layout.cols
    forms: list[str] = []
    if layout.cols <= _FEW_COLS and (fewer or tokens <= STORED_ABOVE):
        forms += (f for f in FEW.get(form, ()) if tokens <= _most_in_calls(f, layout, device))
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
    return min(forms, key=lambda f: expected_ns(rates, layout, nnz, tokens, f, device))


def _most_in_calls(form: str, layout: Layout, device: int) -> int:
    """Tokens up to which a form for few may be chosen."""
    most = tokens_of(form, layout, device)
    return CALLED_TOKENS if form in IN_CALLS and most and rates_of(device) else most


def form_and_tokens(
    layout: Layout,
    nnz: int,
    tokens: int,
    device: int,
    *,
    stored: bool = True,
    beside: Collection[str] = (),
) -> tuple[str, int, int | None]:
    """``form_for``, and for which tokens around these: more than, up to; None: all that it takes."""
    steps = TOKENS if tokens <= TOKENS[-1] else _STEPS
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


def stored_tokens(layout: Layout, nnz: int, device: int) -> int:
    """Tokens up to which the canonical arrays are read, 0: none, where that is expected to be no slower.

    No slower than writing the weight out.
    """
    if not taken_as_stored(layout, device):
        return 0
    rates = rates_of(device)
    if rates is None:
        return _STORED_UNKNOWN
    pays = (
        stored_ns(rates, layout, nnz, m) <= written_ns(rates, layout, nnz, m, STORED)
        for m in STORED_TOKENS
    )
    return max((m for m, does in zip(STORED_TOKENS, pays, strict=True) if does), default=0)


def tokens_of_call(layout: Layout, nnz: int, form: str, device: int) -> int:
    """Tokens that calls of a form for few take each: as many as it is chosen for."""
    chosen = (m for m in _STEPS if form_for(layout, nnz, m, device, beside=(form,)) == form)
    most = tokens_of(form, layout, device)
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
    """Whether equal calls of a form for few are expected to take no longer than any other way.

    The others are a dense product of the weight written out, one of it as it is stored and, if
    ``packs``, another form. No call has more tokens than the form is chosen for.
    """
    rates = rates_of(device)
    if rates is not None and layout.dtype == "f32":
        return calls32_ns(layout, nnz, tokens) <= written32_ns(rates, layout, nnz, tokens)
    if rates is None or form not in STEPS:
        return False
    most = tokens_of_call(layout, nnz, form, device)
    calls = -(-tokens // most)
    call = call_ns(rates, layout, nnz, -(-tokens // calls), form)
    other = written_ns(rates, layout, nnz, tokens, form, stored=stored)
    if stored and tokens > STORED_ABOVE and taken_as_stored(layout, device):
        other = min(other, stored_ns(rates, layout, nnz, tokens))
    if packs and tokens <= CALLED_TOKENS:
        best = form_for(layout, nnz, tokens, device, stored=stored, beside=(form,))
        other = min(other, expected_ns(rates, layout, nnz, tokens, best, device))
    return calls * call <= other


def sparse_ns(
    layout: Layout, nnz: int, tokens: int, device: int, *, stored: bool = True
) -> float | None:
    """Expected ns of a product on the device; None: unknown.

    Above 64 tokens the weight is written out, then multiplied densely, but for most of 2:4, what is
    taken as it is stored, r24 and what two calls take.
    """
    rates = rates_of(device)
    if rates is None:
        return None
    how = read_as(layout)
    if how.dtype == "f32":
        return min(calls32_ns(how, nnz, tokens), written32_ns(rates, how, nnz, tokens))
    stored = stored and how is layout
    form = form_for(how, nnz, tokens, device, stored=stored)
    return expected_ns(rates, how, nnz, tokens, form, device, stored=stored)


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


def estimated(layout: Layout, nnz: int, device: int) -> bool:
    """Whether what is expected there rests on another device's times of the forms it would take."""
    rates, how = rates_of(device), read_as(layout)
    stored = how is layout
    forms = {form_for(how, nnz, tokens, device, stored=stored) for tokens in TOKENS}
    return rates is not None and not forms <= {*rates.timed}

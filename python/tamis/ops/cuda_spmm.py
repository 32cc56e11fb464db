"""Products on CUDA devices: which form of a weight a call reads, and which one is packed for it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional

from tamis.layout import Layout
from tamis.ops import cuda, cuda_choice, cuda_forms, cuda_memory, cuda_packed, cuda_spmm_grad
from tamis.ops.cuda_choice import calls_pay, few_tokens, form_and_tokens, form_for, stored_tokens
from tamis.ops.cuda_forms import STORED, STORED_ABOVE, packed_form, read_as
from tamis.ops.cuda_memory import current_device, raw_stream, refuse_in_capture
from tamis.ops.cuda_packed import Packed, as_stored, forms_held, narrowed, versions
from tamis.ops.tensors import DTYPE_NAME, Rest

MAX_TOKENS = cuda_forms.TOKENS[-1]  # of one call of a form for any number of them


def spmm(
    x: Tensor, values: Tensor, rest: Rest, bias: Tensor | None, layout: Layout
) -> Tensor | None:
    """Product y [..., rows] by a CUDA kernel, or None where none takes these operands.

    Takes bitmap and nm weights with x of their dtype, int8 ones (x is rounded to 8 bits, as on the CPU)
    and groupq ones of 4 bits with 16-bit x, and any number of tokens; where that is more than a kernel
    takes (64, 2:4 in 16 bits on Hopper: 65536, 32 bits: 16) the weight is expanded on the device
    and multiplied densely. All other weights are read as a bitmap in x's dtype of what they unpack to,
    which lies on the device beside them. The first call packs the weight, through the host, and so do
    the calls after its values were written; values that may be trained are packed once a second call
    meets them as they were, so not at every step. What is read as it is stored is never packed.

    A weight of any zeros is packed as ``gap`` for up to 4 tokens, ``p24`` for up to 48 or 64, ``r24``
    for 33 to 128, ``t16`` for up to 64, one of 4-bit groups as ``sell4`` for up to 8 and ``g4`` for up
    to 64: as what is expected to be fastest for the calls that come, so as several only where calls
    want several. A prompt, x [..., s, cols] with s > 1, is one call among many of single tokens, so it
    reads what there is, and makes no second form beside the first. A short one is some calls of the
    form for few where that is expected to be faster than writing the weight out.

    Raises:
        TamisError: A CUDA graph is captured that would need the weight packed first.
    """
    if not takes(x.dtype, layout):
        return None
    packed = _held(x, values, rest, layout)
    if packed is None:
        trained = cuda_packed.lies_on(values, x.device) and values.requires_grad
        if trained and not reads_in_place(x.dtype, layout) and _stays_unpacked(values, layout):
            return None
        try:
            packed = _pack(x, values, rest, layout)
        except NotImplementedError:  # zero points that are no codes
            return None
    if not packed.matrix.kernel:
        return None
    with torch.cuda.device(x.device):
        many = x.numel() > packed.most
        if many and (packed.dense is not None or not _in_calls(packed, x, values, layout)):
            return functional.linear(x, packed.to_dense(values, x), bias)
        if bias is not None and bias.is_contiguous():
            packed.bias = bias
        run = packed.run_in_calls if many else packed.run
        return run(x, None if bias is None else bias.contiguous())


def direct(x: Tensor, token: str, values: Tensor, rest: Rest, bias: Tensor | None) -> Tensor | None:
    """Product by a kernel where everything was seen before, else None: no operator, no checks.

    The caller knows that nobody records this call. Every line costs each layer of each token.
    """
    elements = x.numel()
    for packed in forms_held.get(id(values), ()):
        if packed.least < elements <= packed.most:
            break
    else:
        return None
    if (
        x.dtype is not packed.dtype
        or x.dim() == 0
        or x.shape[-1] != packed.cols
        or x.get_device() != packed.device
        or current_device() != packed.device
        or (bias is not None and bias is not packed.bias)
        or not packed.fits(token, values, rest)
    ):
        return None
    try:
        x.data_ptr()
    except RuntimeError:  # the tensors of vmap and functorch have no memory of their own
        return None
    return packed.run(x, bias)


def unpack(values: Tensor, rest: Rest, layout: Layout) -> Tensor | None:
    """Dense w of 32-bit values where their mask lies on their device; None where no kernel does that."""
    here = cuda_packed.lie_ready((values, rest[0], rest[1]), values.device)
    if packed_form(layout) != STORED or not here or rest[0] is None or cuda.why_off():
        return None
    cuda_spmm_grad.check_structure(layout, values, rest[0], rest[1])
    with torch.cuda.device(values.device):
        dense = values.new_empty(layout.rows, layout.cols)
        stream = raw_stream(values.device.index or 0)
        as_stored(layout, values, rest, values.dtype).unpack(dense.data_ptr(), layout.cols, stream)
    return dense


def prepack(
    layout: Layout,
    values: Tensor,
    rest: Rest,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    *,
    keep_dense: bool = False,
) -> int:
    """Packs a weight, whose arrays may lie in host memory, for calls of so many tokens; bytes there are.

    ``keep_dense``: and writes it out, once, for as many tokens as a dense product is expected to take
    less time for, if there are any. Nothing is packed, and 0 returned, where no kernel takes it.
    """
    if not takes(dtype, layout):
        return 0
    x = torch.empty(1, layout.cols, dtype=dtype, device=device).expand(tokens, -1)
    try:
        packed = _held(x, values, rest, layout) or _pack(x, values, rest, layout)
    except NotImplementedError:  # zero points that are no codes
        return 0
    if not packed.matrix.kernel:
        return 0
    if keep_dense and packed.dense is None:
        nnz = _nnz(values, layout)
        most = cuda_choice.most_tokens(layout, nnz, packed.device, stored=False)
        if most is None or most < cuda_forms.MANY_TOKENS[-1]:
            with torch.cuda.device(device):
                packed.dense = packed.to_dense(values, x)
            if most is not None:
                packed.most = min(packed.most, most * layout.cols)
    return cuda_packed.nbytes(values, packed.device)


def kernel(
    layout: Layout, values: Tensor, nnz: int, tokens: int, device: int, *, stored: bool = True
) -> str:
    """Name of the kernel that a product of so many tokens runs there; empty if none does."""
    how = read_as(layout)
    form = form_for(how, nnz, tokens, device, stored=stored and how is layout)
    return cuda_forms.kernel(how, narrowed(form, values), device)


def takes(x_dtype: torch.dtype, layout: Layout) -> bool:
    """Whether a kernel takes such operands, were they on a device; not yet whether it is fast."""
    return x_dtype in DTYPE_NAME and layout.cols > 0 and not cuda.why_off()


def reads_in_place(x_dtype: torch.dtype, layout: Layout) -> bool:
    """Whether kernels read all such weights as they are stored, whatever was written to them."""
    return x_dtype == torch.float32 and packed_form(layout) == STORED


# ---- which form a call reads, of those that there are


def _held(x: Tensor, values: Tensor, rest: Rest, layout: Layout) -> Packed | None:
    """The packed weight for this x, if there is one."""
    found = _forms(x, values, rest, layout)
    fitting = next((packed for packed in found if packed.least < x.numel() <= packed.most), None)
    if fitting is not None or not found:
        return fitting
    dense = next((packed for packed in found if packed.dense is not None), None)
    if dense is not None:
        return dense
    calls = next((packed for packed in found if _in_calls(packed, x, values, layout)), None)
    if calls is not None:
        return calls
    forms, how = [packed.form for packed in found], _how(x, layout)
    if packed_form(how) == STORED:
        return found[0]  # any number of tokens
    wide = _wide(x, how, _nnz(values, layout), forms)
    stored = next((packed for packed in found if packed.form == STORED), None)
    stays = stored is None and _stays(x, values, rest, layout, forms)
    return (stored or found[0]) if wide and not stays else None


def _forms(x: Tensor, values: Tensor, rest: Rest, layout: Layout) -> list[Packed]:
    """The forms of the weight, as it is now, for x's dtype and device."""
    return [
        packed
        for packed in forms_held.get(id(values), ())
        if packed.serves(x) and packed.fits(layout.token, values, rest)
    ]


def _in_calls(packed: Packed, x: Tensor, values: Tensor, layout: Layout) -> bool:
    """Whether several calls of what is held are expected to take least time."""
    tokens, nnz, how = x.numel() // packed.cols, _nnz(values, layout), _how(x, layout)
    packs, stored = not _wide(x, how, nnz, (packed.form,)), _stored(x, values, layout)
    return calls_pay(how, nnz, packed.form, tokens, packed.device, packs=packs, stored=stored)


# ---- which form is packed for a call


def _pack(x: Tensor, values: Tensor, rest: Rest, layout: Layout) -> Packed:
    """Packs the weight in the form for x."""
    held = _forms(x, values, rest, layout)
    cuda_packed.forget(values)  # what was packed of other values leaves before more is packed
    if held:
        forms_held[id(values)] = held
    forms = [packed.form for packed in held]
    form, above, up_to = _form_for(x, values, rest, layout, forms)
    packed = next((p for p in held if p.form == form), None)
    if packed is None:
        packed = Packed(layout, values, rest, x.dtype, form, x.device)
        packed.least = above * layout.cols if above else -1
        if up_to is not None:
            packed.most = min(packed.most, up_to * layout.cols)
        if packed.most > 0:
            held.append(packed)
    how, most, nnz = _how(x, layout), packed.matrix.most_tokens, _nnz(values, layout)
    base, wide, tokens = packed_form(how), _wide(x, how, nnz, forms), x.numel() // layout.cols
    # No kernel of that form here, or none for so many tokens: the form for any number of them too.
    if form != base and not (most if wide or form in cuda_forms.IN_CALLS else tokens <= most):
        device = x.device.index or 0
        above = max(most, few_tokens(how, nnz, device) if wide else above)
        packed = Packed(layout, values, rest, x.dtype, base, x.device)
        packed.least = above * layout.cols if above else -1
        held.append(packed)
    forms_held[id(values)] = sorted(held, key=lambda p: p.most)
    return packed


def _form_for(
    x: Tensor, values: Tensor, rest: Rest, layout: Layout, beside: Collection[str]
) -> tuple[str, int, int | None]:
    """The form to pack for x beside those, and for which tokens: more than, up to."""
    nnz, device, stored = _nnz(values, layout), x.device.index or 0, _stored(x, values, layout)
    layout = _how(x, layout)
    tokens = 1 if _wide(x, layout, nnz, beside) else x.numel() // layout.cols
    if packed_form(layout) == STORED:
        return STORED, 0, None
    if stored and _stays(x, values, rest, layout, beside):
        most = stored_tokens(layout, nnz, device)
        return STORED, STORED_ABOVE, most
    form, above, up_to = form_and_tokens(layout, nnz, tokens, device, stored=stored, beside=beside)
    if form in cuda_forms.IN_CALLS:  # for what it is chosen once it is there
        return form_and_tokens(layout, nnz, tokens, device, stored=stored, beside=(*beside, form))
    return packed_form(layout) if form == STORED else form, above, up_to


def _stays(x: Tensor, values: Tensor, rest: Rest, layout: Layout, beside: Collection[str]) -> bool:
    """Whether the arrays are multiplied as they are stored, where that is expected to be faster.

    Faster than in a packed form; for a prompt, which has none packed, than written out. ``beside``:
    forms that there are.
    """
    tokens, nnz, device = x.numel() // layout.cols, values.numel(), x.device.index or 0
    if _how(x, layout) is not layout:
        return False
    if _wide(x, layout, nnz, beside):
        pays = STORED_ABOVE < tokens <= stored_tokens(layout, nnz, device)
    else:
        form = form_for(layout, nnz, tokens, device, beside=beside)
        pays = form == STORED
    return (
        pays
        and nnz > 0
        and rest[0] is not None
        and cuda_packed.lie_ready((values, rest[0], rest[1]), x.device)
        and values.data_ptr() % 16 == 0
    )


def _wide(x: Tensor, layout: Layout, nnz: int, beside: Collection[str]) -> bool:
    """Whether x is a prompt, or has more tokens than packed forms take: nothing is packed for it.

    Take in one call, or in as many as are expected to be fastest.
    """
    tokens = x.numel() // layout.cols
    if tokens > cuda_forms.CALLED_TOKENS or (x.dim() > 2 and x.shape[-2] > 1):
        return True
    if tokens <= MAX_TOKENS:
        return False
    form = form_for(layout, nnz, tokens, x.device.index or 0, beside=beside)
    return form not in cuda_forms.IN_CALLS


def _how(x: Tensor, layout: Layout) -> Layout:
    """The layout as which kernels read the weight for this x."""
    return read_as(layout, DTYPE_NAME[x.dtype])


def _stored(x: Tensor, values: Tensor, layout: Layout) -> bool:
    """Whether the arrays that kernels may read as they are lie on the device."""
    return _how(x, layout) is layout and cuda_packed.lies_on(values, x.device)


def _nnz(values: Tensor, layout: Layout) -> int:
    return values.numel() * (2 if layout.dtype == "u4" else 1)


# ---- values that may be trained


def _stays_unpacked(values: Tensor, layout: Layout) -> bool:
    """Whether values that may be trained are not packed now: just written, or a graph is captured.

    Raises:
        TamisError: A graph is captured, which cannot expand a weight of this layout.
    """
    if not packed_form(layout):
        refuse_in_capture(f"weight of {layout.label}")
    if _written_since(values):
        return True
    if not cuda_memory.capturing():
        return False
    warnings.warn(
        "spmm: got a weight that is not packed yet in the capture of a CUDA graph, which expands it in each "
        "replay, slower than a dense weight; call prepack_(model) before, or requires_grad_(False).",
        stacklevel=2,
    )
    return True


_met: dict[int, tuple[weakref.ref[Tensor], int]] = {}


def _written_since(values: Tensor) -> bool:
    """Whether no call before this one met these values as they are."""
    version = versions(values, (None, None, None, None))[0]
    found = _met.get(id(values))
    if found is not None and found[0]() is values and found[1] == version:
        return False
    key = id(values)
    _met[key] = weakref.ref(values, lambda _: _met.pop(key, None)), version
    return True

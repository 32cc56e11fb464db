"""Products on CUDA devices: a weight in the form that a kernel reads, its workspace, the call.

The arrays that a weight is saved as lie on x's device or in host memory; in the latter case the
device holds what is packed and nothing else.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tamis import _C
from tamis.layout import Layout
from tamis.ops import cuda, cuda_cost, cuda_memory, cuda_spmm_grad
from tamis.ops.cuda_cost import calls_pay, few_tokens, form_and_tokens, packed_form, read_as
from tamis.ops.cuda_memory import (
    current_device,
    lasting,
    raw_stream,
    refuse_in_capture,
    workspace,
)
from tamis.ops.dense import unpack_dense
from tamis.ops.handle import make_matrix, pack
from tamis.ops.tensors import DTYPE_NAME, REST, Rest, as_numpy

MAX_TOKENS = cuda_cost.TOKENS[-1]  # of one call of a form for any number of them


class Packed:
    """A weight in one packed form on its device, and what it was made of."""

    __slots__ = (
        "bias",
        "cols",
        "dense",
        "device",
        "dtype",
        "form",
        "layout",
        "least",
        "made",
        "mask",
        "matrix",
        "most",
        "offsets",
        "owner",
        "pointer",
        "records",
        "rest",
        "rows",
        "scales",
        "token",
        "version",
        "workspaces",
    )

    def __init__(
        self,
        layout: Layout,
        values: Tensor,
        rest: Rest,
        dtype: torch.dtype,
        form: str,
        on: torch.device,
    ) -> None:
        how = read_as(layout, DTYPE_NAME[dtype])
        here = all(t is None or (_here(t, on) and t.is_contiguous()) for t in (values, *rest))
        form = _halved(form, values)
        self.device = on.index or 0
        self.made: tuple[Tensor, ...] = ()  # canonical arrays that are not the weight's own
        self.records: Tensor | None = None
        self.offsets: Tensor | None = None
        self.scales: Tensor | None = None
        self.dense: Tensor | None = None  # the same weight, for more tokens
        self.token, self.layout, self.form = layout.token, layout, form
        self.rows, self.cols, self.dtype = layout.rows, layout.cols, dtype
        self.rest = rest
        if form != cuda_cost.STORED:
            self._pack(how, values, on)
        elif how is layout and here and rest[0] is not None:
            if layout.dtype == "f32":  # others are looked at below
                cuda_spmm_grad.check_structure(layout, values, rest[0], rest[1])
            self.matrix = _as_stored(layout, values, rest, dtype)
        else:
            self._store(how, values, on)
        # Elements of x that it takes: more than `least`, up to `most`.
        self.least, self.most = -1, self.matrix.most_tokens * layout.cols
        # Checked now, so that a prompt in a graph need not wait: gap and p24 are written out from
        # the mask, which is a part of weights as they are stored, where it is on the device.
        self.mask: cuda_spmm_grad.Mask | None = None
        if form in cuda_cost.BY_MASK and here:
            self.mask = cuda_spmm_grad.mask_of(layout, values, rest[0], rest[1], dtype)
        self.owner = weakref.ref(values, _forgetter(id(values)))
        self.pointer = values.data_ptr()
        self.version = _versions(values, rest)
        # Bytes of workspace by number of tokens, and the last bias that was found to fit.
        self.workspaces: dict[int, int] = {}
        self.bias: Tensor | None = None

    def _arrays(self, how: Layout, values: Tensor) -> dict[str, Any]:
        """The weight's arrays on the host, in the layout as which kernels read it."""
        layout = self.layout
        refuse_in_capture(f"weight of {layout.label}")
        if how is not layout:
            dense = unpack_dense(values.detach(), layout, *self.rest).to(self.dtype).cpu()
            return pack(how, as_numpy(dense), how.dtype, None)
        tensors = {"values": values, **dict(zip(REST, self.rest, strict=True))}
        return {n: as_numpy(t.cpu()) for n, t in tensors.items() if t is not None}

    def _store(self, how: Layout, values: Tensor, on: torch.device) -> None:
        """Canonical arrays of its own, on the device."""
        arrays = self._arrays(how, values)
        made = lasting(on, lambda: {n: torch.from_numpy(a).to(on) for n, a in arrays.items()})
        self.made = tuple(made.values())
        rest = made.get("mask"), made.get("row_offsets"), None, None
        self.matrix = _as_stored(how, made["values"], rest, self.dtype)

    def _pack(self, how: Layout, values: Tensor, on: torch.device) -> None:
        layout, scales = self.layout, self.rest[3]
        tiles = _C.pack_for_cuda(make_matrix(how, self._arrays(how, values)), self.form)

        def copied() -> tuple[Tensor, Tensor | None, Tensor | None]:
            offsets = tiles.get("offsets")
            return (
                torch.from_numpy(tiles["records"]).to(on),
                None if offsets is None else torch.from_numpy(offsets.view("int32")).to(on),
                scales.to(on) if scales is not None and how.dtype == "i8" else None,
            )

        records, self.offsets, self.scales = lasting(on, copied)
        self.records = records
        self.matrix = _C.CudaMatrix(
            records.data_ptr(),
            records.numel(),
            tiles["max_record_bytes"],
            0 if self.offsets is None else self.offsets.data_ptr(),
            layout.rows,
            layout.cols,
            DTYPE_NAME[self.dtype],
            self.device,
            self.form,
            0 if self.scales is None else self.scales.data_ptr(),
            layout.group_size if how.dtype == "i8" else 0,
        )

    def serves(self, x: Tensor) -> bool:
        """Whether it is for x's dtype and device."""
        return self.dtype == x.dtype and self.device == (x.device.index or 0)

    def fits(self, token: str, values: Tensor, rest: Rest) -> bool:
        """Whether it was made of these tensors as they are now."""
        mine = self.rest
        return (
            self.pointer == values.data_ptr()
            and mine[0] is rest[0]
            and mine[1] is rest[1]
            and mine[2] is rest[2]
            and mine[3] is rest[3]
            and self.version == _versions(values, rest)
            and self.token == token
            and self.owner() is values
        )

    def run(self, x: Tensor, bias: Tensor | None, y: Tensor | None = None) -> Tensor:
        """Product of x [..., cols], as many tokens as the form takes, on the current device and stream.

        ``y``: where it goes, contiguous.
        """
        cols, rows = self.cols, self.rows
        m = x.numel() // cols
        if y is None:
            y = x.new_empty(*x.shape[:-1], rows)
        if m == 0 or rows == 0:
            return y
        stride = cols
        if not x.is_contiguous():
            x = x.reshape(-1, cols)
            if x.stride(1) != 1 or x.stride(0) < cols:
                x = x.contiguous()
            stride = x.stride(0)
        nbytes = self.workspaces.get(m)
        if nbytes is None:
            nbytes = self.workspaces[m] = self.matrix.workspace(m)
        stream = raw_stream(self.device)
        memory = workspace(self.device, stream, nbytes)
        self.matrix.spmm(
            m,
            x.data_ptr(),
            stride,
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            rows,
            memory.pointer,
            memory.nbytes,
            stream,
        )
        return y

    def run_in_calls(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same for more tokens than a call takes, in as few equal calls as can be."""
        y = x.new_empty(*x.shape[:-1], self.rows)
        xs, ys = x.reshape(-1, self.cols), y.view(-1, self.rows)
        each = -(-len(xs) // -(-x.numel() // self.most))
        for first in range(0, len(xs), each):
            self.run(xs[first : first + each], bias, ys[first : first + each])
        return y


def _as_stored(layout: Layout, values: Tensor, rest: Rest, dtype: torch.dtype) -> _C.CudaMatrix:
    """The canonical arrays themselves, which `_stays` looked at."""
    mask, row_offsets = rest[0], rest[1]
    return _C.CudaMatrix(
        values.data_ptr(),
        values.numel() * values.element_size(),
        0,
        0,
        layout.rows,
        layout.cols,
        DTYPE_NAME[dtype],
        values.device.index or 0,
        cuda_cost.STORED,
        mask_ptr=0 if mask is None else mask.data_ptr(),
        row_offsets_ptr=0 if row_offsets is None else row_offsets.data_ptr(),
        row_values=layout.cols // layout.of * layout.keep if layout.format == "nm" else 0,
    )


def unpack(values: Tensor, rest: Rest, layout: Layout) -> Tensor | None:
    """Dense w of 32-bit values where their mask lies on their device; None where no kernel does that."""
    arrays = (values, rest[0], rest[1])
    here = all(t is None or (_here(t, values.device) and t.is_contiguous()) for t in arrays)
    if packed_form(layout) != cuda_cost.STORED or not here or rest[0] is None or cuda.why_off():
        return None
    cuda_spmm_grad.check_structure(layout, values, rest[0], rest[1])
    with torch.cuda.device(values.device):
        dense = values.new_empty(layout.rows, layout.cols)
        stream = raw_stream(values.device.index or 0)
        _as_stored(layout, values, rest, values.dtype).unpack(dense.data_ptr(), layout.cols, stream)
    return dense


def _here(array: Tensor, device: torch.device) -> bool:
    """Whether an array of a weight lies on the device that multiplies it, not in host memory."""
    return array.device == device


def _stays(
    x: Tensor, values: Tensor, rest: Rest, layout: Layout, beside: Collection[str] = ()
) -> bool:
    """Whether the arrays are multiplied as they are: where that is expected to be faster.

    Than in a packed form, or for a prompt, which makes none, than written out. ``beside``: forms that
    there are.
    """
    tokens, nnz, device = x.numel() // layout.cols, values.numel(), x.device.index or 0
    if _how(x, layout) is not layout:
        return False
    if _wide(x, layout, nnz, beside):
        pays = cuda_cost.STORED_ABOVE < tokens <= cuda_cost.stored_tokens(layout, nnz, device)
    else:
        form = cuda_cost.form_for(layout, nnz, tokens, device, beside=beside)
        pays = form == cuda_cost.STORED
    return (
        pays
        and nnz > 0
        and rest[0] is not None
        and all(
            t is None or (_here(t, x.device) and t.is_contiguous())
            for t in (values, rest[0], rest[1])
        )
        and values.data_ptr() % 16 == 0
    )


def _how(x: Tensor, layout: Layout) -> Layout:
    return read_as(layout, DTYPE_NAME[x.dtype])


def _stored(x: Tensor, values: Tensor, layout: Layout) -> bool:
    """Whether the arrays that kernels may read as they are lie on the device."""
    return _how(x, layout) is layout and _here(values, x.device)


# What weights are packed as, by the identity of their values: forms for few tokens first.
_packed: dict[int, list[Packed]] = {}


def direct(x: Tensor, token: str, values: Tensor, rest: Rest, bias: Tensor | None) -> Tensor | None:
    """Product by a kernel where everything was seen before, else None: no operator, no checks.

    The caller knows that nobody records this call. Every line costs each layer of each token.
    """
    elements = x.numel()
    for packed in _packed.get(id(values), ()):
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
        trained = _here(values, x.device) and values.requires_grad
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
            return functional.linear(x, _expand(packed, x, values, layout), bias)
        if bias is not None and bias.is_contiguous():
            packed.bias = bias
        run = packed.run_in_calls if many else packed.run
        return run(x, None if bias is None else bias.contiguous())


def _in_calls(packed: Packed, x: Tensor, values: Tensor, layout: Layout) -> bool:
    """Whether several calls of what is held are expected to take least time."""
    tokens, nnz, how = x.numel() // packed.cols, _nnz(values, layout), _how(x, layout)
    packs, stored = not _wide(x, how, nnz, (packed.form,)), _stored(x, values, layout)
    return calls_pay(how, nnz, packed.form, tokens, packed.device, packs=packs, stored=stored)


def _wide(x: Tensor, layout: Layout, nnz: int, beside: Collection[str] = ()) -> bool:
    """Whether x is a prompt, or more than packed forms take: nothing is packed for it.

    In one call, or in as many as are expected to be fastest.
    """
    tokens = x.numel() // layout.cols
    if tokens > cuda_cost.CALLED_TOKENS or (x.dim() > 2 and x.shape[-2] > 1):
        return True
    if tokens <= MAX_TOKENS:
        return False
    form = cuda_cost.form_for(layout, nnz, tokens, x.device.index or 0, beside=beside)
    return form not in cuda_cost.IN_CALLS


def _nnz(values: Tensor, layout: Layout) -> int:
    return values.numel() * (2 if layout.dtype == "u4" else 1)


def kernel(
    layout: Layout, values: Tensor, nnz: int, tokens: int, device: int, *, stored: bool = True
) -> str:
    """Name of the kernel that a product of so many tokens runs there; empty if none does."""
    how = read_as(layout)
    form = cuda_cost.form_for(how, nnz, tokens, device, stored=stored and how is layout)
    return cuda_cost.kernel(how, _halved(form, values), device)


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
        most = cuda_cost.most_tokens(layout, nnz, packed.device, stored=False)
        if most is None or most < cuda_cost.MANY_TOKENS[-1]:
            with torch.cuda.device(device):
                packed.dense = _expand(packed, x, values, layout)
            if most is not None:
                packed.most = min(packed.most, most * layout.cols)
    return packed_nbytes(values, packed.device)


def forget(values: Tensor) -> None:
    """Frees what a weight was packed as, as it leaves the device."""
    _packed.pop(id(values), None)


def packed_nbytes(values: Tensor, device: int) -> int:
    """Bytes on the device of what a weight was packed as; 0: not yet."""
    found = (p for p in _packed.get(id(values), ()) if p.device == device)
    tensors = (t for p in found for t in (p.records, p.offsets, p.scales, p.dense, *p.made))
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def keeps_dense(values: Tensor, device: torch.device) -> bool:
    """Whether what a weight was packed as lies there densely too."""
    found = (p for p in _packed.get(id(values), ()) if p.device == (device.index or 0))
    return any(p.dense is not None for p in found)


def _halved(form: str, values: Tensor) -> str:
    """The form, of m24i8 the one of half its bytes where every code has 4 bits."""
    narrow = form == "m24i8" and not bool(((values > 7) | (values < -8)).any())
    return "m24i4" if narrow else form


def _held(x: Tensor, values: Tensor, rest: Rest, layout: Layout) -> Packed | None:
    """The packed weight for this x, if there is one."""
    found = [
        packed
        for packed in _packed.get(id(values), ())
        if packed.serves(x) and packed.fits(layout.token, values, rest)
    ]
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
    if packed_form(how) == cuda_cost.STORED:
        return found[0]  # any number of tokens
    wide = _wide(x, how, _nnz(values, layout), forms)
    stored = next((packed for packed in found if packed.form == cuda_cost.STORED), None)
    stays = stored is None and _stays(x, values, rest, layout, forms)
    return (stored or found[0]) if wide and not stays else None


def _pack(x: Tensor, values: Tensor, rest: Rest, layout: Layout) -> Packed:
    """Packs the weight in the form for x."""
    held = [
        packed
        for packed in _packed.pop(id(values), ())
        if packed.serves(x) and packed.fits(layout.token, values, rest)
    ]
    if held:
        _packed[id(values)] = held
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
    if form != base and not (most if wide or form in cuda_cost.IN_CALLS else tokens <= most):
        device = x.device.index or 0
        above = max(most, few_tokens(how, nnz, device) if wide else above)
        packed = Packed(layout, values, rest, x.dtype, base, x.device)
        packed.least = above * layout.cols if above else -1
        held.append(packed)
    _packed[id(values)] = sorted(held, key=lambda p: p.most)
    return packed


def _form_for(
    x: Tensor, values: Tensor, rest: Rest, layout: Layout, beside: Collection[str]
) -> tuple[str, int, int | None]:
    """The form to pack for x beside those, and for which tokens: more than, up to."""
    nnz, device, stored = _nnz(values, layout), x.device.index or 0, _stored(x, values, layout)
    layout = _how(x, layout)
    tokens = 1 if _wide(x, layout, nnz, beside) else x.numel() // layout.cols
    if packed_form(layout) == cuda_cost.STORED:
        return cuda_cost.STORED, 0, None
    if stored and _stays(x, values, rest, layout, beside):
        most = cuda_cost.stored_tokens(layout, nnz, device)
        return cuda_cost.STORED, cuda_cost.STORED_ABOVE, most
    form, above, up_to = form_and_tokens(layout, nnz, tokens, device, stored=stored, beside=beside)
    if form in cuda_cost.IN_CALLS:  # for what it is chosen once it is there
        return form_and_tokens(layout, nnz, tokens, device, stored=stored, beside=(*beside, form))
    return packed_form(layout) if form == cuda_cost.STORED else form, above, up_to


def reads_in_place(x_dtype: torch.dtype, layout: Layout) -> bool:
    """Whether kernels read all such weights as they are stored, whatever was written to them."""
    return x_dtype == torch.float32 and packed_form(layout) == cuda_cost.STORED


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
    version = _versions(values, (None, None, None, None))[0]
    found = _met.get(id(values))
    if found is not None and found[0]() is values and found[1] == version:
        return False
    key = id(values)
    _met[key] = weakref.ref(values, lambda _: _met.pop(key, None)), version
    return True


def takes(x_dtype: torch.dtype, layout: Layout) -> bool:
    """Whether a kernel takes such operands, were they on a device; not yet whether it is fast."""
    return x_dtype in DTYPE_NAME and layout.cols > 0 and not cuda.why_off()


def _expand(packed: Packed, x: Tensor, values: Tensor, layout: Layout) -> Tensor:
    if packed.dense is not None:
        return packed.dense
    if packed.mask is not None:
        return cuda_spmm_grad.unpack(packed.mask, values)
    dense = x.new_empty(layout.rows, layout.cols)
    packed.matrix.unpack(dense.data_ptr(), layout.cols, raw_stream(packed.device))
    return dense


def _versions(values: Tensor, rest: Rest) -> tuple[int, ...]:
    """Counts of writes; -1 for inference tensors, which nobody counts."""
    try:
        return (values._version, *[t._version for t in rest if t is not None])
    except RuntimeError:
        given = [values, *(t for t in rest if t is not None)]
        return tuple(-1 if t.is_inference() else t._version for t in given)


def _forgetter(key: int) -> Any:
    def forget(owner: Any) -> None:
        held = [packed for packed in _packed.get(key, ()) if packed.owner is not owner]
        if held:
            _packed[key] = held
        else:
            _packed.pop(key, None)

    return forget

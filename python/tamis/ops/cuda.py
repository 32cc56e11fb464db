"""Products with weights on CUDA devices: the packed copy of a weight, its workspace, the call.

The CUDA library lies beside ``_C`` and is opened on first use; without it, without a driver or with
``TAMIS_CUDA=0`` nothing here fails, and the operators expand the weight with plain torch.
"""

from __future__ import annotations

import os
import weakref
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis import _C

if TYPE_CHECKING:
    from torch import Tensor

    from tamis.layout import Layout
    from tamis.ops.tensors import Rest

MAX_TOKENS = 64


@cache
def why_off() -> str:
    """Why no CUDA kernel runs in this process; empty if they do."""
    if os.environ.get("TAMIS_CUDA") == "0":
        return "TAMIS_CUDA=0"
    path = Path(_C.__file__).parent / "libtamis_cuda.so"
    if not path.exists():
        return "this build has no CUDA library"
    return _C.cuda_load(str(path))


def status() -> str:
    """One phrase for ``tamis.info()``."""
    reason = why_off()
    if reason:
        return f"off, {reason}"
    names = [f"{d['name']} (sm{d['capability']})" for d in _C.cuda_devices()]
    return f"on, {', '.join(names)}"


def kernel_rows() -> list[Any]:
    """Rows for ``tamis.kernels()``; ``runs_here`` is the first device's choice."""
    return [] if why_off() else list(_C.cuda_kernels(_C.cuda_devices()[0]["capability"]))


class Packed:
    """A weight's tiles on its device, and what they were made of."""

    __slots__ = ("matrix", "offsets", "owner", "records", "rest", "token", "version")

    def __init__(self, token: str, layout: Layout, values: Tensor, rest: Rest) -> None:
        import torch

        from tamis.ops.handle import make_matrix
        from tamis.ops.tensors import REST, as_numpy

        tensors = {"values": values, **dict(zip(REST, rest, strict=True))}
        arrays = {n: as_numpy(t.cpu()) for n, t in tensors.items() if t is not None}
        tiles = _C.pack_t16(make_matrix(layout, arrays))
        self.records = torch.from_numpy(tiles["records"]).to(values.device)
        self.offsets = torch.from_numpy(tiles["offsets"].view("int32")).to(values.device)
        self.matrix = _C.CudaMatrix(
            self.records.data_ptr(),
            self.records.numel(),
            tiles["max_record_bytes"],
            self.offsets.data_ptr(),
            layout.rows,
            layout.cols,
            layout.dtype,
            values.device.index or 0,
        )
        self.token, self.rest, self.version = token, rest, _versions(values, rest)
        self.owner = weakref.ref(values, _forgetter(id(values)))

    def fits(self, token: str, values: Tensor, rest: Rest) -> bool:
        """Whether it was made of these tensors as they are now."""
        return (
            self.token == token
            and self.owner() is values
            and all(mine is theirs for mine, theirs in zip(self.rest, rest, strict=True))
            and self.version == _versions(values, rest)
        )


_packed: dict[int, Packed] = {}
_workspaces: dict[tuple[int, int], Tensor] = {}


def spmm(
    x: Tensor, values: Tensor, rest: Rest, bias: Tensor | None, layout: Layout
) -> Tensor | None:
    """Product y [..., rows] by a CUDA kernel, or None where none takes these operands.

    Takes bitmap and nm weights in f16 or bf16 with x of that dtype and any number of tokens; above
    64 the weight is expanded on the device and multiplied densely. The first call packs the weight,
    through the host, and so do the calls after its values were written: not while they train.
    """
    from torch.nn import functional

    if not _takes(x, values, layout) or (values.requires_grad and _is_recording()):
        return None
    packed = _packed.get(id(values))
    if packed is None or not packed.fits(layout.token, values, rest):
        packed = _packed[id(values)] = Packed(layout.token, layout, values, rest)
    if not packed.matrix.kernel:
        return None
    tokens = x.reshape(-1, layout.cols)
    if len(tokens) > MAX_TOKENS:
        return functional.linear(x, _expand(packed, values, layout), bias)
    y = x.new_empty((*x.shape[:-1], layout.rows))
    if y.numel():
        _run(packed, tokens, bias, y, layout)
    return y


def _takes(x: Tensor, values: Tensor, layout: Layout) -> bool:
    return (
        layout.format in ("bitmap", "nm")
        and layout.dtype in ("f16", "bf16")
        and x.dtype == values.dtype
        and not why_off()
    )


def _is_recording() -> bool:
    import torch

    return torch.is_grad_enabled()


def _run(packed: Packed, tokens: Tensor, bias: Tensor | None, y: Tensor, layout: Layout) -> None:
    import torch

    if tokens.stride(1) != 1 or tokens.stride(0) < layout.cols:
        tokens = tokens.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    m = len(tokens)
    with torch.cuda.device(tokens.device):
        stream = torch.cuda.current_stream().cuda_stream
        workspace = _workspace(tokens.device, stream, packed.matrix.workspace(m))
        packed.matrix.spmm(
            m,
            tokens.data_ptr(),
            tokens.stride(0),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            layout.rows,
            workspace.data_ptr(),
            workspace.numel(),
            stream,
        )


def _expand(packed: Packed, values: Tensor, layout: Layout) -> Tensor:
    import torch

    dense = values.new_empty((layout.rows, layout.cols))
    with torch.cuda.device(values.device):
        stream = torch.cuda.current_stream().cuda_stream
        packed.matrix.unpack(dense.data_ptr(), layout.cols, stream)
    return dense


def _workspace(device: Any, stream: int, nbytes: int) -> Tensor:
    """Zeros that calls on one stream take turns with; it grows, and then no call allocates."""
    import torch

    found = _workspaces.get((device.index, stream))
    if found is None or found.numel() < nbytes:
        found = torch.zeros(max(nbytes, 1 << 20), dtype=torch.uint8, device=device)
        _workspaces[device.index, stream] = found
    return found


def _versions(values: Tensor, rest: Rest) -> tuple[int, ...]:
    """Counts of writes; those of inference tensors, which nobody counts, as -1."""
    given = [values, *(t for t in rest if t is not None)]
    return tuple(-1 if t.is_inference() else t._version for t in given)


def _forgetter(key: int) -> Any:
    def forget(owner: Any) -> None:
        found = _packed.get(key)
        if found is not None and found.owner is owner:
            del _packed[key]

    return forget

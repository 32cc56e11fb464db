"""The KV cache's operators on CUDA devices: the same calls over memory of the device.

No call waits for the device or reads from it, so all of them can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisUnsupported
from tamis.ops import cuda
from tamis.ops.cuda_memory import raw_stream, with_workspace, workspace
from tamis.ops.handle import core_errors

FEW = 1 << 14  # queries of all heads of a prompt that takes no ticket in a graph: a block each tile
TICKET = 4  # bytes


def on_device(function: str, x: Tensor) -> bool:
    """Whether the CUDA library takes over.

    Raises:
        TamisUnsupported: x lies on a CUDA device and the library is off.
    """
    if not x.is_cuda:
        return False
    if reason := cuda.why_off():
        raise TamisUnsupported(
            f"{function}: got a tensor on {x.device}, but CUDA is off: {reason}; move it to the CPU."
        )
    return True


def kv_quantize(
    layout: _C.KvPageLayout,
    code: int,
    head: tuple[int, int],
    keys: Tensor,
    values: Tensor,
    out: Tensor,
) -> None:
    """Records of one batch; head: heads and pages; keys, values [g, tokens, d], out [g, pages, n]."""
    device = _place(keys)
    with torch.cuda.device(device), core_errors():
        _C.cuda_kv_quantize(
            device,
            raw_stream(device),
            layout,
            code,
            *head,
            keys.data_ptr(),
            (keys.stride(0), keys.stride(1)),
            values.data_ptr(),
            (values.stride(0), values.stride(1)),
            out.data_ptr(),
            out.stride(0),
        )


def sparse_attention(
    what: tuple[int, tuple[int, int, int, int]],
    rows: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    softcap: float,
    parts: Sequence[_C.KvSegment],
) -> None:
    """Launches one kernel a segment; what: dtype and shape. As the core's ``sparse_attention``."""
    device = _place(rows)
    given = list(parts)

    def run(stream: int, pointer: int, nbytes: int) -> int:
        return _C.cuda_sparse_attention(
            device,
            stream,
            *what,
            rows.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            scale,
            softcap,
            given,
            pointer,
            nbytes,
        )

    with_workspace(device, run)


def prefill_attention(q: Tensor, *rest: Any) -> None:
    """Attention of a prompt; rest: everything of the core's ``prefill_attention``.

    Listed keys and values are packed in memory of this call, as much as they take, which grows with
    the prompt: too much to be held like other workspaces.
    """
    device = _place(q)
    listed = rest[-1][0] != 0
    with torch.cuda.device(device), core_errors():
        size = _C.cuda_prefill_workspace(device, *rest) if listed else 0
        memory = torch.empty(size, dtype=torch.uint8, device=q.device) if size else None
        pointer = 0 if memory is None else memory.data_ptr()
        stream = raw_stream(device)
        few = q.shape[0] * q.shape[1] * q.shape[2] <= FEW
        ticket = workspace(device, stream, 0 if few else TICKET).pointer
        arguments = (*rest, pointer, ticket)
        _C.cuda_prefill_attention(device, stream, *arguments)


def kv_estimate(
    what: tuple[int, tuple[int, int, int, int]],
    rows: Tensor,
    scale: float,
    units: _C.KvUnits,
    log_weight: bool,
    begin: int,
    out: Tensor,
) -> None:
    """Scores of units; what: dtype and shape of q. As the core's ``kv_estimate``."""
    device = _place(rows)

    def run(stream: int, pointer: int, nbytes: int) -> int:
        return _C.cuda_kv_estimate(
            device,
            stream,
            *what,
            rows.data_ptr(),
            scale,
            units,
            log_weight,
            begin,
            out.data_ptr(),
            pointer,
            nbytes,
        )

    with_workspace(device, run)


def kv_mass(
    what: tuple[int, tuple[int, int, int, int, int]],
    rows: Tensor,
    scale: float,
    keys: _C.KvUnits,
    positions: int,
    begin: int,
    out: int,
) -> None:
    """Adds up attention; what: dtype and shape of q. As the core's ``kv_mass``."""
    device = _place(rows)

    def run(stream: int, pointer: int, nbytes: int) -> int:
        return _C.cuda_kv_mass(
            device,
            stream,
            *what,
            rows.data_ptr(),
            scale,
            keys,
            positions,
            begin,
            out,
            pointer,
            nbytes,
        )

    with_workspace(device, run)


def kv_rebuild(
    shape: tuple[int, int, int], segment: _C.KvSegment, keys: Tensor, values: Tensor
) -> None:
    """Listed tokens of a low-rank segment to dense keys and values; shape: b, g, d."""
    device = _place(keys)
    with torch.cuda.device(device), core_errors():
        _C.cuda_kv_rebuild(
            device, raw_stream(device), shape, segment, keys.data_ptr(), values.data_ptr()
        )


def kv_gather(x: Tensor, *rest: Any) -> None:
    """Rows of x that stay; rest: everything of the core's ``kv_gather``."""
    device = _place(x)
    with torch.cuda.device(device), core_errors():
        _C.cuda_kv_gather(device, raw_stream(device), *rest)


def kv_merge(keys: Tensor, *rest: Any) -> None:
    """Means of tokens that stay and of those that join them; rest as of the core's ``kv_merge``."""
    device = _place(keys)

    def run(stream: int, pointer: int, nbytes: int) -> int:
        return _C.cuda_kv_merge(device, stream, *(*rest, pointer, nbytes))

    with_workspace(device, run)


def kv_select(scores: Tensor, *rest: Any) -> None:
    """Lists of the best units; rest as the core's ``kv_select`` has it after the scores."""
    device = _place(scores)
    heads, units = scores.shape[0] * scores.shape[1], scores.shape[2]
    with torch.cuda.device(device), core_errors():
        _C.cuda_kv_select(device, raw_stream(device), heads, units, scores.data_ptr(), *rest)


def kv_choose(
    what: tuple[int, tuple[int, int, int, int]], rows: Tensor, scale: float, *rest: Any
) -> bool:
    """Lists of the tokens of the best units; False, and nothing done, where no kernel takes all.

    rest as the core's ``cuda_kv_choose`` has it after scale, but for the workspace.
    """
    device = _place(rows)

    def run(stream: int, pointer: int, nbytes: int) -> int:
        return _C.cuda_kv_choose(
            device, stream, *what, rows.data_ptr(), scale, *(*rest, pointer, nbytes)
        )

    return with_workspace(device, run) == 0


def chosen_attention(what: tuple[int, tuple[int, int, int, int]], rows: Tensor, *rest: Any) -> bool:
    """``kv_choose`` and attention in one launch; False, and nothing done, where no kernel takes all.

    rest: as the core's ``cuda_chosen_attention`` has it after q.
    """
    device = _place(rows)
    with torch.cuda.device(device), core_errors():
        return bool(
            _C.cuda_chosen_attention(device, raw_stream(device), *what, rows.data_ptr(), *rest)
        )


def kv_fetch(index: Tensor, *rest: Any) -> None:
    """What a pool lacks comes into it; rest: everything of the core's ``kv_fetch``."""
    device = _place(index)
    with torch.cuda.device(device), core_errors():
        _C.cuda_kv_fetch(device, raw_stream(device), *rest)


def append_labels(keys: Tensor, channels: int, code: int, *rest: Any) -> None:
    """Labels of new tokens; rest as the core's ``kv_append_labels`` has it after the dtype."""
    device = _place(keys)
    with torch.cuda.device(device), core_errors():
        _C.cuda_kv_append_labels(device, raw_stream(device), channels, code, *rest)


def _place(x: Tensor) -> int:
    return x.device.index or 0

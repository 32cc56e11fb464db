"""Memory that calls on one CUDA stream take turns with, and torch's streams as the core takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tamis.ops.handle import core_errors

# What torch.cuda.current_device and current_stream call in the end, at a tenth of their time; builds
# of torch without CUDA lack them, and nothing here calls them there.
current_device: Any = getattr(torch._C, "_cuda_getDevice", None)
raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)

LEAST = 1 << 20


class Workspace:
    """Zeros that calls on one stream take turns with; each leaves its tickets zero again.

    ``before`` is the smaller one that it takes the place of: graphs captured over that still use it.
    """

    __slots__ = ("before", "nbytes", "pointer", "tensor")

    def __init__(self, nbytes: int, device: int, before: Workspace | None = None) -> None:
        self.before = before
        self.tensor = torch.zeros(nbytes, dtype=torch.uint8, device=_device(device))
        self.pointer, self.nbytes = self.tensor.data_ptr(), nbytes


def _device(index: int) -> torch.device:
    return torch.device("cuda", index)


workspaces: dict[tuple[int, int], Workspace] = {}
_spare: dict[int, Workspace] = {}  # of a device, for a stream whose first call is captured


def workspace(device: int, stream: int, nbytes: int) -> Workspace:
    """The workspace of a stream, made anew where it is smaller than that: then no call allocates.

    A graph zeroes what is made while it is captured, but at its own replays alone. So a capture takes
    the device's spare one, where a call outside of graphs has left one that is large enough.
    """
    found = workspaces.get((device, stream))
    if found is not None and found.nbytes >= nbytes:
        return found
    twice = 2 * found.nbytes if found else LEAST  # so that all before are less than this one
    nbytes = max(nbytes, twice)
    capturing = torch.cuda.is_current_stream_capturing()
    spare = _spare.get(device)
    if capturing and spare and spare.nbytes >= nbytes:
        made = _spare.pop(device)
        made.before = found
    else:
        made = Workspace(nbytes, device, found)
    if not capturing and (spare is None or spare.nbytes < nbytes):
        _spare[device] = Workspace(nbytes, device)
    workspaces[device, stream] = made
    return made


_tickets: dict[tuple[int, int], Tensor] = {}


def tickets(device: int, stream: int, long: bool) -> Tensor | None:
    """A zero that calls on a stream draw from and leave zero, for calls that can do without.

    A graph gets its own with each ``long`` call, zeroed at every replay, and the others none: it may
    run beside what its stream does, and two calls that draw from one ticket at once leave it wrong.
    """
    if torch.cuda.is_current_stream_capturing():
        return _ticket(device) if long else None
    found = _tickets.get((device, stream))
    if found is None:
        found = _tickets[device, stream] = _ticket(device)
    return found


def _ticket(device: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=_device(device))


def with_workspace(device: int, run: Callable[[int, int, int], int]) -> int:
    """Calls run(stream, pointer, nbytes) until it wants no larger workspace, and says what it did."""
    with torch.cuda.device(device), core_errors():
        stream = raw_stream(device)
        memory = workspace(device, stream, 0)
        said = run(stream, memory.pointer, memory.nbytes)
        if said > 0:
            memory = workspace(device, stream, said)
            said = run(stream, memory.pointer, memory.nbytes)
        return said

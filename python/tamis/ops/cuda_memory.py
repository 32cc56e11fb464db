"""Memory that calls on one CUDA stream take turns with, and torch's streams as the core takes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tamis import _C
from tamis.errors import TamisError
from tamis.ops.handle import core_errors

# What torch.cuda.current_device, current_stream and is_current_stream_capturing call in the end, at a
# tenth of their time; builds of torch without CUDA lack them, and nothing here calls them there.
current_device: Any = getattr(torch._C, "_cuda_getDevice", None)
raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)
capturing: Any = getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)

LEAST = 1 << 20
T = TypeVar("T")


class Workspace(NamedTuple):
    """Tickets at zero and memory behind them, which calls on one stream take turns with.

    Each call leaves the tickets zero again. A capture has its own on each of its streams, which belongs
    to the graphs that come of it, so those can be replayed beside each other and beside other calls.
    """

    pointer: int
    nbytes: int
    tensor: Tensor | None = None  # None: of a graph


def _device(index: int) -> torch.device:
    return torch.device("cuda", index)


NOTHING = Workspace(0, 0)
workspaces: dict[tuple[int, int], Workspace] = {}  # for calls that no graph captures


def workspace(device: int, stream: int, nbytes: int) -> Workspace:
    """The workspace of the current stream, made anew where it is smaller: then no call allocates.

    A graph with one takes 1 to 1.5 us longer to launch, however many calls it has, as the driver must
    know when its replays are over (bench/results/gpu.md); so it has none until a call asks for bytes.
    """
    if capturing():
        if nbytes == 0:
            return NOTHING
        return Workspace(*_C.cuda_graph_workspace(device, stream, max(nbytes, LEAST)))
    found = workspaces.get((device, stream))
    if found is not None and found.nbytes >= nbytes:
        return found
    size = max(nbytes, 2 * found.nbytes if found else LEAST)
    on = _device(device)
    zeros = lasting(on, lambda: torch.zeros(size, dtype=torch.uint8, device=on))
    made = workspaces[device, stream] = Workspace(zeros.data_ptr(), size, zeros)
    return made


def refuse_in_capture(what: str) -> None:
    """Refuses, while a graph is captured, what goes through the host: it would end the capture.

    Raises:
        TamisError: The current stream is captured.
    """
    if capturing():
        raise TamisError(
            f"spmm: got a {what} that was not used before in the capture of a CUDA graph, wanted one that "
            "is ready; call prepack_(model), or the layer twice with as many tokens, before capturing."
        )


def lasting(device: torch.device, make: Callable[[], T]) -> T:
    """What ``make`` returns: memory that outlives the call, made on the current stream by another thread.

    While torch.compile warms up or records its CUDA graphs (``mode="reduce-overhead"``, and generate
    with a static cache) it lends the calling thread a pool of memory, and later sets that back to
    what its graphs know of: whatever else was made there is overwritten. Another thread gets none of it.
    """
    if device.type != "cuda":
        return make()
    stream = torch.cuda.current_stream(device)
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                made.append(make())
        except BaseException as err:  # raised where it was asked for
            failed.append(err)

    thread = threading.Thread(target=run, name="tamis-memory")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


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

"""HostRows: rows in host memory that a CUDA device reads and writes over the bus."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import torch
from torch import Tensor

from tamis.errors import TamisError
from tamis.kv.rows import Rows


class HostRows(Rows):
    """Rows whose buffer is a tensor of a CUDA device over registered host memory.

    Kernels take it like any other; what they read of it comes over the bus.
    """

    __slots__ = ()

    def __init__(self, x: Tensor) -> None:
        self.buffer, self.count, self._view = x.narrow(2, 0, 0), 0, None
        self._become(x)

    def _memory(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return reached(like, shape)

    def _become(self, x: Tensor) -> None:
        made = self._memory(x, tuple(x.shape))
        made.copy_(x)
        self.buffer, self.count, self._view = made, x.shape[2], None

    def clone(self) -> HostRows:
        """An independent copy, in host memory too."""
        return HostRows(self.view)

    def __deepcopy__(self, memo: dict[int, object]) -> HostRows:
        return self.clone()


def reached(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor on the CUDA device of ``like``, of its dtype, whose memory is the host's.

    Raises:
        TamisError: The system or the driver gives no such memory.
    """
    nbytes = math.prod(shape) * like.element_size()
    if nbytes == 0:
        return like.new_empty(shape)
    with torch.cuda.device(like.device):
        held: Tensor = torch.as_tensor(_Registered(nbytes), device=like.device)
    return held.view(like.dtype).view(shape)


class _Registered:
    """Memory of the system that devices reach, until the last tensor over it is gone."""

    def __init__(self, nbytes: int) -> None:
        self.address = 0
        try:
            self.memory = mmap.mmap(-1, nbytes)
        except OSError as error:
            raise _too_little(nbytes, str(error.strerror)) from error
        address = torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()
        result = _cudart().cudaHostRegister(address, nbytes, 0)
        if int(result) != 0:
            raise _too_little(nbytes, str(_cudart().cudaGetErrorString(result)))
        self.address = address
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }

    def __del__(self) -> None:
        if self.address:
            with contextlib.suppress(Exception):  # when the process ends, the driver may be gone
                torch.cuda.synchronize()  # a kernel may still read
                _cudart().cudaHostUnregister(self.address)


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _too_little(nbytes: int, why: str) -> TamisError:
    return TamisError(
        f"kv.Tiers: host memory: got none ({why}), wanted {nbytes} bytes that the device reaches; "
        "free some, or name a folder for a file."
    )

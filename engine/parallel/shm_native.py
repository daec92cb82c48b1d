"""Communicator over shared memory, driven by the compiled library."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from engine.kernels.native_build import Functions, declared
from engine.parallel.shm_layout import RING_BYTES, SLOT_BYTES, GroupRegion, Segment
from engine.parallel.shm_waiting import Failure, GroupTrouble, spins_for

# The order of kSums in shm_collectives.cpp.
DTYPE_CODES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.int32: 4,
    torch.int64: 5,
}


def load_library(path: Path | str) -> ctypes.CDLL:
    """Load the library and declare its functions."""
    pointer, u64, i32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
    functions: Functions = {
        "gs_open": (pointer, [pointer, *[u64] * 6, *[i32] * 3]),
        "gs_close": (None, [pointer]),
        "gs_all_reduce": (i32, [pointer, pointer, u64, i32]),
        "gs_all_gather": (i32, [pointer, pointer, pointer, u64]),
        "gs_all_to_all": (i32, [pointer, pointer, pointer, u64]),
        "gs_barrier": (i32, [pointer]),
        "gs_send": (i32, [pointer, pointer, u64, i32]),
        "gs_recv": (i32, [pointer, pointer, u64, i32]),
    }
    return declared(ctypes.CDLL(str(path)), functions)


class NativeShmCommunicator:
    """One member's end of a group; see ``engine.parallel.communicator.Communicator``."""

    def __init__(
        self,
        *,
        library: ctypes.CDLL,
        segment: Segment,
        region: GroupRegion,
        global_rank: int,
        num_ranks: int,
        timeout_s: float,
    ) -> None:
        self._segment = segment
        self._trouble = GroupTrouble(region.spec, segment, timeout_s)
        self._library = library
        self._size = region.spec.size
        self._rank = region.spec.members.index(global_rank)
        # Keeps the mapping alive, and is how its address is learnt.
        self._anchor = ctypes.c_char.from_buffer(segment.memory)
        self._handle = library.gs_open(
            ctypes.addressof(self._anchor),
            region.counters,
            region.slots,
            region.rings,
            SLOT_BYTES,
            RING_BYTES,
            int(timeout_s * 1e9),
            self._size,
            self._rank,
            spins_for(num_ranks),
        )

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.gs_close(handle)

    @property
    def size(self) -> int:
        return self._size

    @property
    def rank(self) -> int:
        return self._rank

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        status = self._library.gs_all_reduce(
            self._handle, x.data_ptr(), x.numel(), DTYPE_CODES[x.dtype]
        )
        if status:
            self.fail(status)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty((self._size, *x.shape), dtype=x.dtype)
        if status := self._library.gs_all_gather(
            self._handle, x.data_ptr(), out.data_ptr(), x.nbytes
        ):
            self.fail(status)
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        if status := self._library.gs_all_to_all(
            self._handle, x.data_ptr(), out.data_ptr(), x.nbytes // self._size
        ):
            self.fail(status)
        return out

    def send(self, x: Tensor, dst: int) -> None:
        x = x.contiguous()
        if status := self._library.gs_send(self._handle, x.data_ptr(), x.nbytes, dst):
            self.fail(status)

    def recv(self, like: Tensor, src: int) -> Tensor:
        out = torch.empty(like.shape, dtype=like.dtype)
        if status := self._library.gs_recv(self._handle, out.data_ptr(), out.nbytes, src):
            self.fail(status)
        return out

    def barrier(self) -> None:
        if status := self._library.gs_barrier(self._handle):
            self.fail(status)

    @property
    def handle(self) -> int:
        """This end of the group, for compiled code that calls the library itself."""
        handle: int = self._handle
        return handle

    @property
    def sum_address(self) -> int | None:
        """Where the library's ``gs_all_reduce`` is."""
        return ctypes.cast(self._library.gs_all_reduce, ctypes.c_void_p).value

    def fail(self, status: int) -> None:
        """Raise what a call of the library that returned ``status`` says."""
        raise self._trouble.error(Failure(status & 0xFF), status >> 8)

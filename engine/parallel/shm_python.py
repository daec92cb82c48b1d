"""Communicator over shared memory in plain Python, for hosts without a C++ compiler.

The same memory layout and the same results to the bit as ``shm_collectives.cpp``. It needs a
processor that keeps the order of stores (``shm_build.can_use_python_version``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.parallel.shm_layout import (
    LINE_BYTES,
    RING_BYTES,
    RING_STRIDE,
    SLOT_BYTES,
    GroupRegion,
    Segment,
)
from engine.parallel.shm_waiting import Failure, GroupTrouble, spins_for

Bytes = npt.NDArray[np.uint8]

YIELD_S = 300e-6
SLEEP_S = 50e-6
SPIN_SHARE = 4  # one poll from Python takes about as long as this many from C++
MESSAGE_HEADER_BYTES = 16
ALL_REDUCE, ALL_GATHER, ALL_TO_ALL, BARRIER = (op << 56 for op in (1, 2, 3, 4))


class PythonShmCommunicator:
    """One member's end of a group; see ``engine.parallel.communicator.Communicator``."""

    def __init__(
        self,
        *,
        segment: Segment,
        region: GroupRegion,
        global_rank: int,
        num_ranks: int,
        timeout_s: float,
    ) -> None:
        spec = region.spec
        self._trouble = GroupTrouble(spec, segment, timeout_s)
        self._size = spec.size
        self._rank = spec.members.index(global_rank)
        self._timeout_s = timeout_s
        self._spins = max(1, spins_for(num_ranks) // SPIN_SHARE)
        self._sequence = 0
        self._region = region
        self._memory: Bytes = np.frombuffer(segment.memory, dtype=np.uint8)
        self._mapped = memoryview(segment.memory)
        self._abort = self._mapped[:8].cast("Q")
        self._lines = [
            self._mapped[start : start + LINE_BYTES].cast("Q")
            for start in range(
                region.counters, region.counters + spec.size * LINE_BYTES, LINE_BYTES
            )
        ]
        self._slots = [
            [self._slot(parity, member) for member in range(spec.size)] for parity in (0, 1)
        ]
        self._views: dict[Any, list[list[npt.NDArray[Any]]]] = {}
        self._peers = [member for member in range(spec.size) if member != self._rank]

    @property
    def size(self) -> int:
        return self._size

    @property
    def rank(self) -> int:
        return self._rank

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        items, add = _summed(x)
        slots = self._typed_slots(items.dtype)
        tag = ALL_REDUCE | items.nbytes
        most = SLOT_BYTES // items.itemsize
        for start in range(0, max(1, len(items)), most):
            part = items[start : start + most]
            buffers = self._next(slots)
            count = len(part)
            buffers[self._rank][:count] = part
            self._meet(tag)
            with np.errstate(all="ignore"):  # infinities are data here, as in C++
                add([buffer[:count] for buffer in buffers], part)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        out = torch.empty((self._size, *x.shape), dtype=x.dtype)
        mine = _as_bytes(x.contiguous())
        everyone = _as_bytes(out).reshape(self._size, mine.size)
        most = SLOT_BYTES
        for start in range(0, max(1, len(mine)), most):
            part = mine[start : start + most]
            buffers = self._next(self._slots)
            buffers[self._rank][: len(part)] = part
            self._meet(ALL_GATHER | len(mine))
            for member, buffer in enumerate(buffers):
                everyone[member, start : start + len(part)] = buffer[: len(part)]
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        block_bytes = x.nbytes // self._size
        source = _as_bytes(x).reshape(self._size, block_bytes)
        target = _as_bytes(out).reshape(self._size, block_bytes)
        most = SLOT_BYTES // self._size // LINE_BYTES * LINE_BYTES
        for start in range(0, max(1, block_bytes), most):
            here = slice(start, start + most)
            length = source[0, here].size
            buffers = self._next(self._slots)
            for member in self._peers:
                place = member * most
                buffers[self._rank][place : place + length] = source[member, here]
            target[self._rank, here] = source[self._rank, here]
            self._meet(ALL_TO_ALL | block_bytes)
            place = self._rank * most
            for member in self._peers:
                target[member, here] = buffers[member][place : place + length]
        return out

    def barrier(self) -> None:
        self._sequence += 1
        self._meet(BARRIER)

    def send(self, x: Tensor, dst: int) -> None:
        ring = self.ring(self._rank, dst)
        data = _as_bytes(x.contiguous())
        header = np.array([data.nbytes, 0], dtype=np.uint64)
        ring.push(header.view(np.uint8))
        ring.push(data)

    def recv(self, like: Tensor, src: int) -> Tensor:
        out = torch.empty(like.shape, dtype=like.dtype)
        ring = self.ring(src, self._rank)
        header = np.empty(MESSAGE_HEADER_BYTES, dtype=np.uint8)
        ring.pull(header)
        if header.view(np.uint64)[0] != out.nbytes:
            raise self._trouble.error(Failure.MISMATCH, src)
        ring.pull(_as_bytes(out))
        return out

    def _slot(self, parity: int, member: int) -> Bytes:
        start = self._region.slots + (2 * member + parity) * SLOT_BYTES
        return self._memory[start : start + SLOT_BYTES]

    def _typed_slots(self, dtype: np.dtype[Any]) -> list[list[npt.NDArray[Any]]]:
        """The slots seen as ``dtype``, by parity and member."""
        if dtype not in self._views:
            self._views[dtype] = [[slot.view(dtype) for slot in pair] for pair in self._slots]
        return self._views[dtype]

    def _next(self, slots: list[list[npt.NDArray[Any]]]) -> list[npt.NDArray[Any]]:
        """Begin a sequence: every member's slot for it."""
        self._sequence += 1
        return slots[self._sequence & 1]

    def _meet(self, tag: int) -> None:
        """Publish my slot of this sequence and wait until every member has published its own."""
        sequence, which = self._sequence, 1 + (self._sequence & 1)
        line = self._lines[self._rank]
        line[which] = tag
        line[0] = sequence
        for member in self._peers:
            line = self._lines[member]
            if line[0] < sequence:
                self.wait_for(line, sequence, member)
            if line[which] != tag:
                raise self._trouble.error(Failure.MISMATCH, member)

    def wait_for(self, words: memoryview, target: int, peer: int) -> None:
        """Until ``words[0] >= target``: spin, then yield, then sleep."""
        for _ in range(self._spins):
            if words[0] >= target:
                return
        start = time.monotonic()
        while words[0] < target:
            if self._abort[0]:
                raise self._trouble.error(Failure.ABORTED, self._abort[0])
            waited_s = time.monotonic() - start
            if waited_s > self._timeout_s:
                raise self._trouble.error(Failure.TIMEOUT, peer)
            if waited_s < YIELD_S:
                os.sched_yield()
            else:
                time.sleep(SLEEP_S)

    def ring(self, source: int, target: int) -> _Ring:
        """My end of the ring from member ``source`` to ``target``."""
        region = self._region
        start = region.rings + (source * self._size + target) * RING_STRIDE
        data = start + 2 * LINE_BYTES
        return _Ring(
            group=self,
            peer=target if source == self._rank else source,
            written=self._mapped[start : start + 8].cast("Q"),
            read=self._mapped[start + LINE_BYTES : start + LINE_BYTES + 8].cast("Q"),
            data=self._memory[data : data + RING_BYTES],
        )


class _Ring:
    """Bytes from one member to another, in order."""

    def __init__(
        self,
        *,
        group: PythonShmCommunicator,
        peer: int,
        written: memoryview,
        read: memoryview,
        data: Bytes,
    ) -> None:
        self._group = group
        self._peer = peer
        self._written = written
        self._read = read
        self._data = data

    def push(self, data: Bytes) -> None:
        at, capacity = self._written[0], len(self._data)
        while len(data):
            self._group.wait_for(self._read, max(0, at + 1 - capacity), self._peer)
            room = capacity - (at - self._read[0])
            place = at % capacity
            length = min(len(data), room, capacity - place)
            self._data[place : place + length] = data[:length]
            at += length
            self._written[0] = at
            data = data[length:]

    def pull(self, out: Bytes) -> None:
        at, capacity = self._read[0], len(self._data)
        while len(out):
            self._group.wait_for(self._written, at + 1, self._peer)
            place = at % capacity
            length = min(len(out), self._written[0] - at, capacity - place)
            out[:length] = self._data[place : place + length]
            at += length
            self._read[0] = at
            out = out[length:]


Sum = Callable[[list[npt.NDArray[Any]], npt.NDArray[Any]], None]


def _summed(x: Tensor) -> tuple[npt.NDArray[Any], Sum]:
    """``x`` as a flat array sharing its memory, and how to add such arrays into one."""
    flat = x.view(-1)
    if x.dtype is torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16), _sum_bf16
    return flat.numpy(), _sum_fp16 if x.dtype is torch.float16 else _sum_in_place


def _sum_in_place(parts: list[npt.NDArray[Any]], out: npt.NDArray[Any]) -> None:
    np.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        np.add(out, part, out=out)


def _sum_fp16(parts: list[npt.NDArray[Any]], out: npt.NDArray[Any]) -> None:
    total = parts[0].astype(np.float32)
    for part in parts[1:]:
        total += part
    out[:] = total


def _sum_bf16(parts: list[npt.NDArray[Any]], out: npt.NDArray[Any]) -> None:
    total = _widened(parts[0])
    for part in parts[1:]:
        total += _widened(part)
    bits = total.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest even
    out[:] = np.where(np.isnan(total), 0x7FC0, rounded)


def _widened(bf16: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def _as_bytes(x: Tensor) -> Bytes:
    """The bytes of a contiguous tensor, sharing its memory."""
    return x.view(-1).view(torch.uint8).numpy()

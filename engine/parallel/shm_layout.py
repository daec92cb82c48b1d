"""Where everything lies in the shared memory of one replica's ranks; no torch.

    | header: abort flag | group 0 | group 1 | ...

    group:  | counter line of each member | 2 slots of each member | ring of each ordered pair |
    line:   u64 sequence, u64 tag of even sequences, u64 tag of odd ones  (64 bytes apart)
    ring:   u64 bytes written | u64 bytes read | data                     (64 bytes apart)

The segment is an anonymous memory file (``memfd_create``) whose descriptor the ranks inherit:
no name exists that could outlive them. Pages that are never touched cost nothing.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

LINE_BYTES = 64
HEADER_BYTES = 4096
SLOT_BYTES = 256 * 1024  # of whole pages
RING_BYTES = 4 * 2**20
RING_STRIDE = 2 * LINE_BYTES + RING_BYTES


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """One ordered group: its name and the global ranks of its members, in group order."""

    name: str
    members: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.members)


@dataclass(frozen=True, kw_only=True)
class GroupRegion:
    """Offsets, in bytes from the segment's start, of one group's part."""

    spec: GroupSpec
    offset: int

    @property
    def counters(self) -> int:
        return self.offset

    @property
    def slots(self) -> int:
        """Slots of member 0 (even sequences, then odd), member 1, ..."""
        return _aligned(self.offset + self.spec.size * LINE_BYTES)

    @property
    def rings(self) -> int:
        """Rings by ``source * size + target``."""
        return self.slots + self.spec.size * 2 * SLOT_BYTES

    @property
    def end(self) -> int:
        return _aligned(self.rings + self.spec.size**2 * RING_STRIDE)


def lay_out(groups: Sequence[GroupSpec]) -> list[GroupRegion]:
    """Regions of ``groups``, one after the other. Every rank computes the same ones."""
    regions: list[GroupRegion] = []
    offset = HEADER_BYTES
    for spec in groups:
        regions.append(GroupRegion(spec=spec, offset=offset))
        offset = regions[-1].end
    return regions


class Segment:
    """The mapped memory and its abort flag. Whoever opened it closes it."""

    def __init__(self, fd: int, num_bytes: int) -> None:
        self.fd = fd
        self.memory = mmap.mmap(fd, num_bytes)

    @classmethod
    def create(cls) -> Segment:
        """A new segment, all zero, mapped as far as its header; attaching ranks enlarge it."""
        fd = os.memfd_create("gearshift-collectives", os.MFD_CLOEXEC)
        os.ftruncate(fd, HEADER_BYTES)
        return cls(fd, HEADER_BYTES)

    @classmethod
    def attach(cls, fd: int, regions: Sequence[GroupRegion]) -> Segment:
        """Map ``regions`` of a segment another process created; takes over the descriptor.

        All ranks have the same regions, so it does not matter who enlarges the file first.
        """
        num_bytes = regions[-1].end if regions else HEADER_BYTES
        if os.fstat(fd).st_size < num_bytes:
            os.ftruncate(fd, num_bytes)
        return cls(fd, num_bytes)

    def abort(self, blamed_rank: int) -> None:
        """Make every collective in progress fail, blaming ``blamed_rank``; the first call wins."""
        if int.from_bytes(self.memory[:8], "little") == 0:
            self.memory[:8] = (blamed_rank + 1).to_bytes(8, "little")

    def close(self) -> None:
        """Let go of memory and descriptor. Safe to call twice.

        A mapping that some array still uses is freed with that array.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            try:
                self.memory.close()
            except BufferError:
                del self.memory


def _aligned(offset: int) -> int:
    return -(-offset // 4096) * 4096

"""How the ranks of a replica reach each other: shared memory, gloo or NCCL, chosen once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from engine.parallel.communicator import Communicator
from engine.parallel.link import LinkedCommunicator
from engine.parallel.shm import ShmTransport
from engine.parallel.shm_layout import GroupSpec
from engine.parallel.staged import StagedCommunicator
from engine.spec.config import LinkEmulation
from engine.spec.errors import EngineError
from engine.wire.messages import Meeting

Make = Callable[[str, Sequence[int]], Communicator]


class Transport(Protocol):
    """Makes the communicators of one rank. ``said``: what people should know of them, or ""."""

    @property
    def said(self) -> str: ...

    def make(self, name: str, members: Sequence[int]) -> Communicator:
        """My end of a group that was announced at opening."""
        ...

    def close(self) -> None:
        """Let go of it; communicators made from it must not be used afterwards."""
        ...


def open_transport(
    meeting: Meeting,
    *,
    rank: int,
    device: str,
    groups: Sequence[GroupSpec],
    num_ranks: int,
    fds: Sequence[int],
) -> Transport:
    """Open the transport of ``meeting`` for ``rank`` on its ``device``; takes over ``fds``.

    ``fds`` holds the segment for shared memory, and for torch.distributed the listening socket
    (rank 0) or nothing.

    Raises:
        EngineError: an unknown backend.
        RankError: a peer did not come in time.
    """
    match meeting.backend:
        case "shm":
            return ShmTransport(
                fd=fds[0],
                groups=groups,
                rank=rank,
                num_ranks=num_ranks,
                library=Path(meeting.address) if meeting.address else None,
                timeout_s=meeting.timeout_s,
            )
        case "gloo" | "nccl":
            # Imported here: ranks on shared memory start without torch.distributed.
            from engine.parallel.torch_groups import TorchTransport

            return TorchTransport(
                backend=meeting.backend,
                address=meeting.address,
                listen_fd=fds[0] if fds else None,
                groups=groups,
                rank=rank,
                num_ranks=num_ranks,
                device=device,
                timeout_s=meeting.timeout_s,
            )
        case unknown:
            for fd in fds:
                os.close(fd)
            raise EngineError(f"backend {unknown!r} is not known; use shm, gloo or nccl")


def with_staging(make: Make, *, backend: str, device: str) -> Make:
    """``make``, through host memory if the rank has a device and the backend knows host memory
    only."""
    if backend == "nccl" or device == "cpu":
        return make
    return lambda name, members: StagedCommunicator(make(name, members))


def with_link(make: Make, link: LinkEmulation | None) -> Make:
    """``make``, with every communicator behind the emulated link, if there is one."""
    if link is None:
        return make
    return lambda name, members: LinkedCommunicator(make(name, members), link)

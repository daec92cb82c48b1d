"""Where the ranks of one executor meet: shared memory, or a socket for torch.distributed."""

from __future__ import annotations

import socket

from engine.parallel.shm_build import can_use_python_version, find_library
from engine.parallel.shm_layout import Segment
from engine.spec.config import Collectives, EngineConfig
from engine.spec.errors import EngineError
from engine.wire.messages import Meeting


def collectives_for(config: EngineConfig) -> Collectives:
    """What carries the collectives. Those over CPU memory also work on CUDA, through the host:
    slowly, but even between ranks that share a device.

    Raises:
        EngineError: the one asked for does not work on this device or processor.
    """
    is_cuda = config.device.startswith("cuda")
    has_shm = find_library() is not None or can_use_python_version()
    wanted = Collectives(config.collectives)
    if wanted is Collectives.AUTO:
        if is_cuda:
            return Collectives.NCCL
        return Collectives.SHM if has_shm else Collectives.GLOO
    if wanted is Collectives.NCCL and not is_cuda:
        raise EngineError(
            f"collectives {wanted.value!r} do not work on device {config.device!r}; use 'auto'"
        )
    if wanted is Collectives.SHM and not has_shm:
        raise EngineError(
            "shared memory needs a C++ compiler on this processor; install one or use 'gloo'"
        )
    return wanted


def may_share_devices(config: EngineConfig) -> bool:
    """Whether several ranks may share a CUDA device: NCCL refuses that, the others do not care."""
    shared = (Collectives.SHM, Collectives.GLOO)
    return config.device.startswith("cuda") and Collectives(config.collectives) in shared


class MeetingPlace:
    """Opened and closed by whoever starts the ranks, which get its address and descriptors."""

    def __init__(self, backend: Collectives) -> None:
        self.backend = backend
        self._segment: Segment | None = None
        self._listener: socket.socket | None = None
        if backend is Collectives.SHM:
            self._segment = Segment.create()
            self._address = str(find_library() or "")
        else:
            # Bound here and handed to rank 0, so that no other program can take the port.
            self._listener = socket.create_server(("127.0.0.1", 0))
            self._address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def can_be_left(self) -> bool:
        """Whether ranks can leave a collective whose peer is gone, and meet again elsewhere.

        A collective of NCCL or gloo may wait for ever, and nobody knows what state it leaves in the
        process after a failure; such ranks are ended.
        """
        return self.backend is Collectives.SHM

    @property
    def can_be_captured(self) -> bool:
        """Whether collectives are work of the device, which CUDA graphs can hold."""
        return self.backend is Collectives.NCCL

    def invitation(self, *, timeout_s: float) -> Meeting:
        """What ranks are told of it."""
        return Meeting(backend=self.backend.value, address=self._address, timeout_s=timeout_s)

    def fds_for(self, rank: int) -> list[int]:
        """Descriptors that go with the rank's setup."""
        if self._segment is not None:
            return [self._segment.fd]
        return [self._listener.fileno()] if self._listener is not None and rank == 0 else []

    def abort(self, blamed_rank: int) -> None:
        """Make collectives in progress fail where they can."""
        if self._segment is not None:
            self._segment.abort(blamed_rank)

    def close(self) -> None:
        """Close this process's descriptors; ranks keep their own. Safe to call twice."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

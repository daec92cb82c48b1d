"""Opens the shared-memory groups of one rank, compiled or in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.parallel.communicator import Communicator
from engine.parallel.shm_layout import GroupSpec, Segment, lay_out
from engine.parallel.shm_native import NativeShmCommunicator, load_library
from engine.parallel.shm_python import PythonShmCommunicator
from engine.spec.errors import EngineError


class ShmTransport:
    """One rank's view of the segment behind ``fd``; it takes ``fd`` over.

    ``groups`` lists every group of the replica. It must be the same on all ranks, because the
    layout follows from it. ``library`` is the compiled version, None the Python one; the executor
    decides for all ranks of the host, so that a group never mixes the two.
    """

    def __init__(
        self,
        *,
        fd: int,
        groups: Sequence[GroupSpec],
        rank: int,
        num_ranks: int,
        library: Path | None,
        timeout_s: float,
    ) -> None:
        regions = lay_out(groups)
        self._segment = Segment.attach(fd, regions)
        self._regions = {(r.spec.name, r.spec.members): r for r in regions}
        self._rank = rank
        self._num_ranks = num_ranks
        self.said = ""
        self._library = load_library(library) if library else None
        self._timeout_s = timeout_s

    def make(self, name: str, members: Sequence[int]) -> Communicator:
        """My end of the group ``name``.

        Raises:
            EngineError: no such group was laid out.
        """
        region = self._regions.get((name, tuple(members)))
        if region is None:
            raise EngineError(f"group {name!r} of ranks {list(members)} has no shared memory")
        if self._library is None:
            return PythonShmCommunicator(
                segment=self._segment,
                region=region,
                global_rank=self._rank,
                num_ranks=self._num_ranks,
                timeout_s=self._timeout_s,
            )
        return NativeShmCommunicator(
            library=self._library,
            segment=self._segment,
            region=region,
            global_rank=self._rank,
            num_ranks=self._num_ranks,
            timeout_s=self._timeout_s,
        )

    def close(self) -> None:
        """Let go of the segment; communicators made from it must not be used afterwards."""
        self._segment.close()

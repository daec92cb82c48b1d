"""One measuring rank: ``python -m tuner.profiling.rank``. Times the engine's own operators.

All ranks of a job measure the same thing at the same time, so that what they share (memory
bandwidth, caches) is shared as it is while serving.
"""

from __future__ import annotations

import sys
import traceback

import msgspec

from engine.wire.child import begin
from tuner.profiling.messages import OperatorFailure, OperatorJob, OperatorReport


def main() -> int:
    """Run one job and reply."""
    channel = begin(sys.argv[1:])
    encoder = msgspec.msgpack.Encoder()
    while (frame := channel.receive()) is not None:
        job = msgspec.msgpack.decode(frame, type=OperatorJob)
        try:
            reply: OperatorReport | OperatorFailure = _run(job, channel.take_fds())
        except Exception:
            reply = OperatorFailure(rank=job.rank, detail=traceback.format_exc())
        channel.send(encoder.encode(reply))
    return 0


def _run(job: OperatorJob, fds: list[int]) -> OperatorReport:
    import torch

    from engine.parallel.mesh import SoloCommunicator
    from engine.parallel.shm_layout import GroupSpec
    from engine.parallel.transport import open_transport
    from tuner.profiling.bench import measure_operators

    torch.set_num_threads(job.num_threads)
    if job.num_ranks == 1:
        return measure_operators(job, SoloCommunicator())
    members = tuple(range(job.num_ranks))
    group = GroupSpec(name="tp", members=members)
    transport = open_transport(
        job.meeting,
        rank=job.rank,
        device=job.device,
        groups=[group],
        num_ranks=job.num_ranks,
        fds=fds,
    )
    try:
        return measure_operators(job, transport.make("tp", members))
    finally:
        transport.close()


if __name__ == "__main__":
    sys.exit(main())

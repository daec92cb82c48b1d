"""Starts measuring ranks, one or several at once, and gathers what they measured."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.executors.process import ProcessExecutor
from engine.executors.ranks import RankProcesses
from engine.parallel.shm_build import find_library
from engine.parallel.shm_layout import Segment
from engine.spec.config import Collectives, EngineConfig
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from engine.wire.messages import Meeting
from tuner.profiling.messages import (
    FromProfileRank,
    OperatorFailure,
    OperatorJob,
    OperatorReport,
)
from tuner.profiling.profile import CollectiveTime
from tuner.spec.cancel import LOOK_EVERY_S, NEVER, Cancellation
from tuner.spec.errors import TunerError
from tuner.work.counts import CollectiveKind

GRACE_S = 120.0


@contextmanager
def measuring_ranks(num_ranks: int) -> Iterator[RankProcesses]:
    """Processes that measure whatever jobs come; they have ended when the block has.

    Raises:
        RankError: a process could not be started.
    """
    ranks = RankProcesses(num_ranks, module="tuner.profiling.rank")
    try:
        yield ranks
    finally:
        ranks.close()


def profile_operators(
    ranks: RankProcesses,
    *,
    model_dir: Path,
    dtype: DType,
    device: str,
    num_ranks: int,
    degrees: list[int],
    max_tokens: int,
    max_context: int,
    seconds: float,
    threads_per_rank: int = 1,
    quantisation: WeightFormat | None = None,
    cancel: Cancellation = NEVER,
) -> OperatorReport:
    """Operator times with the first ``num_ranks`` of ``ranks`` at work at once, of layers quantised
    as asked; ``cancel`` is asked meanwhile.

    Raises:
        TunerError: a measuring rank raised or did not answer.
    """
    model = ModelConfig.from_dir(model_dir)
    config = EngineConfig(model_dir=model_dir, dtype=dtype, device=device)
    backend = ProcessExecutor(config, model, ParallelPlan(tp=num_ranks)).backend
    segment = Segment.create() if backend is Collectives.SHM else None
    listener = None if segment else socket.create_server(("127.0.0.1", 0))
    address = str(find_library() or "") if segment else ""
    if listener is not None:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    try:
        for rank in range(num_ranks):
            job = OperatorJob(
                model_dir=str(model_dir),
                dtype=dtype,
                meeting=Meeting(backend=backend.value, address=address, timeout_s=GRACE_S),
                rank=rank,
                num_ranks=num_ranks,
                device=f"cuda:{rank}" if device.startswith("cuda") else device,
                num_threads=threads_per_rank,
                degrees=degrees,
                max_tokens=max_tokens,
                max_context=max_context,
                seconds=seconds,
                quantisation=quantisation,
            )
            fds = [segment.fd] if segment else [listener.fileno()] if listener and not rank else []
            ranks.send(rank, msgspec.msgpack.encode(job), fds)
        reports = _gather(ranks, num_ranks, seconds + GRACE_S, cancel)
    finally:
        if segment is not None:
            segment.close()
        if listener is not None:
            listener.close()
    return _of_all(reports)


def _gather(
    ranks: RankProcesses, num_ranks: int, timeout_s: float, cancel: Cancellation
) -> list[OperatorReport]:
    reports: list[OperatorReport] = []
    until_s = time.monotonic() + timeout_s
    while len(reports) < num_ranks:
        cancel.check()
        frame = ranks.receive(LOOK_EVERY_S)
        if frame is None:
            if time.monotonic() >= until_s:
                raise TunerError(f"measuring ranks did not answer within {timeout_s:g} s")
            continue
        until_s = time.monotonic() + timeout_s
        match msgspec.msgpack.decode(frame.payload, type=FromProfileRank):
            case OperatorReport() as report:
                reports.append(report)
            case OperatorFailure(rank=rank, detail=detail):
                raise TunerError(f"measuring rank {rank} failed; its last words:\n{detail}")
    return sorted(reports, key=lambda report: report.rank)


def _of_all(reports: list[OperatorReport]) -> OperatorReport:
    """The first rank's report; a collective takes as long as its slowest member."""
    first = reports[0]
    collectives = []
    for nth, row in enumerate(first.collectives):
        seconds = [report.collectives[nth].seconds for report in reports]
        # A send may return before it has arrived, so the receiver's time is the hand-over's.
        of_all = max(seconds) if row.kind is CollectiveKind.SEND else sum(seconds) / len(seconds)
        collectives.append(
            CollectiveTime(kind=row.kind, ranks=row.ranks, num_bytes=row.num_bytes, seconds=of_all)
        )
    return OperatorReport(
        rank=0,
        gemms=first.gemms,
        attentions=first.attentions,
        elementwise=first.elementwise,
        collectives=collectives,
    )

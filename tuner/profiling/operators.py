"""Starts measuring ranks, one or several at once, and gathers what they measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import msgspec

from engine.executors.meeting import MeetingPlace, collectives_for
from engine.executors.process import device_of
from engine.executors.ranks import RankProcesses
from engine.spec.config import EngineConfig
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
    config: EngineConfig,
    *,
    num_ranks: int,
    degrees: list[int],
    max_tokens: int,
    max_context: int,
    seconds: float,
    cancel: Cancellation = NEVER,
) -> OperatorReport:
    """Times of the operators that ranks of ``config`` would run, with the first ``num_ranks`` of
    ``ranks`` at work at once; ``cancel`` is asked meanwhile.

    ``degrees`` lists into how many tensor shards weights are cut; ``seconds`` is the time to spend
    in all.

    Raises:
        TunerError: a measuring rank raised or did not answer.
    """
    with closing(MeetingPlace(collectives_for(config))) as meeting:
        for rank in range(num_ranks):
            job = OperatorJob(
                model_dir=str(config.model_dir),
                dtype=config.dtype,
                meeting=meeting.invitation(timeout_s=GRACE_S),
                rank=rank,
                num_ranks=num_ranks,
                device=device_of(config, rank),
                num_threads=config.threads_per_rank or 1,
                degrees=degrees,
                max_tokens=max_tokens,
                max_context=max_context,
                seconds=seconds,
                quantisation=config.quantisation,
            )
            ranks.send(rank, msgspec.msgpack.encode(job), meeting.fds_for(rank))
        return _of_all(_gather(ranks, num_ranks, seconds + GRACE_S, cancel))


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

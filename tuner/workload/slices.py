"""Explicit slices and scalings of workloads: each returns a new one, none hides a cut."""

from __future__ import annotations

from dataclasses import replace

from tuner.workload.workload import ClosedLoop, Workload


def head(workload: Workload, num_requests: int) -> Workload:
    """The first ``num_requests`` requests."""
    if len(workload) <= num_requests:
        return workload
    return replace(workload, arrivals=workload.arrivals[:num_requests])


def one_at_a_time(workload: Workload) -> Workload:
    """The same requests, each sent when the one before has returned."""
    return replace(workload, closed=ClosedLoop(concurrency=1))


def at_rate(workload: Workload, factor: float) -> Workload:
    """The same requests ``factor`` times as fast; a closed loop gets ``factor`` times as many
    clients."""
    if workload.closed is not None:
        clients = max(1, round(workload.closed.concurrency * factor))
        closed = replace(workload.closed, concurrency=clients)
        return replace(workload, closed=closed)
    return replace(
        workload,
        arrivals=tuple(replace(a, arrival_s=a.arrival_s / factor) for a in workload.arrivals),
    )

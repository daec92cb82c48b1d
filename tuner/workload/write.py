"""Workloads as trace files, for whoever has no trace of their own or wants to keep what was cut."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from tuner.spec.errors import WorkloadError
from tuner.workload.spec import AZURE_LIKE, WorkloadSpec
from tuner.workload.traces import AZURE_COLUMNS, OWN_COLUMNS
from tuner.workload.workload import Arrival, Workload

# Azure's stamps need a date; nobody reads it, since arrivals count from the first.
_FIRST_STAMP = datetime(2026, 1, 1)


class TraceForm(StrEnum):
    """The formats that can be written, by the words under which they are read."""

    AZURE = "azure"
    CSV = "csv"

    @classmethod
    def of_spec(cls, spec: str) -> TraceForm:
        """Azure's for what is like that trace, else our own."""
        kind = WorkloadSpec.parse(spec).kind
        return cls.AZURE if kind in (AZURE_LIKE, cls.AZURE.value) else cls.CSV


def trace_text(workload: Workload, form: TraceForm) -> str:
    """The file that, read as ``form``, gives the same requests (times to 100 ns, or in the form
    ``csv`` to the bit).

    Raises:
        WorkloadError: the form cannot hold what the workload says.
    """
    if workload.closed is not None:
        raise WorkloadError(
            f"workload {workload.source.spec!r}: a closed loop has no arrival times to write; "
            "give its SPEC as it is"
        )
    lost = _lost_by(workload.arrivals, form)
    if lost:
        raise WorkloadError(
            f"workload {workload.source.spec!r}: the form {form} cannot hold {lost}; "
            "give its SPEC as it is"
        )
    rows = _azure_rows if form is TraceForm.AZURE else _own_rows
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows(workload.arrivals))
    return file.getvalue()


def _lost_by(arrivals: Sequence[Arrival], form: TraceForm) -> str | None:
    if any(arrival.hash_ids for arrival in arrivals):
        return "ids of shared blocks"
    if form is TraceForm.AZURE and any(arrival.prefix_id is not None for arrival in arrivals):
        return "shared beginnings (prefix_id)"
    return None


def _own_rows(arrivals: Sequence[Arrival]) -> Iterator[Sequence[object]]:
    has_prefixes = any(arrival.prefix_id is not None for arrival in arrivals)
    yield (*OWN_COLUMNS, "prefix_id") if has_prefixes else OWN_COLUMNS
    for arrival in arrivals:
        row = (arrival.arrival_s, arrival.input_tokens, arrival.output_tokens)
        yield (*row, arrival.prefix_id) if has_prefixes else row


def _azure_rows(arrivals: Sequence[Arrival]) -> Iterator[Sequence[object]]:
    yield AZURE_COLUMNS
    for arrival in arrivals:
        whole, ticks = divmod(round(arrival.arrival_s * 10**7), 10**7)
        stamp = _FIRST_STAMP + timedelta(seconds=whole)
        yield f"{stamp:%Y-%m-%d %H:%M:%S}.{ticks:07d}", arrival.input_tokens, arrival.output_tokens

"""Server-sent events of a job, resumable at any sequence number."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence

from starlette.concurrency import run_in_threadpool

from api.web.context import AppContext
from api.web.watch import Watched
from store.models import JobEventRow


async def job_events(context: AppContext, job_id: str, *, after: int) -> AsyncIterator[str]:
    """Every event after ``after`` as it comes; ends once the job is finished and all is sent.

    A comment line goes out after ``sse_heartbeat_s`` without an event, so that proxies keep the
    stream open.
    """
    settings = context.settings
    last_sent_s = time.monotonic()
    while not context.watch.has_ended:
        events, is_final = await run_in_threadpool(_read, context, job_id, after)
        for event in events:
            yield _format(event)
            after, last_sent_s = event.seq, time.monotonic()
        if is_final and not events:
            return
        if events:
            continue
        if time.monotonic() - last_sent_s >= settings.sse_heartbeat_s:
            yield ": keep-alive\n\n"
            last_sent_s = time.monotonic()
        quiet_s = time.monotonic() - last_sent_s
        await context.watch.wait(
            Watched.JOB, job_id, seen=after, timeout_s=max(0.0, settings.sse_heartbeat_s - quiet_s)
        )


def _read(context: AppContext, job_id: str, after: int) -> tuple[Sequence[JobEventRow], bool]:
    with context.database.read() as uow:
        if uow.jobs.find(job_id) is None:
            return (), True
        # The state is read first: an event written after it is seen by the next look.
        is_final = uow.jobs.get(job_id).state.is_final
        return uow.jobs.list_events(job_id, after=after), is_final


def _format(event: JobEventRow) -> str:
    data = {**event.data, "at": event.created_at.isoformat()}
    return f"id: {event.seq}\nevent: {event.type}\ndata: {json.dumps(data)}\n\n"

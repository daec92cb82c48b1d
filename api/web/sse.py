"""Server-sent events of a job or a rollout, resumable at any sequence number."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated

from fastapi import Header
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.schemas.plain import MAX_COLUMN
from api.web.context import AppContext
from api.web.watch import Watched
from store import UnitOfWork
from store.models import JobEventRow, RolloutEventRow

Event = JobEventRow | RolloutEventRow
# The events after a number, and whether they are the last.
Found = tuple[Sequence[Event], bool]
MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
LastEventId = Annotated[int, Header(ge=0, le=MAX_COLUMN, description="Resume after this event")]


def answer(events: AsyncIterator[str]) -> StreamingResponse:
    """The response that a client follows."""
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers=HEADERS)


def described(*types: str) -> dict[str, object]:
    """A stream's media type as the description has it, with examples of ``event``."""
    return {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "description": "One event; comments in between keep the connection open",
                "properties": {
                    "id": {
                        "type": "string",
                        "pattern": "^[0-9]+$",
                        "description": "Name it to resume after it",
                    },
                    "event": {"type": "string", "examples": list(types)},
                    "data": {"type": "string", "contentMediaType": "application/json"},
                },
                "required": ["id", "event", "data"],
            }
        }
    }


def job_events(context: AppContext, job_id: str, *, after: int) -> AsyncIterator[str]:
    """Every event of a job after ``after``; ends once it is finished and all is sent."""

    def read(uow: UnitOfWork, after: int) -> Found:
        if (job := uow.jobs.find(job_id)) is None:
            return (), True
        return uow.jobs.list_events(job_id, after=after), job.state.is_final

    return _events(context, Watched.JOB, job_id, after, read)


def rollout_events(context: AppContext, rollout_id: str, *, after: int) -> AsyncIterator[str]:
    """Every event of a rollout after ``after``; ends once it has ended and all is sent."""

    def read(uow: UnitOfWork, after: int) -> Found:
        if (rollout := uow.rollouts.find(rollout_id)) is None:
            return (), True
        return uow.rollouts.list_events(rollout_id, after=after), rollout.state.is_final

    return _events(context, Watched.ROLLOUT, rollout_id, after, read)


async def _events(
    context: AppContext,
    kind: Watched,
    key: str,
    after: int,
    read: Callable[[UnitOfWork, int], Found],
) -> AsyncIterator[str]:
    """Events as they come. A comment line goes out after ``sse_heartbeat_s`` without one, so that
    proxies keep the stream open.

    ``read`` reads the state first: an event written after it is seen by the next look. A service
    that ends tells what is there before: who asks after the end takes this for all there is.
    """
    settings = context.settings
    last_sent_s = time.monotonic()

    def look(after: int) -> Found:
        with context.database.read() as uow:
            return read(uow, after)

    while True:
        events, is_final = await run_in_threadpool(look, after)
        for event in events:
            yield _format(event)
            after, last_sent_s = event.seq, time.monotonic()
        if is_final and not events:
            return
        if events:
            continue
        if context.watch.has_ended:
            return
        if time.monotonic() - last_sent_s >= settings.sse_heartbeat_s:
            yield ": keep-alive\n\n"
            last_sent_s = time.monotonic()
        quiet_s = time.monotonic() - last_sent_s
        await context.watch.wait(
            kind, key, seen=after, timeout_s=max(0.0, settings.sse_heartbeat_s - quiet_s)
        )


def _format(event: Event) -> str:
    data = {**event.data, "at": event.created_at.isoformat()}
    return f"id: {event.seq}\nevent: {event.type}\ndata: {json.dumps(data)}\n\n"

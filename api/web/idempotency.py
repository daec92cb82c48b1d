"""``Idempotency-Key``: a creating POST that is repeated gives the first answer again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.responses import JSONResponse

from api.web.auth import Caller
from api.web.context import AppContext
from api.web.errors import ApiError
from store import UnitOfWork
from store.audit import hash_document
from store.models import IdempotencyKey

IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Same key and body: same answer",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a creating POST answers. ``secrets`` are sent once and never stored."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)


class _KeyTakenError(Exception):
    """Another request committed the same key between our look and our claim."""


def answer_once(
    context: AppContext,
    caller: Caller,
    request: Request,
    *,
    key: str | None,
    body: Any,
    create: Callable[[UnitOfWork], Answer],
) -> JSONResponse:
    """Run ``create`` in one unit of work with its key, or give the kept answer again.

    Raises:
        ApiError: 422, the key was used with another request.
    """
    request_hash = hash_document([request.method, request.url.path, body])
    for _ in range(2):
        try:
            return _attempt(context, caller, key, request_hash, create)
        except _KeyTakenError:
            continue  # now its answer can be read
    raise ApiError(409, "idempotency_key_busy", f"key {key!r} is in use; send the request again")


def _attempt(
    context: AppContext,
    caller: Caller,
    key: str | None,
    request_hash: str,
    create: Callable[[UnitOfWork], Answer],
) -> JSONResponse:
    with context.database.begin() as uow:
        found = None if key is None else uow.idempotency.find(actor=caller.actor, key=key)
        if found is not None:
            return _replay(found, request_hash)
        answer = create(uow)
        if key is not None and not uow.idempotency.claim(
            IdempotencyKey(
                actor=caller.actor,
                key=key,
                request_hash=request_hash,
                status=answer.status,
                headers=answer.headers,
                body=answer.body,
            )
        ):
            raise _KeyTakenError
    return JSONResponse({**answer.body, **answer.secrets}, answer.status, headers=answer.headers)


def _replay(found: IdempotencyKey, request_hash: str) -> JSONResponse:
    if found.request_hash != request_hash:
        raise ApiError(
            422,
            "idempotency_key_reused",
            f"key {found.key!r} was first used with another request; take a new one",
        )
    headers = {**found.headers, "Idempotency-Replayed": "true"}
    return JSONResponse(found.body, found.status, headers=headers)

"""One open page: whose it is, what it may do, and how it reads and acts."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from api.dashboard.entry import COOKIE
from api.dashboard.shared import Ask, SharedReadings
from api.schemas.access import Scope
from api.web.auth import Caller, KeyCheck, caller_with, scopes_of
from api.web.context import AppContext
from store import UnitOfWork

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A page in somebody's browser. Each use of it needs the key to be valid still."""

    context: AppContext
    scopes: frozenset[Scope]
    key_id: str
    key_name: str
    key_scopes: tuple[str, ...]
    _keys: KeyCheck
    _secret: str
    _shared: SharedReadings

    @classmethod
    def of(cls, request: Request) -> Visit:
        """The visit of a request for the page, which the gate has let in."""
        key = request.state.key
        return cls(
            context=request.state.context,
            scopes=scopes_of(key),
            key_id=key.id,
            key_name=key.name,
            key_scopes=tuple(key.scopes),
            _keys=request.state.keys,
            _secret=request.cookies[COOKIE],
            _shared=request.state.shared,
        )

    def may(self, scope: Scope) -> bool:
        """Whether to show what needs ``scope``; who acts is asked again."""
        return scope in self.scopes

    async def read(self, ask: Callable[[UnitOfWork], Answer]) -> Answer:
        """What ``ask`` reads, on a thread of the pool.

        Raises:
            ApiError: 401, the key is not valid any more.
        """
        await self.caller(Scope.READ)
        return await run_in_threadpool(self._read, ask)

    async def read_shared(self, ask: Ask[Answer], *, is_new: bool) -> Answer:
        """As :meth:`read`, for what costs much: see :class:`SharedReadings`.

        Raises:
            ApiError: 401, the key is not valid any more.
        """
        await self.caller(Scope.READ)
        return await self._shared.get(ask, is_new=is_new)

    async def act(self, scope: Scope, do: Callable[[UnitOfWork, Caller], Answer]) -> Answer:
        """Do something in one unit of work, as the key's holder.

        Raises:
            ApiError: 401 or 403, the key is not valid any more or lacks ``scope``.
        """
        caller = await self.caller(scope)
        return await run_in_threadpool(self._act, caller, do)

    async def caller(self, scope: Scope) -> Caller:
        """Who acts now.

        Raises:
            ApiError: 401 or 403, as for :meth:`act`.
        """
        return caller_with(await self._keys.find(self._secret), scope, secrets.token_hex(16))

    def _read(self, ask: Callable[[UnitOfWork], Answer]) -> Answer:
        with self.context.database.read() as uow:
            return ask(uow)

    def _act(self, caller: Caller, do: Callable[[UnitOfWork, Caller], Answer]) -> Answer:
        with self.context.database.begin() as uow:
            return do(uow, caller)

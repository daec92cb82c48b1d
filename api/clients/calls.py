"""One request of the REST interface as a value, and methods made of functions that return one.

A call is written once (:mod:`api.clients.operations`); a client that waits and one that is awaited
both send it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload
from uuid import uuid4

import httpx
from pydantic import BaseModel, TypeAdapter

T = TypeVar("T")
P = ParamSpec("P")
Json = dict[str, Any]
Body = Mapping[str, Any] | BaseModel
IDEMPOTENCY_KEY = "Idempotency-Key"
MERGE_PATCH = "application/merge-patch+json"
PAGE_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """What is sent, and how the answers (one a page) are read.

    ``file`` is streamed as the body. ``is_repeatable``: sent twice, it does no more than once.
    ``is_one_page``: whatever is behind the first page is not asked for.
    """

    method: str
    path: str
    read: Callable[[list[httpx.Response]], T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    file: Path | None = None
    is_repeatable: bool = False
    is_one_page: bool = False

    def after(self, page: httpx.Response) -> Call[T] | None:
        """The call for the page behind ``page``, None where that is the last.

        It goes where this one went, whatever host the link names: behind a proxy the service may
        not know by what address it was called, and a key is for that one alone.
        """
        if self.is_one_page or "next" not in page.links:
            return None
        link = httpx.URL(page.links["next"]["url"])
        return replace(self, params=dict(link.params))


def get(path: str, answer: type[T], **params: str | int | None) -> Call[T]:
    """Read one thing."""
    return Call(
        method="GET", path=path, read=_one(answer), params=_named(params), is_repeatable=True
    )


def get_all(
    path: str, row: type[T], *, newest: int | None = None, **params: str | int | None
) -> Call[list[T]]:
    """Read every page of a list, or only its ``newest`` rows (500 at most)."""
    return Call(
        method="GET",
        path=path,
        read=_rows(row),
        params={"limit": newest or PAGE_ROWS, **_named(params)},
        is_repeatable=True,
        is_one_page=newest is not None,
    )


def get_list(path: str, row: type[T]) -> Call[list[T]]:
    """Read a list that comes whole."""
    return Call(method="GET", path=path, read=_rows(row), is_repeatable=True)


def ask(path: str, answer: type[T], body: Body) -> Call[T]:
    """Ask a question that changes nothing."""
    return Call(method="POST", path=path, read=_one(answer), json=_plain(body), is_repeatable=True)


def create(
    path: str,
    answer: type[T],
    body: Body | None = None,
    *,
    key: str | None,
    **options: Any,
) -> Call[T]:
    """Make something once, however often it is sent: under ``key``, or a new one."""
    return Call(
        method="POST",
        path=path,
        read=_one(answer),
        headers={IDEMPOTENCY_KEY: key or str(uuid4()), **options.pop("headers", {})},
        json=None if body is None else _plain(body),
        is_repeatable=True,
        **options,
    )


def act(
    path: str, answer: type[T], body: Body | None = None, **params: str | int | None
) -> Call[T]:
    """Change something; sent twice, it may act twice."""
    plain = None if body is None else _plain(body)
    return Call(method="POST", path=path, read=_one(answer), json=plain, params=_named(params))


def change(
    path: str, answer: type[T], patch: Json, *, etag: str, **params: str | int | None
) -> Call[T]:
    """Merge ``patch`` into what was read with ``etag``; refused where that has changed since."""
    return Call(
        method="PATCH",
        path=path,
        read=_one(answer),
        params=_named(params),
        headers={"If-Match": etag, "Content-Type": MERGE_PATCH},
        json=patch,
    )


def delete(path: str) -> Call[None]:
    """Remove something."""
    return Call(method="DELETE", path=path, read=lambda _: None)


def _one(answer: type[T]) -> Callable[[list[httpx.Response]], T]:
    def read(pages: list[httpx.Response]) -> T:
        return TypeAdapter(answer).validate_json(pages[-1].content)

    return read


def _rows(row: type[T]) -> Callable[[list[httpx.Response]], list[T]]:
    def read(pages: list[httpx.Response]) -> list[T]:
        # A type made at run time, which no checker can follow.
        rows: TypeAdapter[list[T]] = TypeAdapter(list[row])  # type: ignore[valid-type]
        return [each for page in pages for each in rows.validate_json(page.content)]

    return read


def _plain(body: Body) -> Any:
    if isinstance(body, BaseModel):
        return body.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return dict(body)


def _named(params: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in params.items() if value is not None}


class Sender(ABC):
    """A client whose methods wait."""

    @abstractmethod
    def send(self, call: Call[T]) -> T:
        """Send the call and wait for its answer.

        Raises:
            ClientError: the service refused.
            httpx.TransportError: it cannot be reached.
        """


class AsyncSender(ABC):
    """A client whose methods are awaited."""

    @abstractmethod
    async def send(self, call: Call[T]) -> T:
        """As :meth:`Sender.send`."""


class operation(Generic[P, T]):  # noqa: N801 - a decorator
    """Makes a method of a function that returns a call: it waits on a :class:`Sender`, and is
    awaited on an :class:`AsyncSender`."""

    def __init__(self, make: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> operation[P, T]: ...
    @overload
    def __get__(self, client: Sender, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncSender, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Sender | AsyncSender | None, owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._make)
        def run(*values: P.args, **named: P.kwargs) -> Any:
            return client.send(self._make(client, *values, **named))

        return run

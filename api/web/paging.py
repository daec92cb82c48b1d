"""Cursor lists: ``?limit=&cursor=`` in, ``Link: rel="next"`` out."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request, Response

from api.schemas.plain import MAX_COLUMN, check_plain
from api.web.errors import ApiError, FieldError
from store import Page, PageRequest

T = TypeVar("T")


def page_request(
    limit: Annotated[int, Query(ge=1, le=500, description="Rows per page")] = 50,
    cursor: Annotated[str | None, Query(description="From the Link header of a page")] = None,
) -> PageRequest:
    """The page a request asks for.

    Raises:
        ApiError: 422, a cursor this service did not make.
    """
    return PageRequest(limit=limit, after=None if cursor is None else _decode(cursor))


Paging = Annotated[PageRequest, Depends(page_request)]


def link_next(request: Request, response: Response, page: Page[Any]) -> None:
    """Point to the next page in the response's Link header."""
    if page.next_after is not None:
        url = request.url.include_query_params(cursor=_encode(page.next_after))
        response.headers["Link"] = f'<{url}>; rel="next"'


def _encode(key: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _decode(cursor: str) -> str | int:
    try:
        key = check_plain(json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (ValueError, binascii.Error):
        key = None
    is_beyond = isinstance(key, int) and not 0 <= key <= MAX_COLUMN
    if not isinstance(key, str | int) or isinstance(key, bool) or is_beyond:
        raise ApiError(
            422,
            "invalid_cursor",
            "the cursor is not one of this service",
            errors=[FieldError(pointer="/query/cursor", detail="take it from a Link header")],
        )
    return key

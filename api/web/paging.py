"""Cursor lists: ``?limit=&cursor=`` in, ``Link: rel="next"`` out."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request, Response

from store import Page, PageRequest

T = TypeVar("T")


Limit = Annotated[int, Query(ge=1, le=500, description="Rows per page")]
# An id as store.models.base.new_id makes it.
ID_PATTERN = r"^[a-z]+_[0-9a-f]{21}$"
# A number as text, as all cursors are; the pattern keeps it within what a column holds.
NUMBER_PATTERN = r"^(1[0-9]{9}|[0-9]{1,9})$"
FROM_LINK = "From the Link header of a page"


async def page_by_id(
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(description=FROM_LINK, pattern=ID_PATTERN)] = None,
) -> PageRequest:
    """The page of a list in the order of its rows' ids that a request asks for."""
    return PageRequest(limit=limit, after=cursor)


async def page_by_number(
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(description=FROM_LINK, pattern=NUMBER_PATTERN)] = None,
) -> PageRequest:
    """The page of a list in the order of its rows' numbers that a request asks for."""
    return PageRequest(limit=limit, after=None if cursor is None else int(cursor))


Paging = Annotated[PageRequest, Depends(page_by_id)]
NumberedPaging = Annotated[PageRequest, Depends(page_by_number)]


def link_next(request: Request, response: Response, page: Page[Any]) -> None:
    """Point to the next page in the response's Link header."""
    if page.next_after is not None:
        url = request.url.include_query_params(cursor=page.next_after)
        response.headers["Link"] = f'<{url}>; rel="next"'

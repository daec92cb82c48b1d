"""Pictures of answers, drawn aside."""

from __future__ import annotations

from api.aside.process import AsideError, AsideLimits
from api.web.aside import Aside
from api.web.errors import ApiError
from store.models.base import Json

LIMITS = AsideLimits(seconds=30.0, memory_mib=2048)


async def draw_report(report: Json, aside: Aside) -> str:
    """A tuning job's report as an HTML page.

    Raises:
        ApiError: 409, it cannot be drawn; 429, too many are drawn already.
    """
    try:
        answer = await aside.run("draw_report", {"report": report}, LIMITS)
    except AsideError as error:
        raise ApiError(409, "cannot_draw", f"the report cannot be drawn: {error}") from error
    page: str = answer["page"]
    return page

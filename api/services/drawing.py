"""Reports of answers, written aside: their pictures take long."""

from __future__ import annotations

from api.aside.process import AsideError, AsideLimits
from api.web.aside import Aside
from api.web.errors import ApiError
from store.models.base import Json

LIMITS = AsideLimits(seconds=30.0, memory_mib=2048)


async def told_report(document: Json, form: str, aside: Aside) -> str:
    """A tuning job's report as Markdown or as an HTML page (``form``).

    Raises:
        ApiError: 409, it cannot be written; 429, too many are written already.
    """
    try:
        answer = await aside.run("tell_report", {"report": document, "form": form}, LIMITS)
    except AsideError as error:
        raise ApiError(409, "cannot_draw", f"the report cannot be drawn: {error}") from error
    text: str = answer["text"]
    return text

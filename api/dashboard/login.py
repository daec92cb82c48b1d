"""Log in and out: plain HTML, so that nothing is kept for whoever has no key yet."""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from api.dashboard.entry import COOKIE
from api.dashboard.headers import HEADERS
from api.dashboard.paths import LOGIN, LOGOUT, is_page
from api.web.auth import KeyCheck
from api.web.errors import ApiError

# A working day; a key that is revoked or has expired ends earlier.
STAY_S = 12 * 3600
MAX_FIELD_CHARS = 500
STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5b6675;--line:#ccd3dc;
--go:#1f5fbf;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e6eaf0;--soft:#a3adba;
--line:#3a4452;--go:#7fb0f5;--bad:#ff8a80}}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--bg);
color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{box-sizing:border-box;width:min(26rem,100vw - 2rem);padding:1.75rem;background:var(--card);
border:1px solid var(--line);border-radius:12px}
h1{margin:0 0 .25rem;font-size:1.4rem}p{margin:.25rem 0 1rem;color:var(--soft)}
label{display:block;font-weight:600;margin-bottom:.35rem}
input{box-sizing:border-box;width:100%;padding:.65rem;font:inherit;color:inherit;
background:var(--bg);border:1px solid var(--line);border-radius:8px}
button{margin-top:1rem;width:100%;padding:.65rem;font:inherit;font-weight:600;border:0;
border-radius:8px;background:var(--go);color:var(--card);cursor:pointer}
:focus-visible{outline:3px solid var(--go);outline-offset:2px}
.bad{color:var(--bad)}code{font-size:.9em;overflow-wrap:anywhere}
"""
NEXT_STEP = (
    "The service printed its first key when it started. Another one: "
    "<code>gearshift keys create NAME --scope read</code>"
)


def login_routes(keys: KeyCheck) -> APIRouter:
    """``/login`` and ``/logout`` of a service that knows its callers by ``keys``."""
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN)
    async def show(
        target: Annotated[str, Query(alias="next", max_length=300)] = "/",
    ) -> HTMLResponse:
        return _form(target)

    @router.post(LOGIN)
    async def enter(request: Request) -> Response:
        given = _fields(await request.body())
        secret, target = given.get("key", "").strip(), given.get("next", "/")
        try:
            await keys.find(secret)
        except ApiError as error:
            return _form(target, error=error.detail)
        answer = RedirectResponse(_own_page(target), HTTPStatus.SEE_OTHER.value, headers=HEADERS)
        answer.set_cookie(
            COOKIE,
            secret,
            max_age=STAY_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post(LOGOUT)
    async def leave() -> RedirectResponse:
        answer = RedirectResponse(LOGIN, HTTPStatus.SEE_OTHER.value, headers=HEADERS)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def plain_page(title: str, body: str, status: HTTPStatus = HTTPStatus.OK) -> HTMLResponse:
    """A page that needs no other file; ``body`` is HTML."""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
    return HTMLResponse(page, status.value, headers={**HEADERS, "Cache-Control": "no-store"})


def _form(target: str, *, error: str | None = None) -> HTMLResponse:
    message = "" if error is None else f'<p class="bad" role="alert">{escape(error)}</p>'
    body = (
        f"<p>Log in with a key of this service.</p>{message}"
        f'<form method="post" action="{LOGIN}">'
        f'<input type="hidden" name="next" value="{escape(_own_page(target))}">'
        '<label for="key">Key</label><input id="key" name="key" type="password" required autofocus'
        ' autocomplete="current-password" placeholder="gs_...">'
        f"<button>Log in</button></form><p style='margin:1rem 0 0'>{NEXT_STEP}</p>"
    )
    status = HTTPStatus.OK if error is None else HTTPStatus.UNAUTHORIZED
    return plain_page("Gearshift", body, status)


def _fields(body: bytes) -> dict[str, str]:
    """The fields of a form; of one that has too many, none."""
    try:
        found = parse_qs(body.decode(errors="replace"), max_num_fields=10)
    except ValueError:
        return {}
    return {name: values[0][:MAX_FIELD_CHARS] for name, values in found.items()}


def _own_page(target: str) -> str:
    """A page of ours to go to; anything else is the first one."""
    return target if is_page(target) and not target.startswith("/_") else "/"

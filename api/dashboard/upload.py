"""A trace that is chosen in the browser, and the route that it is sent to.

What comes is taken as by REST, to the same limits; only the key is the page's, in its cookie.
"""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from nicegui import ui
from starlette.concurrency import run_in_threadpool

from api.dashboard.entry import is_own
from api.dashboard.layout import Text, allow, button, note, page_path
from api.dashboard.paths import UPLOAD
from api.schemas.access import Scope
from api.services import workloads
from api.web.auth import Caller, caller_with
from api.web.context import AppContext
from api.web.errors import ApiError
from tuner.workload.traces import AUTO, trace_words

FILE_ID = "trace-file"
# Reading a large trace takes the service a while after it has come.
WAIT_S = 900.0
SEND = """
(async () => {
  const file = document.getElementById(FILE_ID).files[0];
  if (!file) return {status: 0, detail: "Choose a file first."};
  const query = new URLSearchParams({name: GIVEN_NAME || file.name, form: FORM});
  try {
    const answer = await fetch(UPLOAD + "?" + query, {
      method: "POST", body: file, headers: {"Content-Type": "application/octet-stream"}});
    return {status: answer.status, ...await answer.json()};
  } catch (error) {
    return {status: 0, detail: "The file did not get there: " + error};
  }
})()
"""


def upload_routes(context: AppContext) -> APIRouter:
    """``POST /workloads`` of pages: the file as the body, as by ``POST /v1/workloads``."""
    router = APIRouter(include_in_schema=False)

    @router.post(UPLOAD)
    async def take(
        request: Request,
        name: Annotated[str, Query(min_length=1, max_length=120)] = "trace",
        form: Annotated[str, Query(max_length=60)] = AUTO,
    ) -> JSONResponse:
        if not is_own(request.headers):
            raise ApiError(403, "other_site", "a page of another site asked for this")
        caller = caller_with(request.state.key, Scope.TUNE, secrets.token_hex(16))
        if form not in (known := trace_words()):
            raise ApiError(422, "invalid_request", f"form {form!r}: known are {', '.join(known)}")
        async with workloads.receive(request.stream()) as path:
            upload = await workloads.read(path, context.aside, name=name, form=form)
        workload_id = await run_in_threadpool(_keep, context, upload, caller)
        return JSONResponse({"id": workload_id}, HTTPStatus.CREATED)

    return router


def _keep(context: AppContext, upload: workloads.Upload, caller: Caller) -> str:
    with context.database.begin() as uow:
        return workloads.keep(uow, upload, caller=caller).id


class UploadForm:
    """Choose a file, send it, and read in place what is wrong with it."""

    def __init__(self) -> None:
        Text("label", "Trace file", "file").props["for"] = FILE_ID
        chosen = ui.element("input").props('type="file" accept=".csv,.jsonl,.json,.txt"')
        chosen.props["id"] = FILE_ID
        with ui.element("div").classes("fields"):
            self._name = ui.input("Name").props('stack-label hint="Empty: that of the file"')
            self._form = ui.select(list(trace_words()), value=AUTO, label="Format")
            self._form.props('hint="auto: as the first rows tell"')
        with ui.element("div").classes("row").style("margin:.5rem 0"):
            self._send = button("Upload", self._upload, "go")
        self._said = ui.element("div").props('aria-live="polite"')

    async def _upload(self) -> None:
        self._said.clear()
        with self._said:
            Text("p", "Sending it, and reading every row ...", "soft")
        allow(self._send, False)
        try:
            answer = await ui.run_javascript(self._script(), timeout=WAIT_S)
        except TimeoutError:
            answer = {"detail": "It takes too long: send it by the command below."}
        finally:
            allow(self._send, True)
        self._said.clear()
        if answer.get("status") == HTTPStatus.CREATED:
            ui.navigate.to(page_path("workloads", str(answer["id"])))
            return
        with self._said:
            note(_told(answer), "bad")

    def _script(self) -> str:
        values = {
            "FILE_ID": FILE_ID,
            "GIVEN_NAME": str(self._name.value or "").strip(),
            "FORM": str(self._form.value),
            "UPLOAD": UPLOAD,
        }
        head = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
        return f"(() => {{{head} return {SEND.strip()}; }})()"


def _told(answer: dict[str, Any]) -> str:
    """What the service says is wrong, in its words."""
    details = [str(one.get("detail", "")) for one in answer.get("errors") or ()]
    return "; ".join(filter(None, details)) or str(answer.get("detail") or "It was refused.")

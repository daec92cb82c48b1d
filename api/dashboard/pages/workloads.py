"""``/workloads``: uploaded traces, newest first."""

from __future__ import annotations

from fastapi import Request

from api.dashboard import words
from api.dashboard.layout import Row, Text, card, copied, empty, frame, note, page_path, table
from api.dashboard.upload import UploadForm
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.workloads import WorkloadSummary
from api.services import workloads
from store import UnitOfWork
from store.paging import PageRequest

PATH, TITLE = "/workloads", "Workloads · Gearshift"
MOST = 100
COLUMNS = (
    ("name", "Workload"),
    ("id", "Name it in a job as"),
    ("form", "Format"),
    ("rows", "Requests"),
    ("span", "Span"),
    ("rate", "Requests/s"),
    ("begun", "Uploaded"),
)
UPLOAD = "gearshift workload upload FILE --service {}"
FORMATS = (
    "One request a row: when it came, tokens in, tokens out. CSV or JSON lines of Azure, BurstGPT, "
    "Mooncake, or with columns arrival_s, input_tokens, output_tokens."
)


async def show(request: Request) -> None:
    """The page."""
    visit = Visit.of(request)
    rows = await visit.read(_rows)
    with frame(request, visit, "Workloads"):
        with card():
            if rows:
                table(COLUMNS, rows, page=25, breaks=("name", "id"))
            else:
                empty(
                    "No workload yet.",
                    "Upload a trace of requests below; without one, jobs take arrivals that are "
                    "drawn, as poisson:rate=4,input=512,output=64,seconds=60.",
                )
        with card("Upload a trace"):
            Text("p", FORMATS)
            if visit.may(Scope.TUNE):
                UploadForm()
            else:
                note("Uploading needs a key with scope 'tune'; this one can only read.", "warn")
            Text("p", "The same from a terminal:", "soft")
            address = str(request.base_url).rstrip("/")
            copied(UPLOAD.format(address), "the command that uploads a trace")


def _rows(uow: UnitOfWork) -> list[Row]:
    page = uow.workloads.list_page(PageRequest(limit=MOST))
    return [_row(workloads.view(row, WorkloadSummary)) for row in page.items]


def _row(found: WorkloadSummary) -> Row:
    return {
        "key": found.id,
        "name": {"text": found.name, "href": page_path("workloads", found.id)},
        "id": found.id,
        "form": found.form,
        "rows": f"{found.rows:,}",
        "span": words.span(found.span_s),
        "rate": words.number(found.rate_rps, 2),
        "begun": words.at(found.created_at),
    }

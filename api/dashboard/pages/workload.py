"""``/workloads/ID``: one uploaded trace: how its requests come, and how long they are."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from nicegui import ui

from api.dashboard import charts, words
from api.dashboard.layout import (
    Row,
    button,
    card,
    chart,
    confirm,
    empty,
    facts,
    frame,
    guarded,
    missing,
    note,
    table,
)
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.workloads import WorkloadView
from api.services import workloads
from api.web.auth import Caller
from store import NotFoundError, UnitOfWork

PATH, TITLE = "/workloads/{workload_id}", "Workload · Gearshift"
SECONDS_UP_TO_S = 600
BACK = ("/workloads", "workloads")
LENGTHS = (
    ("what", "Tokens"), ("mean", "Mean"), ("p50", "p50"), ("p95", "p95"), ("max", "Longest"),
)  # fmt: skip
Json = dict[str, Any]


async def show(request: Request, workload_id: str) -> None:
    """The page."""
    visit = Visit.of(request)
    try:
        found = await visit.read(lambda uow: workloads.whole_view(uow.workloads.get(workload_id)))
    except NotFoundError as error:
        missing(request, visit, str(error), back=BACK)
        return
    with frame(request, visit, found.name, back=BACK):
        _say(found)
        _Actions(visit, found)
        with card("Requests over time"):
            _show_rate(found.over_time)
        _show_lengths(found)


class _Actions:
    """What one does with a trace."""

    def __init__(self, visit: Visit, found: WorkloadView) -> None:
        self._visit = visit
        self._id, self._name = found.id, found.name
        if not visit.may(Scope.TUNE):
            return
        with ui.element("div").classes("row").style("margin-top:1rem"):
            ui.link("Tune for this load", f"/jobs/new?workload={found.id}").classes("go")
            button("Remove", self._ask, "risk")

    async def _ask(self) -> None:
        question = f"Remove {self._name}? Jobs that name it keep it from being removed."
        if await confirm(question, yes="Remove it", no="Keep it"):
            await guarded(self._delete)

    async def _delete(self) -> None:
        workload_id = self._id

        def delete(uow: UnitOfWork, caller: Caller) -> None:
            workloads.delete(uow, workload_id, caller=caller)

        await self._visit.act(Scope.TUNE, delete)
        ui.navigate.to("/workloads")


def _say(found: WorkloadView) -> None:
    with card():
        facts(
            [
                ("Name it in a job as", found.id),
                ("Requests", f"{found.rows:,}"),
                ("Span", words.span(found.span_s)),
                ("Requests/s", words.number(found.rate_rps, 2)),
                ("Busiest minute / mean", words.number(found.peak_to_mean_per_minute, 2)),
                ("CV of gaps (1: Poisson)", words.number(found.gap_cv, 2)),
                ("Format", found.form),
                ("Size", words.size(found.num_bytes)),
                ("Uploaded", words.at(found.created_at)),
            ]
        )
        if found.spread_s > 0:
            note(f"Stamps are {found.spread_s:g} s coarse: arrivals are spread inside.", "warn")
        for cut in found.cuts:
            note("Left out: " + ", ".join(f"{k} {v}" for k, v in cut.items()), "warn")


def _show_rate(found: Json | None) -> None:
    if found is None:
        empty("Not known.", "It was uploaded to an earlier version: upload it again to see this.")
        return
    bin_s = found["bin_s"]
    rates = [count / bin_s for count in found["counts"]]
    # So that no two neighbours have one label.
    name, unit_s = ("seconds", 1) if len(rates) * bin_s < SECONDS_UP_TO_S else ("minutes", 60)
    chart(
        charts.bins(
            f"{name} from the first request, in stretches of {words.span(bin_s)}",
            "requests/s",
            [f"{round(index * bin_s / unit_s, 1):g}" for index in range(len(rates))],
            rates,
        ),
        "requests per second over the time of the trace",
    )


def _show_lengths(found: WorkloadView) -> None:
    joint = found.joint_histogram
    counts, ins, outs = joint["counts"], joint["input_edges"], joint["output_edges"]
    by_output = [sum(column) for column in zip(*counts, strict=True)]
    with ui.element("div").classes("grid2"):
        with card("Length of inputs"):
            _histogram("input tokens, from", ins, [sum(row) for row in counts])
        with card("Length of outputs"):
            _histogram("output tokens, from", outs, by_output)
        with card("Both at once"):
            chart(
                charts.counts_over_two(
                    ("input tokens, from", [f"{edge:,}" for edge in ins]),
                    ("output tokens, from", [f"{edge:,}" for edge in outs]),
                    counts,
                ),
                "how many requests have which input and output length",
            )
        with card("Lengths in numbers"):
            table(
                LENGTHS,
                [_lengths("input", found.input_tokens), _lengths("output", found.output_tokens)],
            )


def _histogram(x: str, edges: list[int], counts: list[int]) -> None:
    """Counts over powers of two."""
    chart(
        charts.bins(x, "requests", [f"{edge:,}" for edge in edges], counts),
        f"requests by {x.removesuffix(', from')}",
    )


def _lengths(what: str, found: Json) -> Row:
    return {
        "key": what,
        "what": what,
        "mean": words.number(found["mean"]),
        "p50": words.number(found["p50"], 0),
        "p95": words.number(found["p95"], 0),
        "max": words.number(found["max"], 0),
    }

"""The reports of ``capacity --out`` and of ``compare --out``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from policies.paired import Change
from tuner.capacity.document import capacity_lines
from tuner.comparison.document import best_rows
from tuner.pictures.capacities import capacity_panels
from tuner.pictures.comparison import comparison_panels
from tuner.report.report import Section, Table
from tuner.report.steps import step_sections


def capacity_sections(document: dict[str, Any]) -> Iterator[Section]:
    """All of a capacity."""
    yield Section(name="answer", heading="Answer", lines=tuple(capacity_lines(document)))
    rates = document["rates"]
    if not rates:  # nothing came to its end
        return
    word = "concurrency" if rates[0]["concurrency"] is not None else "rate_rps"
    keys = list(dict.fromkeys(key for rate in rates for key in rate["metrics"]))
    rows = tuple(
        (
            rate[word],
            rate["draws"],
            rate["sla_probability"],
            rate["attainment"],
            *(rate["metrics"].get(key) for key in keys),
        )
        for rate in rates
    )
    head = "clients" if word == "concurrency" else "requests/s"
    yield Section(
        name="capacity",
        heading="Latency against the load",
        lines=(
            "means over draws of the arrivals; bars reach from the least to the most of the "
            "draws and of slower and faster steps",
        ),
        tables=(Table(columns=(head, "draws", "P(SLA met)", "attainment", *keys), rows=rows),),
        panels=capacity_panels(document),
    )
    yield from step_sections(document.get("steps"))


def comparison_sections(document: dict[str, Any]) -> Iterator[Section]:
    """All of a comparison."""
    best = Table(columns=("number", "best", "next", "difference (90 %)"),
                 rows=tuple(best_rows(document)))  # fmt: skip
    yield Section(name="answer", heading="Answer", lines=tuple(document["answer"]), tables=(best,))
    metrics = document["metrics"]
    rows = tuple(
        (
            case["label"],
            *((case["metrics"].get(m["key"]) or {"mean": None})["mean"] for m in metrics),
            case["draws_met"],
            case["reason"],
        )
        for case in document["cases"]
    )
    changes = tuple(
        (
            case["label"],
            *(_change(case["against_best_static"].get(metric["key"])) for metric in metrics),
        )
        for case in document["cases"]
        if case["against_best_static"]
    )
    names = [metric["name"] for metric in metrics]
    yield Section(
        name="cases",
        heading="Every plan on the same draws",
        lines=(
            f"means over {document['num_draws']} draws of the arrivals; bars reach from the least "
            "to the most draw",
            *document["notes"],
        ),
        tables=(
            Table(columns=("", *names, "draws that meet the SLA", "why not"), rows=rows),
            Table(
                columns=("against the best static plan", *names),
                rows=changes,
            ),
        ),
        panels=comparison_panels(document),
    )
    yield from step_sections(document.get("steps"))


def _change(raw: dict[str, Any] | None) -> str | None:
    return None if raw is None else str(Change.from_json(raw))

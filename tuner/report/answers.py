"""Any answer's document as a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from engine.spec.errors import EngineError
from policies.errors import PolicyInputError
from tuner.capacity.document import SCHEMA as CAPACITY
from tuner.comparison.document import SCHEMA as COMPARISON
from tuner.described.document import SCHEMA as SIMULATION
from tuner.planner.document import SCHEMA as PLAN
from tuner.report.loads import capacity_sections, comparison_sections
from tuner.report.planned import plan_sections
from tuner.report.report import Report, Section
from tuner.report.runs import run_sections
from tuner.report.tuned import tune_sections
from tuner.search.report import SCHEMA as TUNING
from tuner.spec.errors import TunerError

BENCH = "bench/v1"
Sections = Callable[[dict[str, Any]], Iterator[Section]]
KINDS: Mapping[str, tuple[str, Sections]] = {
    PLAN: ("plan", plan_sections),
    TUNING: ("tune", tune_sections),
    SIMULATION: ("simulate", run_sections),
    BENCH: ("bench", run_sections),
    CAPACITY: ("capacity", capacity_sections),
    COMPARISON: ("compare", comparison_sections),
}


class Form(StrEnum):
    """What a report is written as."""

    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"


def report_of(document: Any) -> Report:
    """The report of a document that ``plan``, ``tune``, ``simulate``, ``bench``, ``capacity`` or
    ``compare`` wrote.

    Raises:
        TunerError: another document, or one without what these write.
    """
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, str) or schema not in KINDS:
        names = ", ".join(name for name, _ in KINDS.values())
        raise TunerError(
            f"no answer to report: its schema is {schema!r}; take what one of {names} wrote (--out)"
        )
    name, sections = KINDS[schema]
    try:
        found = [*sections(document), *_remarks(document)]
        title = str(document.get("title") or f"answer of {name}")
    except (LookupError, TypeError, ValueError, EngineError, PolicyInputError) as error:
        raise TunerError(f"not as {name} writes it: {type(error).__name__} {error}") from error
    asked, *facts = title.split("; ", 2)
    return Report(
        of=schema,
        title=f"{name}: {asked}",
        facts=tuple(facts),
        sections=tuple(section for section in found if not section.is_empty),
    )


def _remarks(document: dict[str, Any]) -> Iterator[Section]:
    yield Section(
        name="warnings",
        heading="What to know before believing it",
        lines=tuple(document.get("warnings") or ()),
    )


def write_report(report: Report, form: Form) -> str:
    """The report as text.

    Raises:
        TunerError: a page is wanted and what draws its pictures is not installed.
    """
    match form:
        case Form.JSON:
            import json

            return json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n"
        case Form.MARKDOWN:
            from tuner.report.markdown import markdown_of

            return markdown_of(report)
        case Form.HTML:
            from tuner.pictures.draw import PAGE, require_drawing

            try:
                require_drawing(PAGE)
            except TunerError as error:
                raise TunerError(f"{error}, or take --format markdown or json") from error
            from tuner.report.page import page_of_report

            return page_of_report(report)

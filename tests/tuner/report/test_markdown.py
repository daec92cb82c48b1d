"""Reports as Markdown: what people wrote is text, and stays readable."""

from __future__ import annotations

import pytest

from tuner.report.markdown import markdown_of
from tuner.report.report import Report


@pytest.mark.parametrize(
    ("title", "told"),
    [
        ("p95_ttft_ms<=500 and 1 < 2", "p95_ttft_ms<=500 and 1 < 2"),
        ("<script>x</script>", "&lt;script>x&lt;/script>"),
        ("<!-- x -->", "&lt;!-- x -->"),
    ],
)
def test_bounds_are_read_as_they_are_written_and_nothing_begins_a_tag(
    title: str, told: str
) -> None:
    text = markdown_of(Report(of="plan/v2", title=title, facts=(), sections=()))
    assert text.startswith(f"# {told}\n")

"""The reports of runs: what they say of a bound that was missed, and of nothing measured."""

from __future__ import annotations

from typing import Any

from policies.report import LATENCIES
from tuner.report.loads import capacity_sections
from tuner.report.runs import COLUMNS, run_sections

RATES = ("throughput_tokens_per_s", "goodput_rps", "attainment")


def _missed_at(value: float | None) -> dict[str, Any]:
    """A run's document that misses its bound at this TTFT."""
    bound = "p95_ttft_ms<=500.0"
    return {
        "metrics": {name: dict.fromkeys(COLUMNS) for name in LATENCIES} | dict.fromkeys(RATES),
        "requests": {"completed": 3},
        "sla": {
            "sla": bound,
            "is_met": False,
            "violations": [{"constraint": bound, "actual": value}],
        },
    }


def test_a_bound_that_was_missed_by_a_little_is_told_with_the_digits_that_show_it() -> None:
    assert next(run_sections(_missed_at(500.4))).lines[1].endswith(": 500.4")
    assert "infinite" not in next(run_sections(_missed_at(None))).lines[1]


def test_a_capacity_of_which_no_probe_ended_is_reported_as_that() -> None:
    sections = list(capacity_sections({"capacity": {"load": None}, "sla": "a<=1", "rates": []}))
    assert [section.lines for section in sections] == [
        ("no probe came to its end in time: take longer (--seconds)",)
    ]

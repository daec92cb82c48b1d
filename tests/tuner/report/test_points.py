"""What a report says of the points of an answer is what the answer said of them."""

from __future__ import annotations

from engine.spec.settings import Settings
from policies.points import Estimate
from policies.sla import Sla
from tuner.report.planned import read_point
from tuner.report.points import point_sections

SLA = Sla.parse("p95_ttft_ms<=500")


def test_the_chance_of_a_point_on_the_front_is_that_of_the_answer() -> None:
    """Intervals alone know nothing of other draws, nor of a model that was never served."""
    raw = {
        "settings": Settings().to_json(),
        "fidelity": "simulated",
        "metrics": {"p95_ttft_ms": Estimate(value=100.0, low=50.0, high=200.0).to_json()},
    }
    told, untold = (read_point({**raw, "sla_probability": chance}) for chance in (5 / 6, None))
    assert untold.probability(SLA) > 5 / 6
    (row,) = next(point_sections([told], SLA)).tables[0].rows
    assert row[-1] == 5 / 6

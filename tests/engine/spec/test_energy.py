"""Energy between two readings of counters: of all devices, or not at all."""

from __future__ import annotations

import pytest

from engine.spec.energy import EnergyCounters


def counters(at_s: float, **joules: float) -> EnergyCounters:
    return EnergyCounters(at_s=at_s, joules=joules)


def test_the_joules_of_all_devices_are_added() -> None:
    used = counters(1.0, a=10.0, b=100.0).until(counters(3.0, a=30.0, b=140.0))
    assert used is not None
    assert (used.joules, used.seconds, used.num_devices) == (60.0, 2.0, 2)
    document = used.to_json(output_tokens=20, total_tokens=120)
    assert document["mean_w"] == 30.0
    assert document["joules_per_output_token"] == 3.0
    assert document["joules_per_total_token"] == 0.5
    assert set(document["metric_ids"]) < set(document)


def test_without_a_token_there_is_no_energy_per_token() -> None:
    used = counters(0.0, a=0.0).until(counters(1.0, a=5.0))
    assert used is not None
    assert used.to_json(output_tokens=0, total_tokens=0)["joules_per_output_token"] is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (EnergyCounters(), EnergyCounters()),
        (EnergyCounters(), counters(1.0, a=1.0)),
        (counters(0.0, a=0.0), EnergyCounters()),
        (counters(0.0, a=0.0, b=0.0), counters(1.0, a=1.0)),
        (counters(0.0, a=5.0), counters(1.0, a=1.0)),
        (counters(1.0, a=0.0), counters(1.0, a=1.0)),
    ],
    ids=["never", "new", "gone", "one gone", "began anew", "no time"],
)
def test_what_is_not_known_of_every_device_is_absent(
    before: EnergyCounters, after: EnergyCounters
) -> None:
    assert before.until(after) is None

"""The capacity table: what is kept, what carries a rate, and that it reads back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate, cheapest, undominated
from policies.errors import PolicyInputError
from policies.sla import Sla

SLA = Sla.parse("p95_ttft_ms<=500,attainment>=0.9")


def carried(devices: int, low: float, rate: float, high: float | None = None) -> CarriedRate:
    return CarriedRate(
        settings=Settings(plan=ParallelPlan(dp=devices)),
        rate_rps=rate,
        low_rps=low,
        high_rps=high,
        binding=SLA.constraints[0],
        joules_per_request=3.5,
    )


def table(*entries: CarriedRate) -> CapacityTable:
    return CapacityTable(
        sla=SLA, mean_input_tokens=512.0, mean_output_tokens=64.5, entries=undominated(entries)
    )


FOUND = table(carried(4, 36, 40, 44), carried(1, 9, 10, 11), carried(2, 17, 20), carried(3, 15, 18))


def test_more_devices_that_may_carry_less_are_left_out() -> None:
    """By low ends: what was never run may be simulated far too high."""
    ran = replace(carried(1, 9, 10, 11), fidelity=Fidelity.MEASURED)
    assert undominated([ran, carried(2, 8, 15, 22)]) == (ran,)
    assert len(undominated([ran, carried(2, 9.1, 15, 22)])) == 2


def test_how_each_entry_is_known_reads_back_and_old_rows_were_simulated() -> None:
    ran = replace(carried(1, 9, 10, 11), fidelity=Fidelity.MEASURED)
    document = ran.to_json()
    assert CarriedRate.from_json(document) == ran
    del document["fidelity"]
    assert CarriedRate.from_json(document).fidelity is Fidelity.SIMULATED
    # Low ends of tables before went up and down.
    old = {
        **FOUND.to_json(),
        "entries": [e.to_json() for e in (carried(1, 9, 10), carried(2, 8, 11))],
    }
    assert len(CapacityTable.from_json(old).entries) == 2


def test_more_devices_that_carry_less_are_left_out() -> None:
    assert [(e.num_devices, e.num_replicas, e.rate_rps) for e in FOUND.entries] == [
        (1, 1, 10),
        (2, 2, 20),
        (4, 4, 40),
    ]


@pytest.mark.parametrize(
    ("rate", "most", "devices"),
    [
        (0, None, 1),
        (9, None, 1),
        (9.5, None, 2),
        (30, None, 4),
        (30, 3, None),
        (40, None, None),
    ],
)
def test_the_cheapest_is_the_first_whose_low_end_carries_the_rate(
    rate: float, most: int | None, devices: int | None
) -> None:
    found = cheapest(FOUND, rate, most_devices=most)
    assert (None if found is None else found.num_devices) == devices


def test_no_rate_that_is_none_is_looked_up() -> None:
    for rate in (-1.0, math.nan, math.inf):
        with pytest.raises(PolicyInputError, match="must be at least 0"):
            cheapest(FOUND, rate)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 16), st.floats(0.1, 1e4), st.booleans()), max_size=8),
    st.floats(0, 1e4),
)
def test_a_table_reads_back_and_names_no_dearer_entry_than_needed(
    rows: list[tuple[int, float, bool]], rate: float
) -> None:
    found = table(*(carried(n, r / 2, r, 2 * r if has_high else None) for n, r, has_high in rows))
    assert CapacityTable.from_json(json.loads(json.dumps(found.to_json()))) == found
    chosen = cheapest(found, rate)
    enough = [e.num_devices for e in found.entries if e.low_rps >= rate]
    assert (None if chosen is None else chosen.num_devices) == (min(enough) if enough else None)


def test_what_is_no_table_is_refused_with_its_part() -> None:
    document = FOUND.to_json()
    with pytest.raises(PolicyInputError, match=r"schema 'x' is not"):
        CapacityTable.from_json({**document, "schema": "x"})
    with pytest.raises(PolicyInputError, match="cannot be read"):
        CapacityTable.from_json({**document, "entries": [{}]})
    with pytest.raises(PolicyInputError, match="in order of devices"):
        CapacityTable.from_json({**document, "entries": document["entries"][::-1]})
    with pytest.raises(PolicyInputError, match="must hold"):
        carried(1, 5, 4)

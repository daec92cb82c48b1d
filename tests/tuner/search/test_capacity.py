"""A job's recommendation tells what rate each plan carries, where that is asked for."""

from __future__ import annotations

import pytest

from policies.capacity_table import CapacityTable
from tuner.search.spec import TuningSpec
from tuner.search.tune import prepare, tune
from tuner.spec.errors import TunerError

SPEC = TuningSpec(
    model_dir="llama-3.1-8b",
    num_devices=2,
    workload="poisson:rate=20,input=1024,output=2,requests=30",
    sla="p95_ttft_ms<=150",
    trials=1,
    hardware="2xh100",
    max_model_len=2048,
    capacity_table=True,
)


@pytest.mark.slow
def test_a_recommendation_has_the_table() -> None:
    document = tune(SPEC).to_json()
    assert TuningSpec.from_json(document["spec"]) == SPEC
    table = CapacityTable.from_json(document["recommendation"]["capacity_table"])
    assert [entry.num_devices for entry in table.entries] == [1, 2]
    assert table.entries[0].rate_rps < table.entries[1].rate_rps


def test_a_closed_loop_is_refused_before_anything_is_simulated() -> None:
    closed = "closed:concurrency=4,input=64,output=4,requests=8"
    with pytest.raises(TunerError, match="a capacity table is of rates"):
        prepare(TuningSpec.from_json({**SPEC.to_json(), "workload": closed}))

"""What an answer says of the engine that serves it."""

from __future__ import annotations

import json

from api.cli.answers import serve_defaults
from api.documents.answer import read_answer
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import WeightFormat
from engine.spec.settings import Settings
from tuner.search.report import SCHEMA
from tuner.search.spec import TuningSpec


def test_what_was_tuned_with_quantised_ranks_is_served_by_such() -> None:
    spec = TuningSpec(
        model_dir="m",
        num_devices=2,
        workload="poisson:rate=4,input=64,output=8,seconds=5",
        sla="p95_ttft_ms<=500",
        quantization=WeightFormat.W8A8,
    )
    found = {"settings": Settings(plan=ParallelPlan(tp=2)).to_json()}
    document = {
        "schema": SCHEMA,
        "recommendation": found,
        "alternatives": {},
        "spec": spec.to_json(),
    }
    options = serve_defaults(read_answer(json.loads(json.dumps(document))))
    assert (options["plan"], options["quantization"]) == ("tp=2", "w8a8")

from __future__ import annotations

import json
from typing import Any

import pytest

from api.documents.tuning_spec import job_document, tuning_spec
from api.schemas.tuning import TuningJobCreate
from api.services.job_checks import job_spec
from engine.spec.quantisation import WeightFormat
from tuner.search.spec import TuningSpec
from tuner.spec.errors import TunerError

JOB: dict[str, Any] = {
    "model_dir": "llama-3.1-8b",
    "num_devices": 2,
    "workload": "poisson:rate=4,input=64,output=8,seconds=5",
    "sla": "p95_ttft_ms<=500",
    "trials": 4,
    "seed": 0,
    "hardware": "8xh200",
    "dtype": None,
    "options": {},
}


@pytest.mark.parametrize("kept", [{}, {"backend": None}])
def test_a_job_kept_before_a_backend_was_goes_on_as_it_began(kept: dict[str, Any]) -> None:
    assert tuning_spec({**JOB, **kept}).backend == "gearshift"


@pytest.mark.parametrize(("hardware", "backend"), [("8xh200", "vllm"), ("local", "gearshift")])
def test_a_spec_without_a_backend_is_kept_with_the_one_it_is_about(
    hardware: str, backend: str
) -> None:
    spec = TuningSpec(
        model_dir="m", num_devices=2, workload=JOB["workload"], sla=JOB["sla"], hardware=hardware
    )
    assert spec.backend == backend
    assert job_document(spec)["backend"] == backend
    assert tuning_spec(job_document(spec)) == spec


def test_a_job_says_what_its_ranks_quantise_to_and_one_of_before_says_nothing() -> None:
    here = {**JOB, "hardware": "local"}
    assert tuning_spec(here).quantization is None
    spec = tuning_spec({**here, "quantization": "w8a8"})
    assert spec.quantization is WeightFormat.W8A8
    assert tuning_spec(json.loads(json.dumps(job_document(spec)))) == spec
    assert tuning_spec({**here, "options": {"quantization": "int8"}}).quantization == "int8"
    with pytest.raises(TunerError, match="described hardware"):
        tuning_spec({**JOB, "quantization": "w8a8"})
    with pytest.raises(TunerError, match="int4"):
        tuning_spec({**here, "quantization": "int4"})


def test_devices_are_counted_on_the_hardware_that_options_name() -> None:
    body = TuningJobCreate(
        model_dir="m",
        workload="w",
        sla="p95_ttft_ms<=500",
        hardware="8xh200",
        options={"hardware": "2xh200"},
    )
    assert job_spec(body)["num_devices"] == 2

"""What cost models say of settings over REST, and how right they have been."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from store import Database
from tests.tuner.profiles import made_up_profile
from tests.tuner.worlds import SMALL
from tuner.step_model.fit import fit_step_model

Json = dict[str, Any]
ASKED: Json = {
    "model": "model",
    "settings": {"plan": {"tp": 2}, "caps": {"max_num_seqs": 16, "max_num_batched_tokens": 512}},
    "workload": "poisson:rate=4,input=64,output=8,requests=40",
    "sla": "p95_ttft_ms<=500",
}


IN_INT8: Json = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "strategy": "channel"}}},
    }
}


@pytest.fixture(scope="module")
def step_model() -> Json:
    """A step model of a made-up machine."""
    fitted = fit_step_model(made_up_profile(), SMALL).to_json()
    document: Json = json.loads(json.dumps(fitted, default=dataclasses.asdict))
    return document


@pytest.fixture
def cost_model(client: TestClient, step_model: Json) -> str:
    """It is kept; its URL."""
    answer = client.post("/v1/cost-models", json={"document": step_model})
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])


@pytest.mark.usefixtures("model_dir")
def test_settings_are_predicted_on_a_workload_with_intervals_and_a_verdict(
    client: TestClient, cost_model: str
) -> None:
    answer = client.post(f"{cost_model}:predict", json=ASKED)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["fidelity"], told["requests"]["completed"]) == ("simulated", 40)
    ends = told["intervals"]["p95_ttft_ms"]
    assert ends["low"] <= told["metrics"]["ttft_ms"]["p95"] <= ends["high"]
    assert told["sla"] is not None
    assert told["workload"]["rows"] == 40
    assert "profiled on another model" in " ".join(told["warnings"])


@pytest.mark.usefixtures("model_dir")
def test_an_uploaded_trace_is_predicted_by_its_id(client: TestClient, cost_model: str) -> None:
    rows = "".join(f"{i},32,4\n" for i in range(30))
    trace = f"arrival_s,input_tokens,output_tokens\n{rows}"
    workload = client.post("/v1/workloads", content=trace).json()["id"]
    body = {**ASKED, "workload": f"{workload},requests=10"}
    answer = client.post(f"{cost_model}:predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["requests"]["completed"] == 10


@pytest.mark.parametrize(
    ("changes", "pointer", "told"),
    [
        ({"workload": "poisson:rate=1000,input=1,output=1,seconds=60"}, "", "at most 20000 are"),
        ({"settings": {"plan": {"tp": 0}}}, "/settings", "tp=0"),
        ({"workload": "csv:trace.csv"}, "/workload", "POST /v1/workloads"),
        ({"workload": f"wl_{0:021x}"}, "/workload", "does not exist"),
        ({"model": "/etc"}, "/model", "GEARSHIFT_MODEL_ROOT"),
        ({"model": "nowhere"}, "/model", "there is no such file"),
        ({"sla": "fast"}, "/sla", "fast"),
    ],
)
@pytest.mark.usefixtures("model_dir")
def test_what_cannot_be_predicted_is_refused_by_name(
    client: TestClient, cost_model: str, changes: Json, pointer: str, told: str
) -> None:
    answer = client.post(f"{cost_model}:predict", json={**ASKED, **changes})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert told in error["detail"]


def test_a_model_of_plain_weights_predicts_no_quantised_checkpoint(
    client: TestClient, step_model: Json, model_dir: Path
) -> None:
    """A plain checkpoint may be asked about as quantised at its load."""
    urls = {
        weights: client.post(
            "/v1/cost-models", json={"document": {**step_model, "weights": weights}}
        ).headers["location"]
        for weights in ("plain", "w8a8")
    }
    assert client.post(f"{urls['w8a8']}:predict", json=ASKED).status_code == 200
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, **IN_INT8}))
    answer = client.post(f"{urls['plain']}:predict", json=ASKED)
    assert (answer.status_code, answer.json()["code"]) == (422, "cannot_predict")
    assert "plain weights, and this engine's are" in answer.json()["detail"]


@pytest.mark.usefixtures("model_dir")
def test_a_document_that_is_no_step_model_predicts_nothing_and_has_no_held_out_error(
    client: TestClient,
) -> None:
    made = client.post("/v1/cost-models", json={"document": {"fingerprint": "a"}})
    url = made.headers["location"]
    answer = client.post(f"{url}:predict", json=ASKED)
    assert (answer.status_code, answer.json()["code"]) == (422, "cannot_predict")
    assert client.get(f"{url}/calibration").json()["held_out"] is None
    assert client.post("/v1/cost-models/cm_0:predict", json=ASKED).status_code == 404


def test_calibration_compares_live_trials_with_what_was_predicted(
    client: TestClient, cost_model: str, job_body: Json, database: Database
) -> None:
    body = {**job_body, "cost_model_id": cost_model.rpartition("/")[2]}
    job_id = client.post("/v1/tuning-jobs", json=body).json()["id"]
    predicted = {"p95_ttft_ms": {"value": 100.0, "low": 90.0, "high": 120.0}}
    with database.begin() as uow:
        for number, (fidelity, ttft_ms) in enumerate(
            [("probed", 110.0), ("probed", 200.0), ("measured", 110.0), ("simulated", 100.0)]
        ):
            metrics = {"p95_ttft_ms": {"value": ttft_ms, "low": ttft_ms, "high": ttft_ms}}
            record = {"number": number, "state": "complete", "fidelity": fidelity}
            uow.trials.add(job_id, {**record, "metrics": metrics, "predicted": predicted})
    told = client.get(f"{cost_model}/calibration").json()
    assert told["num_trials"] == 3
    assert "held out" in told["held_out"]["verdict"]
    (metric,) = told["metrics"]
    assert metric["metric"] == "p95_ttft_ms"
    assert metric["median_ratio"] == pytest.approx(1.1)
    assert metric["p90_off"] == pytest.approx(2.0)
    assert metric["inside_interval"] == pytest.approx(2 / 3)

"""Recommendations over REST: how to start them elsewhere."""

from __future__ import annotations

import httpx
from starlette.testclient import TestClient

from store import Database
from tests.api.worlds import CALM, add_recommendation, engine_body, recommendation_document
from tests.models import MODEL
from tuner.work.counts import model_sizes


def test_a_recommendation_is_exported_as_the_command_of_a_system_that_can_run_it(
    client: TestClient, database: Database
) -> None:
    path = f"/v1/recommendations/{add_recommendation(database)}/export"
    arctic = client.get(path, params={"format": "arctic"})
    assert arctic.status_code == 200, arctic.text
    found = arctic.json()
    assert f"--shift-parallel-threshold {CALM.threshold_tokens}" in found["command"]
    assert found["script"].splitlines()[-1] == found["command"]

    vllm = client.get(path, params={"format": "vllm"})
    assert (vllm.status_code, vllm.json()["code"]) == (409, "no_command")
    assert "no sequence parallelism" in vllm.json()["detail"]
    assert client.get(path, params={"format": "vlm"}).status_code == 422
    assert client.get(path).status_code == 422


def test_a_recommendation_for_a_model_of_another_name_is_applied_with_a_warning(
    client: TestClient, database: Database
) -> None:
    engine_id = client.post("/v1/engines", json=engine_body()).json()["id"]

    def warnings(model_dir: str) -> list[str]:
        found = add_recommendation(database, model_dir=model_dir)
        body = {"engine_id": engine_id, "reason": "a test"}
        answer = client.post(f"/v1/recommendations/{found}:apply?dry_run=true", json=body)
        assert answer.status_code == 200, answer.text
        return [text for text in answer.json()["warnings"] if "one model" in text]

    served = engine_body()["model_name"]
    assert warnings(f"/models/{served}/") == []
    assert warnings("qwen3-32b") == [
        f"tuned for qwen3-32b, and the engine serves {served}: see that they are one model"
    ]


def test_a_recommendation_for_a_model_of_other_sizes_is_not_applied(
    client: TestClient, database: Database
) -> None:
    engine_id = client.post("/v1/engines", json=engine_body()).json()["id"]
    served = model_sizes(MODEL)

    def applied(path: str = ":apply", **sizes: int) -> httpx.Response:
        found = add_recommendation(database, model=served | sizes, model_dir="llama-3.1-70b")
        body = {"engine_id": engine_id, "reason": "a test"}
        if path == ":apply":
            return client.post(f"/v1/recommendations/{found}:apply", json=body)
        return client.post("/v1/rollouts", json={**body, "recommendation_id": found})

    for path in (":apply", "rollout"):
        refused = applied(path, num_layers=80)
        assert (refused.status_code, refused.json()["code"]) == (409, "other_model")
        told = refused.json()["detail"]
        assert "for llama-3.1-70b, and engine chat serves tiny (num_layers 80, not 2): tune" in told
    assert client.get(f"/v1/engines/{engine_id}").json()["desired_version"] == 1
    assert applied(vocab_size=served["vocab_size"] + 8).status_code == 200  # a tuning of it


def test_what_recommends_nothing_or_was_tuned_on_own_ranks_is_not_exported(
    client: TestClient, database: Database
) -> None:
    kept = {
        "empty": {},
        "older": {"settings": CALM.to_json()},
        "own": {
            **recommendation_document(),
            "launch": [{"system": "gearshift", "command": "gearshift engine serve"}],
        },
    }
    with database.begin() as uow:
        ids = {
            name: uow.recommendations.add(
                job_id=uow.jobs.add(spec={}, num_trials=1, created_by="key_test").id,
                cost_model_id=None,
                sla="p95_ttft_ms<=500",
                document=document,
                schedule=None,
                warnings=[],
            ).id
            for name, document in kept.items()
        }
    told = {
        name: client.get(f"/v1/recommendations/{row_id}/export?format=vllm").json()
        for name, row_id in ids.items()
    }
    assert told["empty"]["code"] == "nothing_recommended"
    assert "earlier versions" in told["older"]["detail"]
    assert "tune on described hardware" in told["own"]["detail"]
    own = client.get(f"/v1/recommendations/{ids['own']}/export?format=gearshift")
    assert own.json()["command"] == "gearshift engine serve"

"""A dry run tells what the change would have done on the load that the engine had."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from starlette.testclient import TestClient

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from store import Database
from tests.api.worlds import acknowledge, heartbeat_body, recommendation_document, register
from tests.tuner.profiles import made_up_profile
from tests.tuner.worlds import SMALL
from tuner.step_model.fit import fit_step_model

Json = dict[str, Any]
ONE = Settings(plan=ParallelPlan(dp=1), caps=Caps(max_num_seqs=128, max_num_batched_tokens=1024))
SPEC: Json = {
    "model_dir": "llama-3.1-8b",
    "hardware": "2xh100",
    "dtype": None,
    "backend": "gearshift",
}


# As the service keeps a job of this machine: fields of the tuner that nobody named are nowhere.
HERE: Json = {**SPEC, "hardware": "local", "backend": None, "options": {}}


def tuned_engine(
    client: TestClient, database: Database, spec: Json = SPEC, cost_model_id: str | None = None
) -> str:
    """An engine that runs what a job recommended, by default one for described hardware."""
    engine_id = register(client, policy=ONE.to_json())
    with database.begin() as uow:
        job = uow.jobs.add(spec=spec, num_trials=1, created_by="key_test")
        found = uow.recommendations.add(
            job_id=job.id,
            cost_model_id=cost_model_id,
            sla="p95_ttft_ms<=500,attainment>=0.9",
            document=recommendation_document() | {"settings": ONE.to_json()},
            schedule=None,
            warnings=[],
        ).id
    assert (
        client.post(f"/v1/recommendations/{found}:apply", json={"engine_id": engine_id}).status_code
        == 200
    )
    acknowledge(client, engine_id)
    return engine_id


def dry_run(client: TestClient, engine_id: str, patch: Json) -> Json:
    url = f"/v1/engines/{engine_id}/policy"
    answer = client.patch(
        url,
        json=patch,
        params={"dry_run": True},
        headers={"If-Match": client.get(url).headers["ETag"]},
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_settings_in_force_and_wanted_ones_are_simulated_on_the_load_that_was(
    client: TestClient, database: Database
) -> None:
    engine_id = tuned_engine(client, database)
    patch = {"caps": {"max_num_seqs": 16, "max_num_batched_tokens": 16}}
    assert dry_run(client, engine_id, patch)["effect_missing"] == (
        "no request of this engine is on record"
    )
    policy = client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]
    body = heartbeat_body(arrived=20, policy=policy, window_s=40.0)
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202
    found = dry_run(client, engine_id, patch)
    assert found["effect_missing"] is None
    effect = found["effect"]
    assert effect["candidate"]["caps"]["max_num_batched_tokens"] == 16
    assert effect["num_draws"] > 1
    # Prompts of 64 tokens in four steps instead of one.
    ttft = next(e for e in effect["effects"] if e["metric"] == "p95_ttft_ms")
    assert ttft["candidate"] > ttft["current"]
    assert effect["attainment"]["low"] <= effect["attainment"]["change"]
    assert client.get(f"/v1/engines/{engine_id}/policy").json()["version"] == 2


def test_of_an_engine_that_was_tuned_on_this_machine_its_cost_model_tells(
    client: TestClient, database: Database
) -> None:
    fitted = fit_step_model(made_up_profile(), SMALL).to_json()
    with database.begin() as uow:
        kept = uow.cost_models.add(
            fingerprint="here",
            document=json.loads(json.dumps(fitted, default=dataclasses.asdict)),
            created_by="key_test",
        )
    engine_id = tuned_engine(client, database, HERE, kept.id)
    policy = client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]
    body = heartbeat_body(arrived=20, policy=policy, window_s=40.0)
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202
    found = dry_run(client, engine_id, {"caps": {"max_num_batched_tokens": 16}})
    assert found["effect_missing"] is None
    assert found["effect"]["num_requests"] > 0


def test_what_cannot_be_told_is_told_why(client: TestClient) -> None:
    engine_id = register(client)
    found = dry_run(client, engine_id, {"caps": {"max_num_seqs": 8}})
    assert found["effect"] is None
    assert "no recommendation is in force" in found["effect_missing"]
    assert dry_run(client, engine_id, {})["effect_missing"] == "these are the settings in force"

"""A dry run tells what the change would have done on the load that the engine had."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.documents.policy import model_to_json
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import Quantisation, WeightFormat
from engine.spec.settings import Caps, Settings
from store import Database
from tests.api.worlds import acknowledge, heartbeat_body, recommendation_document, register
from tests.models import MODEL
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


W8A8 = Quantisation(format=WeightFormat.W8A8, at_load=True, is_kept=True, has_head=True)
# As the service keeps a job of this machine: fields of the tuner that nobody named are nowhere.
HERE: Json = {**SPEC, "hardware": "local", "backend": None, "options": {}}


@pytest.fixture(scope="module")
def step_model() -> Json:
    """Of a made-up machine, as older versions fitted them: it says nothing of weights."""
    fitted = fit_step_model(made_up_profile(), SMALL).to_json()
    read: Json = json.loads(json.dumps(fitted, default=dataclasses.asdict))
    return read


def keep(database: Database, step_model: Json) -> str:
    with database.begin() as uow:
        return uow.cost_models.add(
            fingerprint="here", document=step_model, created_by="key_test"
        ).id


def tuned_engine(
    client: TestClient,
    database: Database,
    spec: Json = SPEC,
    cost_model_id: str | None = None,
    told: list[str] | None = None,
    **registered: Any,
) -> str:
    """An engine that runs what a job recommended, by default one for described hardware; ``told``
    takes the warnings of its being applied."""
    engine_id = register(client, policy=ONE.to_json(), **registered)
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
    answer = client.post(f"/v1/recommendations/{found}:apply", json={"engine_id": engine_id})
    assert answer.status_code == 200, answer.text
    if told is not None:
        told += answer.json()["warnings"]
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
    client: TestClient, database: Database, step_model: Json
) -> None:
    engine_id = tuned_engine(client, database, HERE, keep(database, step_model))
    policy = client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]
    body = heartbeat_body(arrived=20, policy=policy, window_s=40.0)
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202
    found = dry_run(client, engine_id, {"caps": {"max_num_batched_tokens": 16}})
    assert found["effect_missing"] is None
    assert found["effect"]["num_requests"] > 0


def test_step_times_of_other_weights_than_the_engine_holds_tell_nothing(
    client: TestClient, database: Database, step_model: Json
) -> None:
    """What an engine quantises as it loads is in its registration."""
    model = model_to_json(replace(MODEL, quantisation=W8A8))
    told: dict[str, tuple[list[str], Json]] = {}
    for weights in ("plain", "w8a8"):
        kept = keep(database, {**step_model, "weights": weights})
        warnings: list[str] = []
        engine_id = tuned_engine(
            client, database, HERE, kept, warnings, name=f"of-{weights}", model=model
        )
        policy = client.get(f"/v1/engines/{engine_id}").json()["effective_policy"]
        body = heartbeat_body(arrived=20, policy=policy, window_s=40.0)
        client.post(f"/v1/engines/{engine_id}/heartbeats", json=body)
        told[weights] = (warnings, dry_run(client, engine_id, {"caps": {"max_num_seqs": 16}}))
    warnings, found = told["plain"]
    assert "tuned with plain weights, and the engine holds w8a8 ones" in " ".join(warnings)
    assert found["effect"] is None
    assert "profiled with plain weights, and this engine's are w8a8" in found["effect_missing"]
    warnings, found = told["w8a8"]
    assert "weights" not in " ".join(warnings)
    assert found["effect_missing"] is None


def test_what_cannot_be_told_is_told_why(client: TestClient) -> None:
    engine_id = register(client)
    found = dry_run(client, engine_id, {"caps": {"max_num_seqs": 8}})
    assert found["effect"] is None
    assert "no recommendation is in force" in found["effect_missing"]
    assert dry_run(client, engine_id, {})["effect_missing"] == "these are the settings in force"

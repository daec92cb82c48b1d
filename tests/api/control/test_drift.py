"""Steps that drift away from the recommendation lead to one tuning job, offered and not forced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.app import create_app
from api.control.controller import Controller
from api.documents.tuning_spec import tuning_spec
from api.jobs.kept_traces import KeptTraces
from api.jobs.tuner_backend import TunerBackend
from api.services import retunes
from api.services.audit import service_caller
from api.services.job_moves import move
from api.web.settings import ServiceSettings
from policies.drift import DriftLimits
from store import Database
from store.models import EngineLoad, EngineRow, Heartbeat, JobState, TuningJob
from store.models.base import utc_now
from tests.api.worlds import (
    CALM,
    acknowledge,
    context_of,
    heartbeat_body,
    recommendation_document,
    register,
    require_no_failure,
    schedule,
    shift_loads,
)

Json = dict[str, Any]
SLOWDOWN = 1.2
READING_S = 31.0
# As by default, but that the alarm needs no quarter of an hour.
QUICK = DriftLimits(threshold=0.5)
SLA = "p95_ttft_ms<=500"
# 64 tokens a step, 10 ms each.
STEPS: Json = {"mode": "shift", "tokens_up_to": 64, "steps": 100, "seconds": 1.0, "tokens": 6400}


def document() -> Json:
    return recommendation_document() | {"expected_steps": [STEPS]}


@pytest.fixture
def controller(client: TestClient) -> Iterator[Controller]:
    context = context_of(client)
    yield Controller(context, drift_limits=QUICK)
    require_no_failure(client)


@pytest.fixture
def engine_id(client: TestClient, database: Database, job_body: Json) -> str:
    """An engine that runs what a job on described hardware recommended."""
    job = client.post("/v1/tuning-jobs", json=job_body).json()["id"]
    with database.begin() as uow:
        move(uow, uow.jobs.get(job), JobState.SUCCEEDED, "done")
        found = uow.recommendations.add(
            job_id=job,
            cost_model_id=None,
            sla=SLA,
            document=document(),
            schedule=schedule().to_json(),
            warnings=[],
        ).id
    engine_id = register(client, "e" * 120)  # as long as a name may be
    answer = client.post(f"/v1/recommendations/{found}:apply", json={"engine_id": engine_id})
    assert answer.status_code == 200, answer.text
    acknowledge(client, engine_id)
    return engine_id


def beat(client: TestClient, engine_id: str, slowdown: float, arrived: int = 5) -> None:
    steps = STEPS | {"seconds": STEPS["seconds"] * slowdown}
    body = heartbeat_body(arrived=arrived, policy=CALM.to_json(), steps=[steps])
    assert client.post(f"/v1/engines/{engine_id}/heartbeats", json=body).status_code == 202


def let_time_pass(database: Database, seconds: float) -> None:
    """As if all that happened had happened so much earlier."""
    with database.begin() as uow:
        for row in uow.session.scalars(sa.select(Heartbeat)):
            row.received_at -= timedelta(seconds=seconds)
        shift_loads(uow, -int(seconds))
        for engine in uow.session.scalars(sa.select(EngineRow)):
            if engine.drift_memory is not None:
                kept = engine.drift_memory
                engine.drift_memory = kept | {"read_s": kept["read_s"] - seconds}


def live(
    client: TestClient,
    database: Database,
    engine_id: str,
    *controllers: Controller,
    slowdown: float,
    readings: int,
) -> None:
    """Half minutes of traffic, each seen by every controller."""
    for _ in range(readings):
        let_time_pass(database, READING_S)
        beat(client, engine_id, slowdown)
        for controller in controllers:
            controller.tick()


def remember_load(database: Database, engine_id: str, minutes: int = 30) -> None:
    """Minutes of load before those of the test."""
    start_s = int(utc_now().timestamp() // 60 * 60) - 7200
    with database.begin() as uow:
        uow.loads.put(
            EngineLoad(
                engine_id=engine_id,
                start_s=start_s + 60 * nth,
                seen_s=60.0,
                requests=10.0 + nth,
                input_tokens=64.0 * (10 + nth),
                output_tokens=3.0 * (10 + nth),
            )
            for nth in range(minutes)
        )


def retuned(database: Database) -> list[TuningJob]:
    with database.read() as uow:
        query = sa.select(TuningJob).where(TuningJob.retune_key.is_not(None))
        return list(uow.session.scalars(query))


def reasons(client: TestClient, engine_id: str) -> list[str]:
    found = client.get("/v1/decisions", params={"engine_id": engine_id, "limit": 100}).json()
    return [d["reason"] for d in reversed(found) if d["reason"].startswith("model_")]


def metric(client: TestClient, name: str) -> float | None:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                return sample.value
    return None


def patch_guards(client: TestClient, engine_id: str, **guards: Any) -> None:
    url = f"/v1/engines/{engine_id}/policy"
    headers = {"if-match": client.get(url).headers["etag"]}
    answer = client.patch(url, json={"guards": guards}, headers=headers)
    assert answer.status_code == 200, answer.text
    acknowledge(client, engine_id)


def test_steps_as_foreseen_lead_to_nothing(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    remember_load(database, engine_id)
    live(client, database, engine_id, controller, slowdown=1.05, readings=15)
    assert retuned(database) == []
    assert reasons(client, engine_id) == []
    assert metric(client, "gearshift_drift_alarm") == 0.0


def test_a_slowdown_of_a_fifth_leads_to_one_job_for_the_load_and_the_steps_of_now(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    remember_load(database, engine_id)
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=15)
    (job,) = retuned(database)
    spec = tuning_spec(job.spec)
    assert spec.step_scale == pytest.approx(SLOWDOWN, rel=0.01)
    assert (spec.sla, spec.hardware, spec.trials) == (SLA, "8xh200", 4)
    assert job.workload_id == spec.workload
    facts = client.get(f"/v1/workloads/{spec.workload}").json()
    assert facts["rows"] >= sum(range(10, 40))
    assert facts["input_tokens"]["mean"] == pytest.approx(64.0)
    assert reasons(client, engine_id) == ["model_drifted", "model_retune_queued"]
    assert metric(client, "gearshift_drift_alarm") == 1.0
    assert metric(client, "gearshift_step_time_ratio") == pytest.approx(SLOWDOWN, rel=0.01)


def test_where_no_device_is_free_a_job_of_this_machine_takes_steps_as_they_were_seen(
    client: TestClient,
    controller: Controller,
    settings: ServiceSettings,
    database: Database,
    engine_id: str,
) -> None:
    """The engine itself holds them, and the model at hand is the one that it has drifted from."""
    remember_load(database, engine_id)
    with database.begin() as uow:
        (origin,) = uow.session.scalars(sa.select(TuningJob))
        origin.spec = {**origin.spec, "hardware": "local", "backend": None}
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=15)
    (job,) = retuned(database)
    backend = TunerBackend(settings.places, KeptTraces(database, settings.uploads_dir))
    assert tuning_spec(job.spec).step_scale == 1.0, "measured anew"
    simulated = tuning_spec(backend.without_devices(job.spec))
    assert simulated.step_scale == pytest.approx(SLOWDOWN, rel=0.01)


def test_two_control_planes_that_both_see_it_queue_one_job(
    client: TestClient,
    controller: Controller,
    settings: ServiceSettings,
    database: Database,
    engine_id: str,
) -> None:
    remember_load(database, engine_id)
    with TestClient(create_app(settings)) as other:
        context = context_of(other)
        both = (controller, Controller(context, drift_limits=QUICK))
        live(client, database, engine_id, *both, slowdown=SLOWDOWN, readings=15)
    assert len(retuned(database)) == 1


def test_of_two_that_ask_at_the_same_moment_one_gets_a_job(
    client: TestClient, settings: ServiceSettings, database: Database, engine_id: str
) -> None:
    """Without the engine's row held: the database itself keeps the second one out."""
    remember_load(database, engine_id)
    beat(client, engine_id, 1.0, arrived=60)
    other = Database(settings.effective_database_url)
    start, got = threading.Barrier(2), []

    def ask(database: Database) -> None:
        start.wait(timeout=30)
        with database.begin() as uow:
            job = retunes.request(
                uow,
                uow.engines.get(engine_id),
                ratio=SLOWDOWN,
                per_day=1,
                now=utc_now(),
                caller=service_caller("controller"),
            )
            got.append(job)

    threads = [threading.Thread(target=ask, args=(each,)) for each in (database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    other.close()
    assert sorted(job is None for job in got) == [False, True]
    assert len(retuned(database)) == 1


def test_no_budget_no_job(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    remember_load(database, engine_id)
    patch_guards(client, engine_id, retunes_per_day=0)
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=12)
    assert retuned(database) == []
    assert reasons(client, engine_id) == ["model_drifted"]


def finish(database: Database, job: TuningJob) -> str:
    """What a worker would leave of the job; the recommendation's id."""
    with database.begin() as uow:
        move(uow, uow.jobs.get(job.id), JobState.SUCCEEDED, "done")
        return uow.recommendations.add(
            job_id=job.id,
            cost_model_id=None,
            sla=SLA,
            document=document() | {"expected_steps": [STEPS | {"seconds": SLOWDOWN}]},
            schedule=schedule().to_json(),
            warnings=[],
        ).id


def in_force(client: TestClient, engine_id: str) -> str:
    return str(client.get(f"/v1/engines/{engine_id}").json()["recommendation_id"])


def test_what_the_job_recommends_is_offered_once_and_not_applied(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    remember_load(database, engine_id)
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=12)
    before = in_force(client, engine_id)
    found = finish(database, *retuned(database))
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=4)
    acknowledge(client, engine_id)
    assert in_force(client, engine_id) == before
    assert reasons(client, engine_id)[2:] == ["model_retune_offered"]
    newest = client.get("/v1/decisions", params={"engine_id": engine_id}).json()
    assert found in {d["observed"].get("recommendation_id") for d in newest}


def test_where_the_policy_says_so_it_is_applied_and_the_alarm_is_over(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    remember_load(database, engine_id)
    patch_guards(client, engine_id, apply_retuned=True)
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=12)
    found = finish(database, *retuned(database))
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=1)
    acknowledge(client, engine_id)
    assert in_force(client, engine_id) == found
    live(client, database, engine_id, controller, slowdown=SLOWDOWN, readings=12)
    assert reasons(client, engine_id)[2:] == ["model_retune_applied"]
    assert len(retuned(database)) == 1
    assert metric(client, "gearshift_drift_alarm") == 0.0


@pytest.mark.parametrize(
    ("guards", "words"),
    [
        ({"apply_retuned": 1}, "/guards/apply_retuned: 1 is not true or false"),
        ({"allow_shedding": "no"}, "/guards/allow_shedding: 'no' is not true or false"),
        ({"retunes_per_day": True}, "/guards/retunes_per_day: True is not a number"),
    ],
)
def test_guards_of_the_wrong_kind_are_refused_by_name(
    client: TestClient, engine_id: str, guards: Json, words: str
) -> None:
    url = f"/v1/engines/{engine_id}/policy"
    headers = {"if-match": client.get(url).headers["etag"]}
    answer = client.patch(url, json={"guards": guards}, headers=headers)
    assert answer.status_code == 422
    assert words in answer.text

"""What several API tests build: a registered engine, a recommendation, heartbeats."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from starlette.testclient import TestClient

from api.documents.policy import ENGINE_PART, model_to_json
from api.web.context import AppContext
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.points import Estimate
from policies.schedule import LoadBand, Schedule
from store import Database, UnitOfWork
from store.models import EngineLoad
from tests.models import MODEL
from tuner.hardware import Precision
from tuner.launch.command import Served
from tuner.launch.commands import launch_commands

Json = dict[str, Any]
PLAN = ParallelPlan(sp=2, shift=True)
CALM = Settings(
    plan=PLAN,
    threshold_tokens=256,
    caps=Caps(max_num_seqs=64, max_num_batched_tokens=2048),
)
BUSY = Settings(
    plan=PLAN,
    threshold_tokens=512,
    caps=Caps(max_num_seqs=128, max_num_batched_tokens=512),
)


def engine_body(name: str = "chat", **changes: Any) -> Json:
    """A registration of a two-rank engine."""
    return {
        "name": name,
        "model_name": "tiny",
        "public_url": "http://127.0.0.1:9000",
        "host": "node-1",
        "model": model_to_json(MODEL),
        "envelope": asdict(Caps(max_num_seqs=256, max_num_batched_tokens=8192)),
        "capabilities": [{"name": "mode", "class": "hot"}],
        "policy": Settings(plan=PLAN).to_json(),
        **changes,
    }


def register(client: TestClient, name: str = "chat", **changes: Any) -> str:
    """Register an engine and return its id."""
    answer = client.post("/v1/engines", json=engine_body(name, **changes))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def etag_of(client: TestClient, engine_id: str) -> str:
    """The ETag of the policy that it is asked to run."""
    return str(client.get(f"/v1/engines/{engine_id}/policy").headers["etag"])


def patched(client: TestClient, engine_id: str, body: Json, etag: str | None, **params: Any) -> Any:
    """Merge ``body`` into its policy; ``etag`` None: without a precondition."""
    headers = {} if etag is None else {"If-Match": etag}
    url = f"/v1/engines/{engine_id}/policy"
    return client.patch(url, json=body, headers=headers, params=params)


def heartbeat_body(*, arrived: int, policy: Json, ttft_ms: float = 40.0, **changes: Any) -> Json:
    """One second in which ``arrived`` requests came, and as many finished with this TTFT."""
    request = {
        "age_ms": 900.0,
        "token_ms": [ttft_ms, ttft_ms + 20, ttft_ms + 40],
        "input_tokens": 64,
        "outcome": "completed",
    }
    return {
        "window_s": 1.0,
        "arrived": arrived,
        "policy_version": 1,
        "policy": policy,
        "stats": {"running": 1},
        "requests": [request] * arrived,
        "steps": [
            {"mode": "shift", "tokens_up_to": 64, "steps": 10, "seconds": 0.1, "tokens": 300}
        ],
        **changes,
    }


def schedule() -> Schedule:
    """Two bands: below and above 10 requests per second; alone a first token takes 30 ms."""
    return Schedule(
        alone={"p50_ttft_ms": Estimate(value=30.0, low=25.0, high=35.0)},
        bands=(
            LoadBand(
                rate_rps_low=0,
                rate_rps_high=10,
                mean_input_tokens=64,
                mean_output_tokens=3,
                settings=CALM,
                headroom=0.5,
            ),
            LoadBand(
                rate_rps_low=10,
                rate_rps_high=100,
                mean_input_tokens=64,
                mean_output_tokens=3,
                settings=BUSY,
                headroom=0.2,
            ),
        ),
    )


def recommendation_document() -> Json:
    """What the tuner writes under ``recommendation``."""
    return {
        "settings": CALM.to_json(),
        "fidelity": "simulated",
        "predicted": {"ttft_ms": {"p95": 120.0}, "attainment": 1.0},
        "measured": None,
        "reason": "cheapest",
        "launch": [
            command.to_json() for command in launch_commands(CALM, Served(precision=Precision.BF16))
        ],
    }


def add_recommendation(database: Database, *, model: Json | None = None, **spec: Any) -> str:
    """Keep a recommendation as a finished job would; ``model``: the sizes of the tuned one."""
    with database.begin() as uow:
        job = uow.jobs.add(spec=spec, num_trials=1, created_by="key_test")
        return uow.recommendations.add(
            job_id=job.id,
            cost_model_id=None,
            sla="p95_ttft_ms<=500",
            document=recommendation_document() | ({} if model is None else {"model": model}),
            schedule=schedule().to_json(),
            warnings=[],
        ).id


def acknowledge(client: TestClient, engine_id: str, **changes: Any) -> Json:
    """Act as the engine: read the policy asked for and say it is in force."""
    policy = client.get(f"/v1/engines/{engine_id}/policy").json()
    requested = policy["requested"]
    engine_part = {k: requested[k] for k in ENGINE_PART if k in requested}
    answer = client.post(
        f"/v1/engines/{engine_id}/policy/versions/{policy['version']}:acknowledge",
        json={"result": "applied", "policy": engine_part, "seconds": 0.01, **changes},
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def context_of(client: TestClient) -> AppContext:
    """What the application behind ``client`` works with, for loops that a test turns by hand."""
    context: AppContext = client.app.state.context
    return context


def require_no_failure(client: TestClient) -> None:
    """No loop of the service behind ``client`` has failed at a turn."""
    lines = client.get("/metrics").text.splitlines()
    failures = [line for line in lines if line.startswith("gearshift_control_failures_total")]
    assert failures
    assert all(line.endswith(" 0.0") for line in failures), failures


def shift_loads(uow: UnitOfWork, by_s: int) -> None:
    """Move the minutes of load that are kept. They are a key, and PostgreSQL looks for equal ones
    row by row: hence by way of a time that has none."""
    far_s = 10**9
    for step_s in (far_s, by_s - far_s):
        uow.session.execute(sa.update(EngineLoad).values(start_s=EngineLoad.start_s + step_s))

"""A real engine with its agent against the service on a real port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.agent.agent import EngineAgent
from api.agent.credential import CredentialFile
from api.web.settings import ServiceSettings
from engine.engine import Engine
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.modes import BASE, SHIFT, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, SamplingParams
from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from store import Database
from tests.api.conftest import ADMIN
from tests.api.live import (
    running_service,
)
from tests.api.worlds import engine_body
from tests.waiting import wait_until
from tuner.servers.process import free_port

Json = dict[str, Any]


class ConstantTimer:
    """Every step takes a millisecond on each stage."""

    def __init__(self, plan: ParallelPlan) -> None:
        self._pp = plan.pp

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return (1e-3,) * self._pp

    def host_seconds(self, shape: StepShape) -> float:
        return 0.0


@pytest.fixture
def engine(model_dir: Path) -> Iterator[Engine]:
    """A wall-paced engine of two simulated ranks."""
    config = EngineConfig(
        model_dir=model_dir,
        executor=ExecutorKind.SIMULATED,
        max_devices=4,
        settings=Settings(plan=ParallelPlan(sp=2, shift=True)),
    )
    with Engine(config, timer_factory=ConstantTimer) as engine:
        yield engine


def _agent(engine: Engine, url: str, credential_dir: Path | None = None) -> EngineAgent:
    return EngineAgent(
        engine=engine,
        control_url=url,
        api_key=ADMIN,
        public_url="http://127.0.0.1:1",
        name="chat",
        heartbeat_s=0.05,
        credential_dir=credential_dir,
    )


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN}"})


def _generate(engine: Engine, request_id: str, max_tokens: int = 4) -> None:
    done = threading.Event()
    engine.submit(
        Request(
            request_id=request_id,
            prompt_ids=(5, 6, 7),
            sampling=SamplingParams(max_tokens=max_tokens),
            arrival_s=0.0,
        ),
        lambda output: done.set() if output.is_finished else None,
    )
    assert done.wait(30)


def _patch(client: httpx.Client, engine_id: str, body: Json) -> Json:
    url = f"/v1/engines/{engine_id}/policy"
    etag = client.get(url).headers["etag"]
    answer = client.patch(url, json=body, headers={"If-Match": etag})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_an_engine_registers_reports_exact_timings_and_follows_its_policy(
    engine: Engine, settings: ServiceSettings, database: Database
) -> None:
    with running_service(settings) as url, _client(url) as client:
        agent = _agent(engine, url)
        agent.start()
        wait_until(lambda: agent.engine_id is not None)
        engine_id = str(agent.engine_id)
        wait_until(lambda: client.get(f"/v1/engines/{engine_id}").json()["applied_version"] == 1)

        _patch(client, engine_id, {"shift": {"threshold_tokens": 17}, "mode": "shift"})
        wait_until(lambda: engine.policy.version == 2)
        assert (engine.settings.threshold_tokens, engine.settings.pin) == (17, ModePin(SHIFT))

        _generate(engine, "r1")
        wait_until(lambda: _finished(database, engine_id))
        (request,) = _finished(database, engine_id)
        assert request["input_tokens"] == 3
        assert len(request["token_ms"]) == 4
        assert request["token_ms"] == sorted(request["token_ms"])

        agent.stop()
        assert client.get(f"/v1/engines/{engine_id}").json()["last_heartbeat_at"] is None


def test_a_new_plan_is_applied_by_a_reshape_and_its_class_is_kept(
    engine: Engine, settings: ServiceSettings, database: Database
) -> None:
    with running_service(settings) as url, _client(url) as client:
        agent = _agent(engine, url)
        agent.start()
        wait_until(lambda: agent.engine_id is not None)
        engine_id = str(agent.engine_id)
        _patch(client, engine_id, {"plan": {"sp": 1, "tp": 1}, "shift": {"enabled": False}})
        versions = f"/v1/engines/{engine_id}/policy/versions"
        wait_until(lambda: client.get(versions).json()[0]["ack_state"] == "applied")
        assert engine.settings.plan == ParallelPlan()
        newest = client.get(versions).json()[0]
        assert newest["ack_changes"] == {"plan": "reshape"}
        assert newest["ack_seconds"] > 0
        assert newest["ack_transition"]["way"] == "blue_green"
        assert newest["ack_transition"]["peak_devices"] == 3
        # Within this guard the new ranks cannot start beside the old ones.
        _patch(client, engine_id, {"plan": {"tp": 2}, "guards": {"max_gpus": 2}})
        wait_until(lambda: client.get(versions).json()[0]["ack_state"] == "applied")
        assert client.get(versions).json()[0]["ack_transition"]["way"] == "stop_and_carry"
        agent.stop()


def test_what_the_engine_refuses_is_replaced_by_what_it_runs(
    engine: Engine, settings: ServiceSettings, database: Database
) -> None:
    with running_service(settings) as url, _client(url) as client:
        agent = _agent(engine, url)
        agent.start()
        wait_until(lambda: agent.engine_id is not None)
        engine_id = str(agent.engine_id)
        engine._inventory = replace(engine.inventory, max_ranks=2)  # devices that it has lost since
        _patch(client, engine_id, {"plan": {"sp": 4}})
        versions = f"/v1/engines/{engine_id}/policy/versions"
        wait_until(lambda: len(client.get(versions).json()) == 3)
        adopted, refused, _ = client.get(versions).json()
        assert refused["ack_state"] == "refused"
        assert "needs 4 devices" in refused["ack_message"]
        assert adopted["origin"] == "adopted"
        assert adopted["document"]["plan"]["sp"] == 2
        agent.stop()


def test_the_engine_serves_through_an_outage_and_catches_up_after_it(
    engine: Engine, settings: ServiceSettings, database: Database
) -> None:
    port = free_port()
    with running_service(settings, port) as url:
        agent = _agent(engine, url)
        agent.start()
        wait_until(lambda: agent.engine_id is not None)
        engine_id = str(agent.engine_id)
    _generate(engine, "during")
    with running_service(settings, port) as url, _client(url) as client:
        _patch(client, engine_id, {"mode": "base"})
        wait_until(lambda: engine.settings.pin == ModePin(BASE))
        assert str(agent.engine_id) == engine_id
        assert len(client.get("/v1/engines").json()) == 1
        agent.stop()


def test_an_agent_waits_for_a_control_plane_that_comes_later(
    engine: Engine, settings: ServiceSettings, database: Database
) -> None:
    port = free_port()
    agent = _agent(engine, f"http://127.0.0.1:{port}")
    agent.start()
    _generate(engine, "alone")
    with running_service(settings, port):
        wait_until(lambda: agent.engine_id is not None)
        agent.stop()


def test_a_second_engine_of_one_name_waits_until_the_first_has_ended_and_changes_nothing(
    engine: Engine,
    settings: ServiceSettings,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even on one machine, where both find the same folder of credentials."""
    monkeypatch.setattr("api.agent.agent.RETRY_REFUSED_S", 0.2)
    other = Engine(
        replace(engine.config, settings=Settings(plan=ParallelPlan(tp=1))),
        timer_factory=ConstantTimer,
    )
    with running_service(settings) as url, _client(url) as client, other:
        first = _agent(engine, url, tmp_path)
        first.start()
        wait_until(lambda: first.engine_id is not None)
        assert [file.stat().st_mode & 0o777 for file in tmp_path.glob("*.credential")] == [0o600]
        second = _agent(other, url, tmp_path)
        second.start()
        path = f"/v1/engines/{first.engine_id}"
        _patch(client, str(first.engine_id), {"mode": "base"})
        wait_until(lambda: client.get(path).json()["applied_version"] == 2)
        assert second.engine_id is None
        assert (engine.settings.plan, other.settings.plan) == (
            ParallelPlan(sp=2, shift=True),
            ParallelPlan(tp=1),
        )
        first.stop()
        wait_until(lambda: second.engine_id is not None)
        second.stop()


def test_an_engine_that_starts_again_is_the_same_while_the_old_one_counts_as_alive(
    engine: Engine, settings: ServiceSettings, database: Database, tmp_path: Path
) -> None:
    with running_service(settings) as url:
        kept = CredentialFile(tmp_path, control_url=url, name="chat")
        with _client(url) as client:
            body = engine_body("chat", takes_credential=True)
            born = client.post("/v1/engines", json=body).json()
        kept.keep(born["credential"])
        kept.close()  # as the end of its process does, however that comes
        agent = _agent(engine, url, tmp_path)
        agent.start()
        wait_until(lambda: agent.engine_id is not None)
        assert agent.engine_id == born["id"]
        agent.stop()


def _finished(database: Database, engine_id: str) -> list[Json]:
    from datetime import timedelta

    from store.models.base import utc_now

    with database.read() as uow:
        beats = uow.engines.list_heartbeats(engine_id, since=utc_now() - timedelta(minutes=1))
    return [request for beat in beats for request in beat.requests]

"""What ``/metrics`` shows of engines under control, at every control plane."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.app import create_app
from api.control.controller import Controller
from api.web.metrics import ServiceMetrics
from api.web.settings import ServiceSettings
from store import Database
from tests.api.control.control_world import beat, scheduled
from tests.api.worlds import acknowledge, add_recommendation, register


def test_of_an_engine_whose_row_cannot_be_read_no_metric_is_shown_and_of_others_all(
    client: TestClient, controller: Controller, engine_id: str, database: Database
) -> None:
    other = scheduled(client, database, "other")
    for engine in (engine_id, other):
        beat(client, engine, 6)
    controller.tick()
    with database.begin() as uow:
        row = uow.engines.get(engine_id)
        row.live_window, row.drift_memory = {"of": "another version"}, {"of": "another version"}
    text = client.get("/metrics").text
    assert 'gearshift_slo_attainment_ratio{engine="other"}' in text
    assert 'gearshift_slo_attainment_ratio{engine="chat"}' not in text


def test_attainment_and_latency_are_shown_as_metrics(
    client: TestClient, controller: Controller, engine_id: str
) -> None:
    beat(client, engine_id, 6, ttft_ms=900.0)
    controller.tick()
    text = client.get("/metrics").text
    assert 'gearshift_slo_attainment_ratio{engine="chat"} 0.0' in text
    labels = '{engine="chat",metric="ttft",percentile="p95"}'
    assert f"gearshift_observed_seconds{labels} 0.9" in text
    assert f"gearshift_predicted_seconds{labels} 0.12" in text
    assert f"gearshift_prediction_error_ratio{labels} 6.5" in text


def _shared_series(text: str) -> list[str]:
    """What every control plane should say alike: all but its own counters."""
    own = (*(f"gearshift_{name}" for name in ("control", "decisions", "re", "rollback")), "#")
    return [line for line in text.splitlines() if not line.startswith(own)]


def test_every_control_plane_of_a_database_shows_what_the_one_that_controls_saw(
    client: TestClient, controller: Controller, settings: ServiceSettings, engine_id: str
) -> None:
    beat(client, engine_id, 6)
    controller.tick()
    own = client.get("/metrics").text
    with TestClient(create_app(settings)) as other:
        others = other.get("/metrics").text
    assert "gearshift_slo_attainment_ratio{" in others
    assert _shared_series(others) == _shared_series(own)
    assert 'gearshift_decisions_total{action="hold"' in own
    assert "gearshift_decisions_total{" not in others  # so that the sum counts each one once


def test_engines_that_ended_and_windows_that_are_old_are_not_shown(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    beat(client, engine_id, 6)
    controller.tick()
    fresh_s = 0.0  # whatever was seen is too old by then
    assert b'engine="chat"' not in ServiceMetrics(fresh_s=fresh_s).render(database)
    assert 'engine="chat"' in client.get("/metrics").text
    assert client.post(f"/v1/engines/{engine_id}:deregister").status_code == 204
    assert 'engine="chat"' not in client.get("/metrics").text


def _desired(client: TestClient) -> dict[str, float]:
    """Desired replicas by engine."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    (family,) = (f for f in families if f.name == "gearshift_desired_replicas")
    return {sample.labels["engine"]: sample.value for sample in family.samples}


def test_engines_of_a_model_need_as_many_replicas_as_their_loads_together(
    client: TestClient, controller: Controller, database: Database, engine_id: str
) -> None:
    beat(client, engine_id, 130)  # the schedule serves 100 requests/s
    controller.tick()
    assert _desired(client) == {"chat": 2}
    other = register(client, "chat-2", host="node-2")
    beat(client, other, 90)
    assert _desired(client) == {}, "the load of one engine is not known, so nothing is"
    url = f"/v1/recommendations/{add_recommendation(database)}:apply"
    assert client.post(url, json={"engine_id": other}).status_code == 200
    acknowledge(client, other)
    acknowledge(client, engine_id)
    beat(client, other, 90)
    controller.tick()
    assert _desired(client) == {"chat": 3, "chat-2": 3}

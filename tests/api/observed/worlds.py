"""What tests of observed engines build: a capacity table, an engine held to it, its load."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

from api.documents.servers import stats_of
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.capacity_table import CapacityTable, CarriedRate
from policies.server_window import ServerWindow
from policies.sla import Sla
from store import Database
from store.engines import Window
from tuner.servers.snapshot import Snapshot

Json = dict[str, Any]
SLA = "p95_ttft_ms<=500"
RATE_OF_ONE_RPS = 10.0


def settings_of(tp: int, **caps: Any) -> Settings:
    return Settings(
        plan=ParallelPlan(tp=tp), caps=Caps(max_num_seqs=64, max_num_batched_tokens=2048, **caps)
    )


def capacity_table(**caps: Any) -> Json:
    """Plans of 1, 2 and 4 devices: each carries 10 requests/s, of 64 input and 3 output tokens."""
    entries = tuple(
        CarriedRate(settings=settings_of(tp, **caps), rate_rps=rate, low_rps=rate, high_rps=rate)
        for tp, rate in ((tp, tp * RATE_OF_ONE_RPS) for tp in (1, 2, 4))
    )
    table = CapacityTable(
        sla=Sla.parse(SLA), mean_input_tokens=64.0, mean_output_tokens=3.0, entries=entries
    )
    return table.to_json()


def observe(client: TestClient, **changes: Any) -> str:
    """Have the service look at a server; the engine's id."""
    body = {
        "name": "chat",
        "system": "vllm",
        "url": "http://127.0.0.1:1",
        "plan": "tp=1",
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "model": "/m",
        **changes,
    }
    answer = client.post("/v1/engines:observe", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def bind(client: TestClient, engine_id: str, table: Json | None = None) -> Json:
    """Hold it to the table."""
    body = {"capacity_table": capacity_table() if table is None else table}
    answer = client.post(f"/v1/engines/{engine_id}:bind", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def see(database: Database, engine_id: str, rate_rps: float) -> None:
    """As if a second had been seen in which so many requests came and ended."""
    window = ServerWindow(
        window_s=1.0,
        arrived=rate_rps,
        finished=rate_rps,
        lengths_of=rate_rps,
        ended_input_tokens=64 * rate_rps,
        ended_output_tokens=3 * rate_rps,
    )
    with database.begin() as uow:
        uow.engines.add_heartbeats(
            [
                Window(
                    engine_id=engine_id,
                    window_s=1.0,
                    arrived=round(rate_rps),
                    stats=stats_of(window, Snapshot()),
                    requests=[],
                    steps=[],
                )
            ]
        )


def advice(client: TestClient, engine_id: str) -> Json:
    answer = client.get(f"/v1/engines/{engine_id}/advice")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())

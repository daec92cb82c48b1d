"""The client against the service on a real port."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.clients.calls import act
from api.clients.client import AsyncClient, Client, ClientError, Retries
from api.clients.operations import Operations
from api.schemas.examples.tuning import JOB
from api.schemas.serving import PolicyView, RegisteredView
from api.services import jobs
from api.web.settings import ServiceSettings
from store import Database
from store.models import DecisionRow, JobState
from tests.api.conftest import ADMIN
from tests.api.live import running_service
from tests.api.worlds import add_recommendation, engine_body
from tests.examples import list_operations
from tuner.servers.process import free_port

Json = dict[str, Any]


@pytest.fixture
def remote(settings: ServiceSettings, database: Database) -> Iterator[Client]:
    with running_service(settings) as url, Client(url, ADMIN) as client:
        yield client


def test_a_job_is_followed_to_its_end(remote: Client, database: Database, job_body: Json) -> None:
    job_id = remote.create_tuning_job(job_body).id

    def work() -> None:
        for number in range(3):
            with database.begin() as uow:
                uow.jobs.append_event(job_id, "trial", {"number": number})
        with database.begin() as uow:
            jobs.move(uow, uow.jobs.get(job_id), JobState.SUCCEEDED, "done")

    thread = threading.Thread(target=work)
    thread.start()
    events = list(remote.follow_tuning_job(job_id))
    thread.join()
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert [event.type for event in events] == ["state", "trial", "trial", "trial", "state"]
    assert events[-1].data["state"] == "succeeded"


def test_a_job_is_followed_over_the_end_and_the_start_of_its_service(
    settings: ServiceSettings, database: Database, job_body: Json
) -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}", ADMIN) as client:
        with running_service(settings, port):
            job_id = client.create_tuning_job(job_body).id
            events = client.follow_tuning_job(job_id)
            first = next(events)
        told = threading.Event()

        def work() -> None:
            with running_service(settings, port), database.begin() as uow:
                jobs.move(uow, uow.jobs.get(job_id), JobState.RUNNING, "taken up")
                jobs.move(uow, uow.jobs.get(job_id), JobState.SUCCEEDED, "done")
            with running_service(settings, port):
                told.wait(60)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            rest = list(events)
        finally:
            told.set()
            thread.join()
    assert [event.seq for event in (first, *rest)] == [1, 2, 3]
    assert rest[-1].data["state"] == "succeeded"


def test_lists_come_whole_over_their_pages(remote: Client, database: Database) -> None:
    engine_id = _register(remote)
    with database.begin() as uow:
        for number in range(250):
            uow.decisions.add(
                DecisionRow(
                    engine_id=engine_id,
                    action="hold",
                    reason="in_band",
                    band_index=number,
                    settings=None,
                    rejected=[],
                    observed={},
                    policy_version=None,
                )
            )
    bands = [decision.band_index for decision in remote.list_decisions(engine_id)]
    assert bands == list(range(249, -1, -1))


def test_further_pages_are_asked_for_where_the_first_was(remote: Client) -> None:
    """A proxy's client knows another address than the service does, which tells its own in Link."""
    names = [f"engine-{number:03}" for number in range(205)]
    for name in names:
        remote.send(act("/v1/engines", RegisteredView, engine_body(name)))
    remote._http.headers["Host"] = "inside.invalid:1"
    assert [engine.name for engine in remote.list_engines()] == names


def test_an_engine_is_waited_for_until_it_runs_a_version(remote: Client) -> None:
    engine_id = _register(remote)
    assert remote.wait_applied(engine_id, 1).id == engine_id
    with pytest.raises(TimeoutError, match="version 2"):
        remote.wait_applied(engine_id, 2, timeout_s=0.1)


def test_who_waits_for_a_version_that_the_engine_refuses_is_told(remote: Client) -> None:
    engine_id = _register(remote)
    policy = remote.get_engine_policy(engine_id)
    changed = remote.patch_engine_policy(policy, {"caps": {"max_num_seqs": 32}})
    version = changed.policy.version
    refusal = {"result": "refused", "message": "no memory", "policy": policy.effective}
    url = f"/v1/engines/{engine_id}/policy/versions/{version}:acknowledge"
    remote.send(act(url, PolicyView, refusal))
    assert remote.get_engine(engine_id).applied_version > version
    with pytest.raises(TimeoutError, match="refused version 2: no memory"):
        remote.wait_applied(engine_id, version)

    async def wait() -> None:
        async with AsyncClient(str(remote._http.base_url), ADMIN) as client:
            await client.wait_applied(engine_id, version)

    with pytest.raises(TimeoutError, match="refused version 2: no memory"):
        asyncio.run(wait())


def test_a_recommendation_is_applied(remote: Client, database: Database) -> None:
    engine_id = _register(remote)
    recommendation_id = add_recommendation(database)
    schedule = remote.get_recommendation(recommendation_id).schedule
    assert schedule is not None
    assert schedule["bands"]
    answer = remote.apply_recommendation(recommendation_id, engine_id)
    assert answer.policy.requested["provenance"]["recommendation"] == recommendation_id
    assert remote.list_decisions(engine_id) == []


def test_a_refusal_is_raised_with_the_services_own_words(remote: Client, job_body: Json) -> None:
    with pytest.raises(ClientError, match="p95_speed") as caught:
        remote.create_tuning_job({**job_body, "sla": "p95_speed<=1"})
    assert (caught.value.status, caught.value.problem["code"]) == (422, "invalid_request")


# Sent by engines alone, told as streams by methods of their own, or meant for machines that watch.
NOT_FOR_PEOPLE = {
    "register_engine",
    "send_heartbeat",
    "acknowledge_policy_version",
    "is_alive",
    "is_ready",
    "get_metrics",
}
STREAMS = {"follow_tuning_job", "follow_rollout"}


def test_clients_have_every_operation_of_the_description(anonymous: TestClient) -> None:
    document = anonymous.get("/openapi.json").json()
    described = {line.split()[-1] for line in list_operations(document)}
    written = {name for name in dir(Operations) if not name.startswith("_")}
    assert written == described - NOT_FOR_PEOPLE - STREAMS
    for name in written | STREAMS:
        assert getattr(Client, name).__doc__, name
        assert hasattr(AsyncClient, name)


def test_an_awaited_client_answers_as_one_that_waits(
    settings: ServiceSettings, database: Database, job_body: Json, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,8,4\n1,8,4\n")

    async def ask(url: str) -> None:
        async with AsyncClient(url, ADMIN) as client:
            job = await client.create_tuning_job(job_body, key="once")
            assert (await client.create_tuning_job(job_body, key="once")).id == job.id
            workload = await client.create_workload(trace)
            found = await asyncio.gather(client.list_tuning_jobs(), client.list_workloads())
            assert [[row.id for row in rows] for rows in found] == [[job.id], [workload.id]]
            await client.cancel_tuning_job(job.id)
            events = [event async for event in client.follow_tuning_job(job.id)]
            assert events[-1].data["state"] == "cancelled"
            await client.delete_tuning_job(job.id)
            with pytest.raises(ClientError, match="404"):
                await client.get_tuning_job(job.id)

    with running_service(settings) as url:
        asyncio.run(ask(url))


def test_a_policy_is_changed_as_it_was_read_and_not_when_it_has_moved_on(remote: Client) -> None:
    engine_id = _register(remote)
    policy = remote.get_engine_policy(engine_id)
    patch = {"caps": {"max_num_seqs": 3}}
    assert remote.patch_engine_policy(policy, patch, is_dry_run=True).is_dry_run
    changed = remote.patch_engine_policy(policy, patch)
    assert changed.policy.version == policy.version + 1
    with pytest.raises(ClientError) as caught:
        remote.patch_engine_policy(policy, patch)
    assert caught.value.status == 412
    back = remote.roll_back_engine_policy(engine_id)
    assert back.policy.requested["caps"] == policy.requested["caps"]
    assert [v.version for v in remote.list_policy_versions(engine_id)] == [3, 2, 1]


class _Refuses(BaseHTTPRequestHandler):
    """Turns away the first two requests of each kind, as a proxy before a restarting service."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self._answer()

    def _answer(self) -> None:
        seen: list[tuple[str, str | None]] = self.server.seen
        seen.append((self.path, self.headers["Idempotency-Key"]))
        is_early = sum(path == self.path for path, _ in seen) <= 2
        self.send_response(503 if is_early else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_what_is_safe_is_sent_again_under_one_key_and_what_is_not_is_not() -> None:
    with served_by(_Refuses) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(url, "key", retries=Retries(times=2)) as client:
            with pytest.raises(ClientError, match="404"):
                client.get_engine("e")
            with pytest.raises(ClientError, match="404"):
                client.create_tuning_job({})
            with pytest.raises(ClientError, match="503"):
                client.apply_recommendation("r", "e")
    paths = [path for path, _ in server.seen]
    keys = {key for _, key in server.seen if key is not None}
    assert (paths.count("/v1/engines/e"), paths.count("/v1/tuning-jobs")) == (3, 3)
    assert paths.count("/v1/recommendations/r:apply") == 1
    assert len(keys) == 1


class _Restarting(_Refuses):
    """A proxy whose service is away for the first two questions about a job, then has ended it."""

    def do_GET(self) -> None:
        seen: list[tuple[str, str | None]] = self.server.seen
        seen.append((self.path, None))
        if len(seen) <= 2:
            self.send_error(502)
        elif self.path.endswith("/events"):
            self._tell(b'id: 1\nevent: state\ndata: {"state": "succeeded"}\n\n')
        else:
            self._tell(json.dumps(JOB).encode())

    def _tell(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_job_is_followed_over_an_outage_that_a_proxy_tells_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.clients.client.RECONNECT_S", 0.01)
    with served_by(_Restarting) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(url, "key", retries=Retries(times=0)) as client:
            events = list(client.follow_tuning_job("job_1"))
    assert [event.data["state"] for event in events] == ["succeeded"]


@contextmanager
def served_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _register(remote: Client) -> str:
    return remote.send(act("/v1/engines", RegisteredView, engine_body())).id

"""A small client of the service, for programs and the demo."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tuner.load.urls import full_url

Json = dict[str, Any]
RECONNECT_S = 0.5
FINAL_STATES = ("succeeded", "failed", "cancelled", "infeasible")


class ClientError(Exception):
    """The service refused; the message is its own, ``problem`` the whole document."""

    def __init__(self, status: int, problem: Json) -> None:
        details = [f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", [])]
        message = "; ".join([str(problem.get("detail", "no detail")), *details])
        super().__init__(f"{status} {problem.get('code', '')}: {message}")
        self.status = status
        self.problem = problem

    @classmethod
    def of(cls, response: httpx.Response) -> ClientError:
        """What an answer with an error says."""
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            problem = {"detail": response.text[:200]}
        return cls(response.status_code, problem)


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One event of a job's stream."""

    seq: int
    type: str
    data: Json


class GearshiftClient:
    """Calls the service at ``url`` with a key. Use as a context manager, from one thread.

    Every method raises :class:`ClientError` for a refusal and ``httpx.TransportError`` when the
    service cannot be reached.
    """

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 30.0) -> None:
        self._http = httpx.Client(
            base_url=full_url(url),
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=timeout_s,
        )

    def __enter__(self) -> GearshiftClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- tuning --------------------------------------------------------------------------------

    def create_job(self, spec: Json) -> Json:
        """Queue a tuning job (``TuningJobCreate``); returns it."""
        return self._object("POST", "/v1/tuning-jobs", json=spec)

    def get_job(self, job_id: str) -> Json:
        return self._object("GET", f"/v1/tuning-jobs/{job_id}")

    def get_report(self, job_id: str) -> Json:
        """The tuner's whole answer; ClientError 409 while there is none."""
        return self._object("GET", f"/v1/tuning-jobs/{job_id}/report")

    def follow_job(self, job_id: str) -> Iterator[JobEvent]:
        """Every event until the job is finished, over reconnects and outages of the service."""
        after, is_over = 0, False
        while not is_over:
            try:
                # Looked at before the stream: one that ends then has told everything.
                is_final = self.get_job(job_id)["state"] in FINAL_STATES
                for event in self._events(job_id, after):
                    after = event.seq
                    yield event
                is_over = is_final
            except httpx.TransportError:
                time.sleep(RECONNECT_S)
            except ClientError as error:
                if error.status != httpx.codes.SERVICE_UNAVAILABLE:
                    raise
                time.sleep(RECONNECT_S)

    # -- workloads ------------------------------------------------------------------------------

    def upload_workload(self, path: Path, *, name: str, form: str) -> Json:
        """Upload a trace, streamed; returns the workload."""
        with path.open("rb") as file:
            params = {"name": name, "form": form}
            headers = {"Content-Type": "text/csv"}
            return self._object(
                "POST", "/v1/workloads", content=file, params=params, headers=headers
            )

    def list_workloads(self) -> list[Json]:
        """Uploaded traces, newest first."""
        return self._all("/v1/workloads")

    def delete_workload(self, workload_id: str) -> None:
        self._send("DELETE", f"/v1/workloads/{workload_id}")

    # -- recommendations and engines -----------------------------------------------------------

    def get_recommendation(self, recommendation_id: str) -> Json:
        return self._object("GET", f"/v1/recommendations/{recommendation_id}")

    def apply_recommendation(
        self,
        recommendation_id: str,
        engine_id: str,
        *,
        is_dry_run: bool = False,
        reason: str = "apply recommendation",
    ) -> Json:
        """Make it the engine's next policy, or only say what that would change; the change set."""
        path = f"/v1/recommendations/{recommendation_id}:apply"
        body = {"engine_id": engine_id, "reason": reason}
        params = {"dry_run": "true"} if is_dry_run else {}
        return self._object("POST", path, json=body, params=params)

    def list_engines(self) -> list[Json]:
        return self._all("/v1/engines")

    def get_engine(self, engine_id: str) -> Json:
        return self._object("GET", f"/v1/engines/{engine_id}")

    def wait_applied(self, engine_id: str, version: int, *, timeout_s: float = 300.0) -> Json:
        """The engine once it runs ``version`` or a later one.

        Raises:
            TimeoutError: it did not within the time, or refused.
        """
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            engine = self.get_engine(engine_id)
            if engine["applied_version"] >= version:
                return engine
            time.sleep(0.2)
        raise TimeoutError(f"engine {engine_id} does not run version {version}")

    def list_decisions(self, engine_id: str) -> list[Json]:
        """Decisions of the controller, newest first."""
        return self._all("/v1/decisions", engine_id=engine_id)

    # -- sending -------------------------------------------------------------------------------

    def _events(self, job_id: str, after: int) -> Iterator[JobEvent]:
        request = self._http.build_request(
            "GET",
            f"/v1/tuning-jobs/{job_id}/events",
            headers={"Last-Event-ID": str(after)},
            timeout=httpx.Timeout(30.0, read=60.0),
        )
        response = self._http.send(request, stream=True)
        try:
            if response.is_error:
                response.read()
                raise ClientError.of(response)
            yield from _parse_events(response.iter_lines())
        finally:
            response.close()

    def _all(self, path: str, **params: str) -> list[Json]:
        """Every page of a list."""
        response = self._send("GET", path, params={"limit": 200, **params})
        rows: list[Json] = response.json()
        while "next" in response.links:
            response = self._send("GET", response.links["next"]["url"])
            rows += response.json()
        return rows

    def _object(self, method: str, path: str, **options: Any) -> Json:
        found: Json = self._send(method, path, **options).json()
        return found

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = self._http.request(method, path, **options)
        if response.is_error:
            raise ClientError.of(response)
        return response


def _parse_events(lines: Iterator[str]) -> Iterator[JobEvent]:
    """Server-sent events; comments and half an event at the end are dropped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield JobEvent(
                seq=int(fields["id"]), type=fields["event"], data=json.loads(fields["data"])
            )
            fields = {}

"""What the control planes accepted: jobs and policy changes, and whether they kept their word."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from api.clients.client import Client

Json = dict[str, Any]
ACCEPT_S = 90.0
PAUSE_S = 0.2
# A stream that hangs is noticed by the client itself within 60 s.
FOLLOWED_S = 75.0
NUM_TRIALS = 3
FINAL = ("succeeded", "failed", "cancelled", "infeasible")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One attempt to change a policy: ``status`` is what the service answered, if it did."""

    engine: str
    reason: str
    asked: Json
    status: int | None
    version: int | None


class Ledger:
    """Asks for jobs and changes of policies, remembers each answer, and looks whether it holds.

    A job is asked for under one idempotency key until a service accepts it, of whichever it is.
    """

    def __init__(self, urls: list[str], key: str, job: Json) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(headers=headers, timeout=20.0, limits=limits, trust_env=False)
        self._urls = urls
        self._job = job
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.jobs: dict[str, set[str]] = {}
        self.ended: dict[str, str] = {}
        self._key = key
        self._followers: dict[str, threading.Thread] = {}
        # Jobs whose cancelling was accepted; None: nobody knows whether it was.
        self._cancels: dict[str, bool | None] = {}
        self.changes: list[Change] = []
        self.faults: list[str] = []
        self.refusals: Counter[str] = Counter()

    def close(self) -> None:
        self._http.close()

    # -- asking --------------------------------------------------------------------------------

    def submit(self, rng: random.Random) -> str | None:
        """Ask for a job until it is accepted; its id."""
        with self._lock:
            key = f"chaos-job-{next(self._numbers)}"
            self.jobs[key] = set()
        body = {**self._job, "seed": rng.randrange(1000)}
        end_s = time.monotonic() + ACCEPT_S
        while time.monotonic() < end_s:
            answer = self.call(
                rng.choice(self._urls), "POST", "/v1/tuning-jobs", body, {"Idempotency-Key": key}
            )
            if answer is not None and answer.status_code == httpx.codes.ACCEPTED:
                job_id = str(answer.json()["id"])
                self.jobs[key].add(job_id)
                self._follow(job_id, rng.choice(self._urls))
                return job_id
            self._note("job", answer)
            time.sleep(PAUSE_S)
        self.faults.append(f"{key}: no service accepted the job within {ACCEPT_S:g} s")
        return None

    def _follow(self, job_id: str, url: str) -> None:
        """Read a job's events as they come, on a thread of its own, whatever the service does."""

        def read() -> None:
            try:
                with Client(url, self._key) as client:
                    found = [event.seq for event in client.follow_tuning_job(job_id)]
            except Exception as error:
                self.faults.append(f"{job_id} cannot be followed: {error!r}")
            else:
                if found != list(range(1, len(found) + 1)):
                    self.faults.append(f"{job_id}: its follower heard of the events {found}")

        self._followers[job_id] = threading.Thread(target=read, daemon=True)
        self._followers[job_id].start()

    def cancel_one(self, rng: random.Random) -> None:
        """Ask once for an open job to be cancelled, if there is one."""
        if open_jobs := self.open_jobs():
            job_id = rng.choice(open_jobs)
            answer = self.call(rng.choice(self._urls), "POST", f"/v1/tuning-jobs/{job_id}:cancel")
            if answer is None:
                self._cancels[job_id] = None
            elif answer.is_success:
                self._cancels[job_id] = True
            else:
                self._note("cancel", answer)

    def patch(self, url: str, engine_id: str, asked: Json) -> Change:
        """Ask once for a change of a policy, under a reason of its own."""
        with self._lock:
            reason = f"chaos-patch-{next(self._numbers)}"
        read = self.call(url, "GET", f"/v1/engines/{engine_id}/policy")
        answer = None
        if read is not None and read.is_success:
            headers = {
                "If-Match": read.headers["ETag"],
                "Content-Type": "application/merge-patch+json",
            }
            path = f"/v1/engines/{engine_id}/policy?reason={reason}"
            answer = self.call(url, "PATCH", path, asked, headers)
        return self._keep(engine_id, reason, asked, answer)

    def apply(self, url: str, recommendation_id: str, engine_id: str) -> Change:
        """Ask once for a recommendation to be applied."""
        with self._lock:
            reason = f"chaos-apply-{next(self._numbers)}"
        path = f"/v1/recommendations/{recommendation_id}:apply"
        answer = self.call(url, "POST", path, {"engine_id": engine_id, "reason": reason})
        return self._keep(engine_id, reason, {}, answer)

    def _keep(
        self, engine_id: str, reason: str, asked: Json, answer: httpx.Response | None
    ) -> Change:
        is_made = answer is not None and answer.is_success
        change = Change(
            engine=engine_id,
            reason=reason,
            asked=asked,
            status=None if answer is None else answer.status_code,
            version=answer.json()["policy"]["version"] if is_made and answer else None,
        )
        if not is_made:
            self._note(reason.rsplit("-", 1)[0], answer)
        with self._lock:
            self.changes.append(change)
        return change

    def call(
        self,
        url: str,
        method: str,
        path: str,
        body: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response | None:
        """One call; None where the connection broke or nobody was there."""
        content = None if body is None else json.dumps(body).encode()
        headers = {**({"Content-Type": "application/json"} if body else {}), **(headers or {})}
        try:
            return self._http.request(method, url + path, content=content, headers=headers)
        except httpx.TransportError:
            return None

    def read(self, path: str) -> Any:
        """A JSON answer of whichever service answers first.

        Raises:
            TimeoutError: none does.
        """
        end_s = time.monotonic() + ACCEPT_S
        while time.monotonic() < end_s:
            for url in self._urls:
                answer = self.call(url, "GET", path)
                if answer is not None and answer.is_success:
                    return answer.json()
            time.sleep(PAUSE_S)
        raise TimeoutError(f"no service answers {path} (last: {answer and answer.text})")

    def _note(self, what: str, answer: httpx.Response | None) -> None:
        """A refusal under a fault is fine if it says what it is; a 500 says nothing."""
        if answer is None:
            return
        self.refusals[f"{what} {answer.status_code}"] += 1
        if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            self.faults.append(f"{what} answered by 500: {answer.text[:300]}")
        elif answer.headers.get("content-type") != "application/problem+json":
            self.faults.append(f"{what} answered by {answer.status_code}, no problem document")

    # -- looking -------------------------------------------------------------------------------

    def open_jobs(self) -> list[str]:
        """Accepted jobs that have not ended yet."""
        ids = [job for found in self.jobs.values() for job in found]
        for job_id in ids:
            if job_id not in self.ended:
                state = self.read(f"/v1/tuning-jobs/{job_id}")["state"]
                if state in FINAL:
                    self.ended[job_id] = state
                    self.faults += self._check_job(job_id, state)
        return [job_id for job_id in ids if job_id not in self.ended]

    def doubled_jobs(self) -> list[str]:
        """Keys under which more than one job was made."""
        return [f"{key}: {sorted(ids)}" for key, ids in self.jobs.items() if len(ids) > 1]

    def check_changes(self) -> list[str]:
        """An accepted change is there once and whole, a refused one is nowhere."""
        found: list[str] = []
        versions: dict[str, list[Json]] = {}
        changes, self.changes = self.changes, []
        for change in changes:
            if change.engine not in versions:
                versions[change.engine] = self._versions(change.engine)
            kept = [v for v in versions[change.engine] if v["reason"] == change.reason]
            if len(kept) > 1:
                found.append(f"{change.reason} is kept {len(kept)} times (doubled)")
            elif change.version is not None and not kept:
                if change.version > 0 and self._was_none(change, versions[change.engine]):
                    continue
                found.append(f"{change.reason} was accepted and is lost")
            elif change.status is not None and change.version is None and kept:
                found.append(f"{change.reason} was refused ({change.status}) and is kept")
            found += [
                f"{change.reason} is half applied: {version['document']}"
                for version in kept
                if not _is_within(change.asked, version["document"])
            ]
        return found

    def _was_none(self, change: Change, versions: list[Json]) -> bool:
        """Whether what was asked was in force already, so that no version was written."""
        same = [v for v in versions if v["version"] == change.version]
        return bool(same) and _is_within(change.asked, same[0]["document"])

    def _versions(self, engine_id: str) -> list[Json]:
        found: list[Json] = self.read(f"/v1/engines/{engine_id}/policy/versions?limit=100")
        return found

    def _check_job(self, job_id: str, state: str) -> list[str]:
        """A job that ended has each trial once, each move once, and its follower knows."""
        faults = []
        if (follower := self._followers.pop(job_id, None)) is not None:
            follower.join(FOLLOWED_S)
            if follower.is_alive():
                faults.append(f"{job_id}: its follower has not heard of its end")
        wanted = {True: ("cancelled",), None: ("cancelled", "succeeded")}
        if state not in wanted.get(self._cancels.get(job_id, False), ("succeeded",)):
            reason = self.read(f"/v1/tuning-jobs/{job_id}")["reason"]
            faults.append(f"{job_id} ended as {state}: {reason}")
        trials = self.read(f"/v1/tuning-jobs/{job_id}/trials?limit=100")
        numbers = [trial["number"] for trial in trials]
        if numbers != list(range(NUM_TRIALS if state == "succeeded" else len(numbers))):
            faults.append(f"{job_id} has the trials {numbers}")
        events = self._events(job_id)
        told = [e["data"]["number"] for e in events if e["event"] == "trial"]
        if told != numbers:
            faults.append(f"{job_id} tells of the trials {told}")
        moves = [e["data"]["state"] for e in events if e["event"] == "state"]
        usual = ["queued", "running", state]
        stopped = (["queued", "cancelled"], ["queued", "running", "cancelling", "cancelled"])
        if moves not in (stopped if state == "cancelled" else [usual]):
            faults.append(f"{job_id} moved {moves}")
        if [e["seq"] for e in events] != list(range(1, len(events) + 1)):
            faults.append(f"{job_id}: its events are numbered {[e['seq'] for e in events]}")
        return faults

    def _events(self, job_id: str) -> list[Json]:
        """All events of a job that has ended, from the stream that its followers read."""
        text = None
        for url in itertools.islice(itertools.cycle(self._urls), 20):
            answer = self.call(url, "GET", f"/v1/tuning-jobs/{job_id}/events")
            if answer is not None and answer.is_success:
                text = answer.text
                break
            time.sleep(PAUSE_S)
        events = []
        for block in (text or "").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            if "event" in fields and "id" in fields:
                data = json.loads(fields["data"])
                events.append({"event": fields["event"], "seq": int(fields["id"]), "data": data})
        return events


def _is_within(asked: Json, document: Json) -> bool:
    """Whether every value asked for stands in the document."""
    return all(
        _is_within(value, document.get(name, {}))
        if isinstance(value, dict)
        else document.get(name) == value
        for name, value in asked.items()
    )

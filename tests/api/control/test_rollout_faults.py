"""Two control planes as real processes, a rollout under way, and the one that leads is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import ADMIN
from tests.api.worlds import engine_body, heartbeat_body
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
Json = dict[str, Any]
PATCH = {"caps": {"max_num_seqs": 96}, "sla": "p95_ttft_ms<=500"}
BEAT_S = 0.2
PER_BEAT = 10
LIMITS = {
    "slice_s": 2.0,
    "settle_s": 0.0,
    "wait_s": 0.5,
    "max_exposed_s": 120.0,
    "max_duration_s": 400.0,
}


@contextmanager
def _service(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GEARSHIFT_")}
    own = {
        "GEARSHIFT_DATA_DIR": str(folder),
        "GEARSHIFT_PORT": "0",
        "GEARSHIFT_RUN_WORKER": "false",
        "GEARSHIFT_DASHBOARD": "false",
        "GEARSHIFT_ADMIN_KEY": ADMIN,
        "GEARSHIFT_CONTROL_INTERVAL_S": "0.1",
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", "serve", "--json"],
        env={**clean, **own},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout is not None
        url = json.loads(child.stdout.readline())["url"]
        yield child, url
    finally:
        child.kill()
        child.wait(60)
        assert child.stdout is not None
        child.stdout.close()


class PlayedEngine:
    """Obeys and reports through whichever control plane answers."""

    def __init__(self, urls: list[str], *, candidate_ms: float) -> None:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        self._clients = [httpx.Client(base_url=url, headers=headers) for url in urls]
        self._candidate_ms = candidate_ms
        self._beat_s = time.monotonic()
        self.engine_id = self.ask("POST", "/v1/engines", json=engine_body())["id"]

    def ask(self, method: str, path: str, **options: Any) -> Json:
        for client in self._clients:
            try:
                answer = client.request(method, path, **options)
            except httpx.TransportError:
                continue
            assert answer.is_success, answer.text
            return dict(answer.json())
        raise AssertionError("no control plane answers")

    def live(self) -> None:
        """One heartbeat, and whatever is asked of it."""
        path = f"/v1/engines/{self.engine_id}"
        policy = self.ask("GET", f"{path}/policy")
        is_candidate = policy["effective"]["caps"]["max_num_seqs"] == 96
        now_s = time.monotonic()
        beat = heartbeat_body(
            arrived=PER_BEAT,
            policy=policy["effective"],
            ttft_ms=self._candidate_ms if is_candidate else 40.0,
            window_s=now_s - self._beat_s,
        )
        for request in beat["requests"]:
            request["age_ms"] = (now_s - self._beat_s) * 500
        self._beat_s = now_s
        self.ask("POST", f"{path}/heartbeats", json=beat)
        # What was served until now was served under what was in force until now.
        if policy["version"] != policy["applied_version"]:
            wanted = policy["requested"]
            part = {k: wanted[k] for k in ("plan", "shift", "caps", "scheduler", "mode")}
            body = {"result": "applied", "policy": part, "seconds": 0.01}
            self.ask("POST", f"{path}/policy/versions/{policy['version']}:acknowledge", json=body)
        time.sleep(BEAT_S)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.mark.parametrize(
    ("candidate_ms", "ends"), [(40.0, ("done", "in_force")), (900.0, ("rolled_back", "regression"))]
)
def test_the_other_control_plane_takes_a_rollout_to_its_end(
    tmp_path: Path, candidate_ms: float, ends: tuple[str, str]
) -> None:
    with _service(tmp_path) as (leader, url), _service(tmp_path) as (_, other_url):
        engine = PlayedEngine([url, other_url], candidate_ms=candidate_ms)
        body = {
            "engine_id": engine.engine_id,
            "patch": PATCH,
            "replay": {"skip": True},
            "limits": LIMITS,
        }
        engine.live()
        rollout_id = engine.ask("POST", "/v1/rollouts", json=body)["id"]

        def look() -> Json:
            engine.live()
            return engine.ask("GET", f"/v1/rollouts/{rollout_id}")

        wait_until(lambda: (look()["canary"] or {"pairs": 0})["pairs"] >= 2, timeout_s=120)
        leader.kill()
        leader.wait(60)
        wait_until(lambda: look()["finished_at"] is not None, timeout_s=300)
        found = look()
        assert (found["state"], found["code"]) == ends
        newest = engine.ask("GET", f"/v1/engines/{engine.engine_id}/policy")
        is_candidate = newest["requested"]["caps"]["max_num_seqs"] == 96
        assert is_candidate == (ends[0] == "done")
        engine.close()

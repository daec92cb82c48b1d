"""An engine under a rollout, played by the test: what it is asked for, what it runs and sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from starlette.testclient import TestClient

from api.control.controller import Controller
from api.services import policies
from store import Database
from store.models import EngineRow, Heartbeat, PolicyVersion, RolloutRow, RolloutState
from tests.api.worlds import acknowledge, heartbeat_body, register

Json = dict[str, Any]
SLA = "p95_ttft_ms<=500"
SLICE_S = 30.0
GOOD_MS, BAD_MS = 40.0, 900.0
MOST_TURNS = 200
CANDIDATE_SEQS = 96


def let_time_pass(database: Database, seconds: float) -> None:
    """As if all that happened had happened so much earlier."""
    earlier = timedelta(seconds=seconds)
    with database.begin() as uow:
        for beat in uow.session.scalars(sa.select(Heartbeat)):
            beat.received_at -= earlier
        for engine in uow.session.scalars(sa.select(EngineRow)):
            engine.registered_at -= earlier
            engine.last_heartbeat_at = engine.last_heartbeat_at and (
                engine.last_heartbeat_at - earlier
            )
        for version in uow.session.scalars(sa.select(PolicyVersion)):
            version.acknowledged_at = version.acknowledged_at and version.acknowledged_at - earlier
        for rollout in uow.session.scalars(sa.select(RolloutRow)):
            rollout.canary = rollout.canary and _earlier(rollout.canary, seconds)


def _earlier(canary: Json, seconds: float) -> Json:
    def moved(part: Json) -> Json:
        return {
            name: value - seconds if name.endswith("_s") and value is not None else value
            for name, value in part.items()
        }

    shifted = moved({name: canary[name] for name in ("began_s", "seen_s")})
    return {**canary, **shifted, "slices": [moved(part) for part in canary["slices"]]}


@dataclass
class World:
    """One engine and the service that controls it. What a test only looks at on the way is read
    from the database, which is quicker than a request."""

    client: TestClient
    database: Database
    controller: Controller
    engine_id: str
    new_controller: Callable[[], Controller] | None = None

    @classmethod
    def of(
        cls, client: TestClient, database: Database, controller: Controller, name: str = "chat"
    ) -> World:
        """With an engine that runs under an SLA."""
        world = cls(client, database, controller, register(client, name))
        world.patch({"sla": SLA})
        world.acknowledge()
        return world

    @property
    def engine(self) -> EngineRow:
        with self.database.read() as uow:
            return uow.engines.get(self.engine_id)

    @property
    def requested(self) -> Json:
        """The policy document that the engine is asked for."""
        with self.database.read() as uow:
            return policies.current(uow, uow.engines.get(self.engine_id)).document

    @property
    def max_num_seqs(self) -> int:
        """What the engine is asked for."""
        return int(self.requested["caps"]["max_num_seqs"])

    @property
    def is_candidate(self) -> bool:
        return self.max_num_seqs == CANDIDATE_SEQS

    def patch(self, patch: Json, *, etag: str | None = None) -> Any:
        """Patch the policy by hand; the answer."""
        url = f"/v1/engines/{self.engine_id}/policy"
        headers = {"If-Match": etag or self.client.get(url).headers["etag"]}
        return self.client.patch(url, json=patch, headers=headers)

    def acknowledge(self, **changes: Any) -> None:
        """The engine runs what it is asked for (or not)."""
        acknowledge(self.client, self.engine_id, **changes)

    def start(self, **changes: Any) -> Any:
        """Ask for a rollout of another cap; the answer."""
        body = {
            "engine_id": self.engine_id,
            "patch": {"caps": {"max_num_seqs": CANDIDATE_SEQS}},
            "replay": {"skip": True},
            "limits": {"alpha": 0.3},  # decided after few pairs
            **changes,
        }
        return self.client.post("/v1/rollouts", json=body)

    def begin(self, **changes: Any) -> str:
        """The id of a rollout that has begun its canary."""
        answer = self.start(**changes)
        assert answer.status_code == 202, answer.text
        self.controller.tick()
        return str(answer.json()["id"])

    def begin_serving(self, *, candidate: bool, **changes: Any) -> str:
        """The id of a rollout one of whose arms is asked for."""
        rollout_id = self.begin(**changes)
        self.beat()
        self.controller.tick()
        while self.is_candidate is not candidate:
            self.turn()
        return rollout_id

    def read(self, rollout_id: str) -> Json:
        answer = self.client.get(f"/v1/rollouts/{rollout_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def beat(
        self, ttft_ms: float = GOOD_MS, *, window_s: float = SLICE_S, arrived: int = 6
    ) -> None:
        """A window in whose middle all requests came."""
        policy = self.engine.effective_policy
        body = heartbeat_body(arrived=arrived, policy=policy, ttft_ms=ttft_ms, window_s=window_s)
        for request in body["requests"]:
            request["age_ms"] = window_s * 500
        answer = self.client.post(f"/v1/engines/{self.engine_id}/heartbeats", json=body)
        assert answer.status_code == 202, answer.text

    def turn(self, candidate_ms: float = GOOD_MS, control_ms: float = GOOD_MS) -> None:
        """One slice: the engine obeys, serves, and tells."""
        engine = self.engine
        if engine.applied_version != engine.desired_version:
            self.acknowledge()
        if self.new_controller is not None:
            self.controller = self.new_controller()
        let_time_pass(self.database, SLICE_S)
        self.beat(candidate_ms if self.is_candidate else control_ms)
        self.controller.tick()

    def play(self, rollout_id: str, **served: float) -> Json:
        """Turns until the canary is over; the rollout."""
        self.beat()
        self.controller.tick()
        for _ in range(MOST_TURNS):
            if not self._is_canary(rollout_id):
                break
            self.turn(**served)
        return self.read(rollout_id)

    def _is_canary(self, rollout_id: str) -> bool:
        with self.database.read() as uow:
            return uow.rollouts.get(rollout_id).state is RolloutState.CANARY

"""The loop that brings servers to the settings that their policies ask for, one at a time.

A version that waits is applied by the server's way; its end is kept as an engine of ours would
acknowledge it. What fails is undone: the settings before are put in force again, the version counts
as refused, and the next one that the controller wants waits longer each time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import msgspec
import structlog

from api.control.leader_loop import LeaderLoop
from api.documents.known_servers import (
    COMMAND,
    KnownServer,
    read_known_servers,
)
from api.documents.policy import settings_in
from api.documents.servers import Condition, Restarts
from api.observed.fetch import FetchLimits
from api.observed.restarts import CommandWay, HookWay, RestartError, Wanted
from api.schemas.serving import Acknowledge
from api.services import policies, policy_acks
from api.services.advice import command_of, launch_of
from api.services.audit import service_caller
from api.web.context import AppContext
from engine.spec.settings import Settings
from policies.decision import Action
from store import UnitOfWork
from store.models import AckState, DecisionRow, EngineRow, PolicyVersion, ServerRow, Sight
from store.models.base import utc_now

ACTOR = "restarter"
REASON = "restart_failed"
# After a failure the controller waits so long, and twice as long after each further one.
BACKOFF_S, MOST_BACKOFF_S = 60.0, 3600.0
MOST_MESSAGE = 1000
NO_WAY = "nothing restarts the server any more: the file of servers does not name it"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One restart: to ``wanted``, for a policy's ``version``; ``before`` is what ran until now."""

    wanted: Wanted
    before: Settings
    version: int
    way: HookWay | CommandWay


class Restarter:
    """Restarts servers on a thread, of which one service of those that share a database has one."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._commands = CommandWay()
        self._loop = LeaderLoop(
            context, "restarter", self.tick, every_s=context.settings.observe_interval_s
        )
        self._log = structlog.get_logger("api.observed.restarter")

    def start(self) -> None:
        """Look on a thread until :meth:`stop`."""
        self._loop.start()

    def stop(self) -> None:
        """End the thread. A restart under way is broken off, and begun again by the next service;
        servers that are its own processes end."""
        self._loop.stop(and_then=self._commands.close)

    def tick(self) -> None:
        """Bring every server to what is asked of it, one after the other."""
        with self._context.database.read() as uow:
            engine_ids = [
                engine.id
                for engine, server in uow.servers.list_all()
                if server.restart is not None or engine.applied_version != engine.desired_version
            ]
        for engine_id in engine_ids:
            if self._loop.is_stopping():
                return
            with self._loop.troubles.turn(engine_id):
                job = self._begin(engine_id)
                if job is not None:
                    self._restart(job)

    def _begin(self, engine_id: str) -> Job | None:
        """What is to be done for the engine now; None: nothing. Its row tells that it has begun."""
        with self._context.database.begin() as uow:
            engine = uow.engines.get(engine_id, for_update=True)
            server = uow.servers.find(engine_id, for_update=True)
            if server is None:
                return None
            version = policies.current(uow, engine)
            known = read_known_servers(self._context.settings.servers_file).get(engine.name)
            if server.restart is None or known is None or not known.is_at(server.url):
                self._refuse(uow, engine, version, NO_WAY)
                return None
            wanted, before = settings_in(version.document), settings_in(engine.effective_policy)
            restarts = Restarts.from_json(server.restart)
            if version.ack_state is AckState.PENDING and wanted == before:
                self._acknowledge(uow, engine, version.version, wanted)  # it runs that already
                return None
            if version.ack_state is not AckState.PENDING:
                is_idle = known.restarts_by != COMMAND or self._commands.runs(engine.id, before)
                if is_idle or not restarts.may_begin(time.time()):
                    return None
                wanted = before  # a server of ours that does not run, or not any more
            now_s = utc_now().timestamp()
            condition = Condition.from_json(server.condition)
            server.condition = condition.then(Sight.RESTARTING, now_s).to_json()
            server.restart = msgspec.structs.replace(
                restarts, version=version.version, is_under_way=True
            ).to_json()
            return Job(
                wanted=self._wanted(engine, server, known, wanted, before, version.reason),
                before=before,
                version=version.version,
                way=self._way(known),
            )

    def _way(self, known: KnownServer) -> HookWay | CommandWay:
        settings = self._context.settings
        if known.hook is None:
            return self._commands
        limits = FetchLimits(
            timeout_s=settings.observe_timeout_s,
            max_bytes=settings.observe_max_bytes,
            networks=settings.networks,
        )
        return HookWay(hook=known.hook, root=settings.hook_root, limits=limits)

    @staticmethod
    def _wanted(
        engine: EngineRow,
        server: ServerRow,
        known: KnownServer,
        settings: Settings,
        before: Settings,
        reason: str,
    ) -> Wanted:
        launch = launch_of(engine, server, settings)
        return Wanted(
            engine_id=engine.id,
            url=server.url,
            settings=settings,
            command=command_of(engine, server, known.command),
            timeout_s=known.timeout_s,
            told={
                "engine": {
                    "id": engine.id,
                    "name": engine.name,
                    "system": engine.system,
                    "url": server.url,
                },
                "version": engine.desired_version,
                "reason": reason,
                "from": before.to_json(),
                "kubernetes": launch.kubernetes,
                "compose": launch.compose,
            },
        )

    def _restart(self, job: Job) -> None:
        began_s = time.monotonic()
        try:
            job.way.apply(job.wanted, self._loop.is_stopping)
        except RestartError as error:
            if not self._loop.is_stopping():
                self._note_failure(job, self._undo(job, error))
            return
        self._note_done(job, time.monotonic() - began_s)

    def _undo(self, job: Job, error: RestartError) -> str:
        """Put back what ran before; how all of it went, in words."""
        if error.is_untouched or job.wanted.settings == job.before:
            return str(error)
        former = replace(job.wanted, settings=job.before, is_restore=True)
        try:
            job.way.apply(former, self._loop.is_stopping)
        except RestartError as worse:
            return f"{error}; and what ran before could not be put back: {worse}"
        return f"{error}; what ran before runs again"

    def _note_done(self, job: Job, seconds: float) -> None:
        self._log.info("restarted", engine=job.wanted.engine_id, seconds=round(seconds, 1))
        with self._context.database.begin() as uow:
            engine = uow.engines.get(job.wanted.engine_id, for_update=True)
            server = uow.servers.find(engine.id, for_update=True)
            if server is not None and server.restart is not None:
                restarts = Restarts.from_json(server.restart)
                server.restart = Restarts(
                    by=restarts.by,
                    away_s=restarts.away_s,
                    start_s=round(seconds, 3),
                    version=job.version,
                    message="done",
                ).to_json()
            engine.effective_policy = job.wanted.settings.to_json()
            self._acknowledge(uow, engine, job.version, job.wanted.settings, seconds=seconds)

    @staticmethod
    def _acknowledge(
        uow: UnitOfWork,
        engine: EngineRow,
        version: int,
        in_force: Settings,
        *,
        seconds: float | None = None,
    ) -> None:
        """Say that a version is in force, if that is not known; one that came meanwhile and took no
        restart stays the one applied."""
        if uow.policies.get(engine.id, version).ack_state is not AckState.PENDING:
            return
        body = Acknowledge(result="applied", seconds=seconds, policy=in_force.to_json())
        policy_acks.note_ack(uow, engine, version, body, service_caller(ACTOR))
        newest = policies.current(uow, engine)
        if newest.ack_state is AckState.APPLIED:
            engine.applied_version = newest.version

    def _note_failure(self, job: Job, message: str) -> None:
        message = message[:MOST_MESSAGE]
        self._log.warning("restart failed", engine=job.wanted.engine_id, error=message)
        with self._context.database.begin() as uow:
            engine = uow.engines.get(job.wanted.engine_id, for_update=True)
            server = uow.servers.find(engine.id, for_update=True)
            if server is not None and server.restart is not None:
                restarts = Restarts.from_json(server.restart)
                wait_s = min(BACKOFF_S * 2**restarts.failures, MOST_BACKOFF_S)
                server.restart = msgspec.structs.replace(
                    restarts,
                    failures=restarts.failures + 1,
                    retry_at_s=utc_now().timestamp() + wait_s,
                    version=job.version,
                    message=message,
                    is_under_way=False,
                ).to_json()
            uow.decisions.add(
                DecisionRow(
                    engine_id=engine.id,
                    action=Action.RAISE_CONDITION,
                    reason=REASON,
                    band_index=None,
                    settings=job.wanted.settings.to_json(),
                    rejected=[],
                    observed={"message": message},
                    policy_version=job.version,
                )
            )
            self._refuse(uow, engine, uow.policies.get(engine.id, job.version), message)

    @staticmethod
    def _refuse(uow: UnitOfWork, engine: EngineRow, version: PolicyVersion, message: str) -> None:
        """Say that a version will not be in force, if that is not known: what runs is adopted."""
        if version.ack_state is AckState.PENDING:
            body = Acknowledge(result="refused", message=message, policy=engine.effective_policy)
            policy_acks.note_ack(uow, engine, version.version, body, service_caller(ACTOR))

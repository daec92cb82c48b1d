"""The live loop: every few seconds, for each engine with a schedule, decide and act."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from api.control.by_hand import settle_by_hand
from api.control.capacity import CapacityLoop, Sight, is_short
from api.control.drift import DriftLoop
from api.control.leader_loop import LeaderLoop
from api.control.loads import keep_load
from api.control.rollouts import RolloutLoop
from api.documents.control_state import memory_from_json, memory_to_json, observe
from api.documents.live_window import LiveWindow
from api.documents.policy import settings_in
from api.services import policies, rollout_moves
from api.services.audit import service_caller
from api.services.policies import Authorship
from api.web.context import AppContext
from engine.spec.measurement import METRIC_IDS, Fidelity
from policies.controller import Action, ControlLimits, ControlState, Decision, decide
from policies.drift import DriftLimits
from policies.feasibility import is_feasible_when_idle
from policies.observation import Observation
from policies.replicas import load_ratio
from policies.rollout import RolloutReason
from policies.schedule import Schedule
from policies.sla import Sla
from store import UnitOfWork
from store.models import DecisionRow, EngineRow, MeasurementRow, RolloutRow, RolloutState
from store.models.base import Json, utc_now

ACTOR = "controller"
FORGET_EVERY_TICKS = 60
# A thousand engines leave thousands of old heartbeats. They are dropped in parts, so that waiting
# heartbeats are written in between; after a pause of the service it takes several ticks.
PRUNED_AT_ONCE = 200
PRUNINGS = 20
PRUNE_PAUSE_S = 0.05


class Controller:
    """Picks the load band of each engine's schedule and moves its hot settings; the watch over
    drift (:mod:`api.control.drift`) and the slow loop (:mod:`api.control.capacity`) come first.

    Its memory lives in the engine's row, so a restarted service goes on where it was. Of the
    services that share a database one controls, since two would fight over cool-downs; when it
    ends, another takes over at its next look.
    """

    def __init__(
        self,
        context: AppContext,
        limits: ControlLimits | None = None,
        *,
        drift_limits: DriftLimits | None = None,
    ) -> None:
        settings = context.settings
        self._context = context
        self._limits = limits or ControlLimits(
            max_data_age_s=settings.control_window_s,
            settle_s=settings.control_window_s,
            cool_down_down_s=settings.cool_down_down_s,
        )
        self._capacity = CapacityLoop(context)
        self._drift = DriftLoop(context, drift_limits)
        self._rollouts = RolloutLoop(context)
        self._loop = LeaderLoop(
            context, "controller", self._turn, every_s=settings.control_interval_s
        )
        self._num_turns = 0

    def start(self) -> None:
        """Tick on a thread until :meth:`stop`."""
        self._loop.start()

    def stop(self) -> None:
        """End the thread; a tick under way finishes first."""
        self._loop.stop()

    def tick(self) -> None:
        """Look once at every rollout and every engine with a schedule or a capacity table, and drop
        old heartbeats.

        One engine's trouble stays its own.
        """
        self._rollouts.tick()
        with self._context.database.read() as uow:
            engine_ids = uow.engines.list_scheduled_ids()
        for engine_id in engine_ids:
            with self._loop.troubles.turn(engine_id), self._context.database.begin() as uow:
                self._control(uow, uow.engines.get(engine_id, for_update=True))
        self._prune()

    def _turn(self) -> None:
        self.tick()
        self._num_turns += 1
        if self._num_turns % FORGET_EVERY_TICKS == 0:
            self._forget()

    def _control(self, uow: UnitOfWork, engine: EngineRow) -> None:
        if engine.applied_version != engine.desired_version:
            return  # a change is still on its way
        now = utc_now()
        if settle_by_hand(uow, engine, now, settle_s=self._limits.settle_s):
            return
        since = now - timedelta(seconds=self._context.settings.control_window_s)
        sla = Sla.parse(engine.sla) if engine.sla else None
        beats = uow.engines.list_heartbeats(engine.id, since=since)
        seen = observe(beats, sla, now=now)
        sight = Sight(beats=beats, seen=seen, now=now)
        rollout = uow.rollouts.find_under_way(engine.id)
        if rollout is not None:
            self._yield_to(uow, engine, rollout, sight)
            return
        if self._drift.turn(uow, engine, beats, now):
            return
        if self._capacity.turn(uow, engine, sight) or engine.schedule is None:
            return
        if engine.system is None:  # nothing of an observed engine is hot
            self._move_hot(uow, engine, sla, sight)

    def _move_hot(self, uow: UnitOfWork, engine: EngineRow, sla: Sla | None, sight: Sight) -> None:
        """One turn of the fast loop."""
        assert engine.schedule is not None, "the caller has looked"
        seen = sight.seen
        schedule = Schedule.from_json(engine.schedule)
        in_force = settings_in(engine.effective_policy)
        if in_force.plan.replica != schedule.plan.replica:
            return  # the schedule is for another plan
        schedule = schedule.with_replicas(in_force.plan.dp)
        state = ControlState(
            schedule=schedule,
            now_s=sight.now_s,
            load=None if seen is None else seen.load,
            in_force=in_force,
            is_feasible_when_idle=is_feasible_when_idle(sla, schedule.alone),
            memory=memory_from_json(engine.control_memory).as_of(sight.now_s),
            limits=self._limits,
        )
        decision = decide(state)
        engine.control_memory = memory_to_json(decision.memory)
        self._context.metrics.decisions.labels(action=decision.action, reason=decision.reason).inc()
        if seen is not None:
            engine.live_window = self._live_window(uow, engine, decision, state, seen).to_json()
        version = self._act(uow, engine, decision)
        self._keep(uow, engine, decision, seen, version)

    def _yield_to(
        self, uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, sight: Sight
    ) -> None:
        """Leave settings that are compared as they are, unless the load needs another plan; the
        load is noted all the same."""
        keep_load(uow, engine, sight.now)
        if is_short(engine, sight):
            rollout_moves.end(
                uow,
                engine,
                rollout,
                RolloutState.ROLLED_BACK,
                RolloutReason.LOAD_ABOVE_CAPACITY,
                "more is asked for than the plan carries: capacity comes first",
            )
            # The candidate was no worse for it: the alert is about those that were.
            self._context.metrics.rollbacks.labels(reason="undecided").inc()

    def _act(self, uow: UnitOfWork, engine: EngineRow, decision: Decision) -> int | None:
        """Write the decided settings as the next policy version; returns it when there is one."""
        if decision.action is not Action.MOVE or decision.settings is None:
            return None
        document = policies.current_document(uow, engine)
        by = Authorship(
            caller=service_caller(ACTOR),
            origin=ACTOR,
            reason=f"{decision.reason} (load band {decision.band_index})",
        )
        before = engine.desired_version
        settings = document.settings.with_hot(decision.settings)
        policies.write(uow, engine, document, replace(document, settings=settings), by)
        return engine.desired_version if engine.desired_version != before else None

    def _keep(
        self,
        uow: UnitOfWork,
        engine: EngineRow,
        decision: Decision,
        seen: Observation | None,
        version: int | None,
    ) -> None:
        """Keep each decision that differs from the last one; repeats are only counted."""
        last = uow.decisions.find_last(engine.id)
        if (
            version is None
            and last is not None
            and (last.action, last.reason, last.band_index)
            == (decision.action, decision.reason, decision.band_index)
        ):
            return
        uow.decisions.add(
            DecisionRow(
                engine_id=engine.id,
                action=decision.action,
                reason=decision.reason,
                band_index=decision.band_index,
                settings=None if decision.settings is None else decision.settings.to_json(),
                rejected=[
                    {"band_index": r.band_index, "why": r.why.value} for r in decision.rejected
                ],
                observed={} if seen is None else seen.to_json(),
                policy_version=version,
            )
        )
        if seen is not None and seen.metrics:
            uow.decisions.add_measurement(
                MeasurementRow(
                    engine_id=engine.id,
                    fidelity=Fidelity.MEASURED,
                    metrics=seen.metrics,
                    metric_ids=METRIC_IDS,
                )
            )

    def _live_window(
        self,
        uow: UnitOfWork,
        engine: EngineRow,
        decision: Decision,
        state: ControlState,
        seen: Observation,
    ) -> LiveWindow:
        predicted: Json = {}
        if engine.recommendation_id is not None:
            document = uow.recommendations.get(engine.recommendation_id).document
            predicted = document.get("predicted") or {}
        # More of what one request alone keeps from its SLA would not help.
        load = decision.memory.smoothed if state.is_feasible_when_idle is not False else None
        return LiveWindow.of(
            seen,
            predicted=predicted,
            load_ratio=None if load is None else load_ratio(state.schedule, load),
            now_s=state.now_s,
        )

    def _prune(self) -> None:
        before = utc_now() - timedelta(seconds=self._context.settings.retention_s)
        for _ in range(PRUNINGS):
            with self._context.database.begin() as uow:
                uow.commit_lazily()
                num_dropped = uow.engines.prune_heartbeats(before=before, limit=PRUNED_AT_ONCE)
            if num_dropped < PRUNED_AT_ONCE or self._loop.pause(PRUNE_PAUSE_S):
                return

    def _forget(self) -> None:
        with self._context.database.begin() as uow:
            uow.idempotency.prune(before=utc_now() - timedelta(days=1))
            self._capacity.prune(uow, utc_now())

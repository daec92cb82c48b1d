"""The watch over engines whose steps drift away from what their recommendation rests on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum

import structlog

from api.documents.policy import settings_in
from api.documents.recommendation import recommended_settings
from api.services import policies, recommendations, retunes
from api.services.audit import service_caller
from api.web.context import AppContext
from api.web.errors import ApiError
from engine.spec.errors import EngineError
from engine.spec.plan import ParallelPlan
from policies.decision import Action
from policies.drift import DriftLimits, DriftMemory, ForeseenSteps, step_sums, watch
from store import UnitOfWork
from store.decisions import MODEL
from store.models import DecisionRow, EngineRow, Heartbeat
from store.models.base import Json

ACTOR = "controller"
# How many recommendations have their predicted step times kept in memory; these never change.
MOST_KEPT = 4096


class DriftReason(StrEnum):
    """What was found. The set is closed: metrics and the audit count by it."""

    DRIFTED = "drifted"
    RETUNE_QUEUED = "retune_queued"
    RETUNE_OFFERED = "retune_offered"
    RETUNE_APPLIED = "retune_applied"
    AS_FORESEEN = "as_foreseen"


class DriftLoop:
    """Compares each engine's steps with those its recommendation foresees, every half minute.

    Where they stay off, people are told, and one tuning job is queued for the load and the steps of
    now. What it recommends is offered; it is put in force only where the policy says so.
    """

    def __init__(self, context: AppContext, limits: DriftLimits | None = None) -> None:
        self._context = context
        self._limits = limits or DriftLimits(every_s=max(30.0, context.settings.control_window_s))
        self._foreseen: OrderedDict[str, tuple[ParallelPlan, ForeseenSteps] | None] = OrderedDict()
        self._log = structlog.get_logger("api.control.drift")

    def turn(
        self, uow: UnitOfWork, engine: EngineRow, beats: Sequence[Heartbeat], now: datetime
    ) -> bool:
        """Look at one engine, whose row the caller holds, by its newest heartbeats; whether another
        policy version is asked for."""
        now_s = now.timestamp()
        before = memory_from_json(engine.drift_memory).as_of(now_s)
        if not before.is_due(now_s, self._limits):
            return False
        foreseen = self._find_foreseen(uow, engine)
        if foreseen is None:
            return False
        log_ratio = foreseen.log_ratio(step_sums(step for beat in beats for step in beat.steps))
        if log_ratio is None:
            return False
        memory = watch(before, log_ratio, now_s, self._limits)
        engine.drift_memory = asdict(memory)
        if memory.alarmed_s is None:
            if before.alarmed_s is not None:
                self._keep(uow, engine, DriftReason.AS_FORESEEN, memory)
            return False
        if before.alarmed_s is None:
            self._keep(uow, engine, DriftReason.DRIFTED, memory, action=Action.RAISE_CONDITION)
        return self._answer(uow, engine, memory, now)

    def _answer(
        self, uow: UnitOfWork, engine: EngineRow, memory: DriftMemory, now: datetime
    ) -> bool:
        """Queue the job, or do what is to be done with what it found."""
        guards = policies.current_document(uow, engine).guards
        assert memory.ratio is not None, "an alarm follows readings"
        job = retunes.request(
            uow,
            engine,
            ratio=memory.ratio,
            per_day=guards["retunes_per_day"],
            now=now,
            caller=service_caller(ACTOR),
        )
        if job is not None:
            self._keep(uow, engine, DriftReason.RETUNE_QUEUED, memory, job_id=job.id)
            return False
        offer = retunes.find_offer(uow, engine)
        if offer is None:
            return False
        if not guards["apply_retuned"]:
            last = uow.decisions.find_last(engine.id, loop=MODEL)
            if last is None or last.observed.get("recommendation_id") != offer:
                found = DriftReason.RETUNE_OFFERED
                self._keep(uow, engine, found, memory, recommendation_id=offer)
            return False
        return self._apply(uow, engine, memory, offer)

    def _apply(self, uow: UnitOfWork, engine: EngineRow, memory: DriftMemory, offer: str) -> bool:
        number = engine.desired_version
        try:
            recommendations.apply(
                uow,
                offer,
                engine.id,
                caller=service_caller(ACTOR),
                reason=f"steps took {memory.ratio:.2f} times what was foreseen",
            )
        except (ApiError, EngineError) as error:  # beyond its envelope or guards: it stays an offer
            self._log.warning("re-tune not applied", engine=engine.name, error=str(error))
            return False
        self._keep(uow, engine, DriftReason.RETUNE_APPLIED, memory, recommendation_id=offer)
        return engine.desired_version != number

    def _find_foreseen(self, uow: UnitOfWork, engine: EngineRow) -> ForeseenSteps | None:
        """The step times of the recommendation in force; None if it has none, or ranks run another
        plan than it recommends."""
        key = engine.recommendation_id
        if key is None:
            return None
        if key not in self._foreseen:
            self._foreseen[key] = _foreseen(uow.recommendations.get(key).document)
            while len(self._foreseen) > MOST_KEPT:
                self._foreseen.popitem(last=False)
        found = self._foreseen[key]
        if found is None or settings_in(engine.effective_policy).plan.replica != found[0]:
            return None
        return found[1]

    def _keep(
        self,
        uow: UnitOfWork,
        engine: EngineRow,
        found: DriftReason,
        memory: DriftMemory,
        *,
        action: Action = Action.HOLD,
        **more: str,
    ) -> None:
        reason = MODEL + found
        self._context.metrics.decisions.labels(action=action, reason=reason).inc()
        uow.decisions.add(
            DecisionRow(
                engine_id=engine.id,
                action=action,
                reason=reason,
                band_index=None,
                settings=None,
                rejected=[],
                observed={"step_ratio": memory.ratio, **more},
                policy_version=None,
            )
        )


def memory_from_json(document: Json | None) -> DriftMemory:
    """What is kept of an engine; nothing kept is an empty memory."""
    return DriftMemory(**(document or {}))


def _foreseen(document: Json) -> tuple[ParallelPlan, ForeseenSteps] | None:
    """The plan of one replica, and its steps; None of a recommendation without."""
    steps = document.get("expected_steps")
    if not steps:
        return None
    return recommended_settings(document).plan.replica, ForeseenSteps(step_sums(steps))

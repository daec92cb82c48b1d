"""The loop of rollouts: replay, canary, full, one turn of each every few seconds.

Everything it knows is in the database, and a turn is one unit of work under the engine's row: a
service that is killed half-way leaves the turn before, and whoever leads next goes on from there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from api.aside.process import AsideLimits
from api.control.aside_queue import AsideQueue
from api.control.troubles import Troubles
from api.documents.recent_load import recent_requests
from api.documents.rollout import (
    canary_from_json,
    canary_to_json,
    candidate_of,
    limits_from_json,
    tally,
)
from api.documents.tuning_spec import field_of
from api.services import effects, policies, rollout_moves
from api.web.context import AppContext
from engine.spec.errors import EngineError
from policies.errors import PolicyInputError
from policies.rollout import (
    Arm,
    Canary,
    CanaryAction,
    CanaryDecision,
    CanaryState,
    RolloutLimits,
    RolloutReason,
    decide_canary,
)
from policies.sla import Sla
from store import UnitOfWork
from store.models import EngineRow, RolloutRow, RolloutState
from store.models.base import Json, utc_now

# The newest requests that a replay is made of, and how far back minutes are looked at for them.
MOST_REQUESTS = 10_000
HISTORY_S = 6 * 3600
LEAST_REQUESTS = 50
REPLAY_LIMITS = AsideLimits(seconds=120.0, memory_mib=2048)


class RolloutLoop:
    """Turns every rollout that is under way. Used by the one service that controls."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._replays = AsideQueue("replay", REPLAY_LIMITS)
        self._troubles = Troubles(context.metrics, "rollouts")
        self._log = structlog.get_logger("api.control.rollouts")

    def tick(self) -> None:
        """One turn of each; one rollout's trouble stays its own."""
        database = self._context.database
        with database.read() as uow:
            found = uow.rollouts.list_under_way()
        self._replays.forget_all_but({rollout_id for _, rollout_id in found})
        for engine_id, rollout_id in found:
            with self._troubles.turn(rollout_id):
                try:
                    with database.begin() as uow:
                        engine = uow.engines.get(engine_id, for_update=True)
                        rollout = uow.rollouts.get(rollout_id)
                        if not rollout.state.is_final:
                            self._turn(uow, engine, rollout, utc_now())
                except (EngineError, PolicyInputError) as error:
                    self._log.warning("rollout given up", rollout=rollout_id, error=str(error))
                    self._give_up(engine_id, rollout_id, str(error))

    def _give_up(self, engine_id: str, rollout_id: str, reason: str) -> None:
        """The engine can no longer be asked for what the rollout wants, as after a restart with
        smaller caps. Where it cannot be asked for what it ran before either, nothing is asked."""
        state, code = RolloutState.ROLLED_BACK, RolloutReason.IMPOSSIBLE
        for leaves_engine in (False, True):
            try:
                with self._context.database.begin() as uow:
                    engine = uow.engines.get(engine_id, for_update=True)
                    rollout = uow.rollouts.get(rollout_id)
                    if not rollout.state.is_final:
                        rollout_moves.end(
                            uow, engine, rollout, state, code, reason, leaves_engine=leaves_engine
                        )
                return
            except EngineError as error:
                reason = f"{reason}; {error}"

    def _turn(self, uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, now: datetime) -> None:
        if rollout_moves.give_way(uow, engine, rollout):
            return
        match rollout.state:
            case RolloutState.REPLAYING:
                self._replay(uow, engine, rollout, now)
            case RolloutState.CANARY:
                self._compare(uow, engine, rollout, now)
            case RolloutState.FULL if engine.applied_version == rollout.written_version:
                reason = f"version {rollout.written_version} is in force"
                rollout_moves.move(uow, rollout, RolloutState.DONE, RolloutReason.IN_FORCE, reason)
            case _:
                pass  # the engine has not said yet; an operator may cancel

    # -- replay --------------------------------------------------------------------------------

    def _replay(
        self, uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, now: datetime
    ) -> None:
        if rollout.replay is None:
            _begin(uow, rollout, RolloutReason.REPLAY_SKIPPED, "not simulated, as asked for", now)
            return
        answer = self._replays.take(rollout.id)
        if answer is not None:
            _judge_replay(uow, engine, rollout, answer, now)
        elif self._replays.can_ask(rollout.id):
            question = _question(uow, engine, rollout, rollout.replay, now)
            if len(question["arrivals"]) < LEAST_REQUESTS:
                reason = (
                    f"{len(question['arrivals'])} requests are known of this engine, "
                    f"{LEAST_REQUESTS} are needed to simulate it: not simulated"
                )
                _begin(uow, rollout, RolloutReason.REPLAY_SKIPPED, reason, now)
            else:
                self._replays.ask(rollout.id, question)

    # -- canary --------------------------------------------------------------------------------

    def _compare(
        self, uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, now: datetime
    ) -> None:
        state = _canary_state(uow, engine, rollout, now)
        decision = decide_canary(state)
        rollout.canary = canary_to_json(decision.canary)
        self._log_pairs(uow, rollout, before=state.canary, after=decision.canary)
        match decision.action:
            case CanaryAction.HOLD:
                pass
            case CanaryAction.SWITCH:
                current = decision.canary.slices[-1]
                rollout_moves.switch(uow, engine, rollout, current.arm, number=current.number)
            case CanaryAction.PROMOTE:
                rollout_moves.promote(uow, engine, rollout, _told(decision, state.limits))
            case CanaryAction.ROLL_BACK:
                assert decision.reason is not None, "an end has a reason"
                rollout_moves.end(
                    uow,
                    engine,
                    rollout,
                    RolloutState.ROLLED_BACK,
                    decision.reason,
                    _told(decision, state.limits),
                )
                kind = "undecided" if decision.reason.is_undecided else "rollout"
                self._context.metrics.rollbacks.labels(reason=kind).inc()

    def _log_pairs(
        self, uow: UnitOfWork, rollout: RolloutRow, *, before: Canary, after: Canary
    ) -> None:
        """Tell followers of each pair that was counted now."""
        for number, pair in enumerate(after.pairs[len(before.pairs) :], len(before.pairs) + 1):
            data = {
                "pair": number,
                "control_attainment": pair.control.attainment,
                "candidate_attainment": pair.candidate.attainment,
                **rollout_moves.numbers(rollout),
            }
            uow.rollouts.append_event(rollout, "pair", data)


def _begin(
    uow: UnitOfWork, rollout: RolloutRow, code: RolloutReason, reason: str, now: datetime
) -> None:
    at_s = now.timestamp()
    rollout_moves.move(uow, rollout, RolloutState.CANARY, code, reason)
    rollout.canary = canary_to_json(Canary(began_s=at_s, seen_s=at_s))


def _judge_replay(
    uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, answer: Json, now: datetime
) -> None:
    refused = RolloutState.REFUSED
    if "error" in answer:
        reason = f"the candidate could not be simulated: {answer['error']}"
        rollout_moves.end(uow, engine, rollout, refused, RolloutReason.REPLAY_FAILED, reason)
        return
    rollout.verdict = answer
    effect, tolerance = answer["effect"], limits_from_json(rollout.limits).tolerance
    told = (
        f"simulated on {answer['requests']} requests: attainment "
        f"{answer['candidate_attainment']:.3f}, as it runs now {answer['control_attainment']:.3f}"
    )
    if effect["high"] < -tolerance:
        reason = f"{told}; the difference is {effect['low']:+.3f} to {effect['high']:+.3f}"
        rollout_moves.end(uow, engine, rollout, refused, RolloutReason.REPLAY_WORSE, reason)
    else:
        _begin(uow, rollout, RolloutReason.REPLAY_PASSED, told, now)


def _question(
    uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, replay: Json, now: datetime
) -> Json:
    since = now - timedelta(seconds=HISTORY_S)
    arrivals = recent_requests(
        uow.engines.list_heartbeats(engine.id, since=since),
        uow.loads.list_between(engine.id, int(since.timestamp()), now.timestamp()),
        most=MOST_REQUESTS,
    )
    candidate = candidate_of(rollout)
    control = policies.current_document(uow, engine)
    cost_model_id = replay.get("cost_model_id")
    tuned_for = effects.job_spec(uow, engine) or {}
    return {
        "arrivals": arrivals,
        "control": control.settings.to_json(),
        "candidate": candidate.settings.to_json(),
        "sla": candidate.sla,
        "alpha": limits_from_json(rollout.limits).alpha,
        "model": engine.model,
        "inventory": policies.inventory_of(engine).to_json(),
        "hardware": replay.get("hardware"),
        "step_scale": replay.get("step_scale", 1.0),
        "model_name": (tuned_for.get("options") or {}).get("model_dir", tuned_for.get("model_dir")),
        "dtype": field_of(tuned_for, "dtype"),
        "backend": field_of(tuned_for, "backend"),
        "cost_model": None
        if cost_model_id is None
        else uow.cost_models.get(cost_model_id).document,
    }


def _canary_state(
    uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, now: datetime
) -> CanaryState:
    assert rollout.canary is not None, "a canary has progress"
    now_s, sla = now.timestamp(), candidate_of(rollout).sla
    canary, limits = canary_from_json(rollout.canary).as_of(now_s), limits_from_json(rollout.limits)
    assert sla is not None, "checked when it began"
    due = canary.due(now_s, limits)
    # A slice that nothing was ever in force in counts from its end, and so for nothing.
    since_s = min([canary.seen_s, *(part.asked_s for part in due)])
    beats = uow.engines.list_heartbeats(engine.id, since=datetime.fromtimestamp(since_s, UTC))
    heard_at = engine.last_heartbeat_at
    return CanaryState(
        canary=canary,
        now_s=now_s,
        in_force_since_s=_in_force_since_s(uow, engine),
        data_age_s=float("inf") if heard_at is None else (now - heard_at).total_seconds(),
        seed=rollout.id,
        limits=limits,
        tallies={
            part.number: tally(
                beats,
                part,
                limits,
                Sla.parse(sla),
                registered_s=engine.registered_at.timestamp(),
            )
            for part in due
        },
        num_arrived=sum(b.arrived for b in beats if b.received_at.timestamp() > canary.seen_s),
    )


def _in_force_since_s(uow: UnitOfWork, engine: EngineRow) -> float | None:
    """The time since when the engine says that it runs what it is asked for."""
    if engine.applied_version != engine.desired_version:
        return None
    acknowledged_at = policies.current(uow, engine).acknowledged_at
    return None if acknowledged_at is None else acknowledged_at.timestamp()


def _told(decision: CanaryDecision, limits: RolloutLimits) -> str:
    """The numbers that a canary was decided by."""
    canary = decision.canary
    effect = canary.effect(limits)
    judged = {
        arm: sum(getattr(pair, arm).judged for pair in canary.pairs)
        for arm in (Arm.CANDIDATE, Arm.CONTROL)
    }
    if effect.mean is None:
        told = "no pair of slices could be counted"
    else:
        told = (
            f"attainment differs by {effect.mean:+.3f} ({effect.low:+.3f} to {effect.high:+.3f}) "
            f"over {len(canary.pairs)} pairs, {judged[Arm.CANDIDATE]} and {judged[Arm.CONTROL]} "
            "requests"
        )
    return f"{told}; exposed {canary.exposed_s:.0f} s and {canary.exposed_requests} requests"

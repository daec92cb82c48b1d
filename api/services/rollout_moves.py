"""The moves of a rollout: from state to state, and the end of one.

Whoever moves one holds its engine's row. A state and the policy version that belongs to it are
written in one unit of work, so a service that is killed leaves nothing half done.
"""

from __future__ import annotations

from dataclasses import replace

from api.documents.policy import PolicyDocument
from api.documents.rollout import canary_from_json, candidate_of, limits_from_json, stamped
from api.services import policies
from api.services.audit import record, service_caller
from api.services.policies import Authorship
from api.web.auth import Caller
from policies.rollout import Arm, RolloutReason
from store import UnitOfWork
from store.models import AckState, EngineRow, RolloutRow, RolloutState
from store.models.base import Json, utc_now

ACTOR = "rollout"
REASON_LENGTH = 500


def move(
    uow: UnitOfWork,
    rollout: RolloutRow,
    state: RolloutState,
    code: RolloutReason,
    reason: str,
    *,
    caller: Caller | None = None,
) -> None:
    """Put a rollout in another state: audited, and told to its followers with its numbers."""
    before = rollout.state if rollout.last_event_seq else None
    rollout.state, rollout.code, rollout.reason = state, code, reason
    if state.is_final:
        rollout.finished_at = utc_now()
    data = {
        "state": state,
        "code": code,
        "reason": reason,
        "version": rollout.written_version,
        **numbers(rollout),
    }
    uow.rollouts.append_event(rollout, "state", data)
    record(
        uow,
        caller or service_caller(ACTOR),
        f"rollout.{state}",
        f"rollouts/{rollout.id}",
        reason=f"{code}: {reason}",
        before=None if before is None else {"state": before},
        after={"state": state, "version": rollout.written_version},
    )


def write(
    uow: UnitOfWork,
    engine: EngineRow,
    rollout: RolloutRow,
    after: PolicyDocument,
    *,
    origin: str,
    reason: str,
    control: Json | None = None,
) -> None:
    """Ask the engine for ``after`` as the rollout's version."""
    before = policies.current_document(uow, engine)
    by = Authorship(caller=service_caller(ACTOR), origin=origin, reason=reason[:REASON_LENGTH])
    policies.write(uow, engine, before, after, by, control=control)
    rollout.written_version = engine.desired_version


def switch(
    uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, arm: Arm, *, number: int
) -> None:
    """Ask the engine for one arm's settings; all else is as in the version of control."""
    control = _control(uow, rollout)
    settings = candidate_of(rollout).settings if arm is Arm.CANDIDATE else control.settings
    after = stamped(replace(control, settings=settings), rollout, slice=number)
    write(uow, engine, rollout, after, origin="rollout", reason=f"slice {number}: {arm}")


def promote(uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow, reason: str) -> None:
    """Ask for the candidate, with what goes in force with it."""
    write(
        uow,
        engine,
        rollout,
        stamped(candidate_of(rollout), rollout),
        origin="rollout",
        reason=reason,
        control=rollout.control,
    )
    move(uow, rollout, RolloutState.FULL, RolloutReason.NOT_WORSE, reason)


def end(
    uow: UnitOfWork,
    engine: EngineRow,
    rollout: RolloutRow,
    state: RolloutState,
    code: RolloutReason,
    reason: str,
    *,
    caller: Caller | None = None,
    leaves_engine: bool = False,
) -> None:
    """End a rollout; where it has asked the engine for anything, the version of control is asked
    for again, as a new one, unless ``leaves_engine``: then nothing is asked."""
    if not leaves_engine and rollout.written_version != rollout.control_version:
        version = uow.policies.get(engine.id, rollout.control_version)
        write(
            uow,
            engine,
            rollout,
            stamped(_control(uow, rollout), rollout),
            origin=policies.ROLLBACK,
            reason=f"{code}: {reason}{policies.back_to(rollout.control_version)}",
            control=version.control or policies.NO_CONTROL,
        )
    move(uow, rollout, state, code, reason, caller=caller)


def give_way(uow: UnitOfWork, engine: EngineRow, rollout: RolloutRow) -> bool:
    """End a rollout whose engine is asked for something else by now; whether it is so.

    What somebody else asked for stays.
    """
    if engine.desired_version == rollout.written_version:
        return False
    written = uow.policies.get(engine.id, rollout.written_version)
    if written.ack_state is AckState.REFUSED:
        reason = f"the engine refused version {written.version}: {written.ack_message}"
        move(uow, rollout, RolloutState.ROLLED_BACK, RolloutReason.ENGINE_REFUSED, reason)
        return True
    newest = policies.current(uow, engine)
    reason = f"version {newest.version} was asked for ({newest.origin}: {newest.reason})"
    if PolicyDocument.from_json(newest.document).settings == candidate_of(rollout).settings:
        reason += "; it was made from the candidate, whose settings stay"
    move(uow, rollout, RolloutState.CANCELLED, RolloutReason.SUPERSEDED, reason)
    return True


def numbers(rollout: RolloutRow) -> Json:
    """What is known of the comparison, for events."""
    if rollout.canary is None:
        return {} if rollout.verdict is None else {"verdict": rollout.verdict}
    canary, limits = canary_from_json(rollout.canary), limits_from_json(rollout.limits)
    effect = canary.effect(limits)
    return {
        "pairs": len(canary.pairs),
        "effect": {"mean": effect.mean, "low": effect.low, "high": effect.high},
        "exposed_s": canary.exposed_s,
        "exposed_requests": canary.exposed_requests,
    }


def _control(uow: UnitOfWork, rollout: RolloutRow) -> PolicyDocument:
    version = uow.policies.get(rollout.engine_id, rollout.control_version)
    return PolicyDocument.from_json(version.document)

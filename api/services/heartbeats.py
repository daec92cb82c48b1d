"""Heartbeats of engines, many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from api.documents.inventory import check_plan
from api.documents.policy import settings_in
from api.schemas.serving import HeartbeatIn, HeartbeatOut
from api.services import identity, leases, policies
from api.web.errors import ApiError
from api.web.settings import ServiceSettings
from engine.spec.errors import EngineError
from engine.spec.settings import Settings
from store import NotFoundError, UnitOfWork
from store.engines import Sender, Window
from store.models.base import Json


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One heartbeat and who sent it."""

    engine_id: str
    body: HeartbeatIn
    credential: str | None


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A beat that is kept, its engine, and what that runs."""

    beat: Beat
    engine: Sender
    in_force: Settings
    policy: Json


def keep(
    uow: UnitOfWork, beats: Sequence[Beat], settings: ServiceSettings
) -> list[HeartbeatOut | Exception]:
    """Keep each beat's window of exact samples; its answer, or why it is refused.

    A refusal is a NotFoundError, an ApiError (403, not from the engine itself) or a PolicyError (a
    plan beyond the engine's inventory).
    """
    uow.commit_lazily()  # a window may be missing
    senders = uow.engines.find_senders({beat.engine_id for beat in beats})
    checked = [_check(uow, senders, beat) for beat in beats]
    kept = [it for it in checked if isinstance(it, _Checked)]
    _note_policies(uow, kept)
    uow.engines.add_heartbeats([_window(it.beat) for it in kept])
    leases.renew(
        uow,
        [leases.Need.of(it.engine, it.in_force.plan, it.beat.body.devices) for it in kept],
        settings,
    )
    return [
        HeartbeatOut(desired_version=it.engine.desired_version) if isinstance(it, _Checked) else it
        for it in checked
    ]


def _check(uow: UnitOfWork, senders: Mapping[str, Sender], beat: Beat) -> _Checked | Exception:
    sender = senders.get(beat.engine_id)
    if sender is None:
        return NotFoundError("engine", beat.engine_id)
    try:
        identity.require_own(sender, beat.credential)
        in_force, policy = _read_policy(msgspec.json.encode(beat.body.policy))
        if policy != sender.effective_policy:  # that one was checked when it came
            engine = uow.engines.get(sender.id)
            inventory = policies.inventory_of(engine)
            check_plan(in_force.plan, inventory, engine.model, pointer="/policy/plan")
    except (ApiError, EngineError) as error:
        return error
    return _Checked(beat=beat, engine=sender, in_force=in_force, policy=policy)


@lru_cache(maxsize=1024)
def _read_policy(text: bytes) -> tuple[Settings, Json]:
    """The settings in a policy, and their one form: most heartbeats bring a policy again."""
    in_force = settings_in(msgspec.json.decode(text))
    return in_force, in_force.to_json()


def _note_policies(uow: UnitOfWork, kept: Sequence[_Checked]) -> None:
    """Most beats bring the policy that is known, and nothing to write."""
    known = {it.engine.id: it.engine.effective_policy for it in kept}
    for it in kept:
        if it.policy != known[it.engine.id]:
            known[it.engine.id] = it.policy
            uow.engines.get(it.engine.id).effective_policy = it.in_force.to_json()


def _window(beat: Beat) -> Window:
    body = beat.body
    return Window(
        engine_id=beat.engine_id,
        window_s=body.window_s,
        arrived=body.arrived,
        stats=body.stats,
        requests=[request.model_dump(mode="json") for request in body.requests],
        steps=[step.model_dump(mode="json") for step in body.steps],
    )

"""A change of an engine's policy before it is made: what it costs and would have done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from nicegui import ui

from api.dashboard import words
from api.dashboard.layout import Row, Text, button, note, table, told_of
from api.dashboard.rollout_start import can_roll_out, start_rollout
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.serving import ChangeSet, PolicyView
from api.services import effects, policies
from api.services.effects import Wanted
from api.web.auth import Caller
from api.web.errors import ApiError, as_api_error
from store import UnitOfWork

Json = dict[str, Any]
CHANGES = (("knob", "Knob"), ("from", "From"), ("to", "To"), ("cost", "Takes effect"))
# Refusals of the change itself.
TOLD_HERE = (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED, HTTPStatus.UNPROCESSABLE_ENTITY)
EFFECTS = (
    ("what", "On the load of the last hours"), ("now", "As it is"), ("then", "Changed"),
    ("by", "Difference"), ("range", "90 % interval"),
)  # fmt: skip


class Proposal:
    """A patch of an engine's policy: what it would do, and the buttons that do it.

    ``done`` is called once it was written; ``stale`` where somebody else wrote a newer version, of
    which it may say more.
    """

    def __init__(
        self,
        visit: Visit,
        engine_id: str,
        *,
        done: Callable[[], Awaitable[None]],
        stale: Callable[[], None],
    ) -> None:
        self._visit = visit
        self._engine_id = engine_id
        self._done = done
        self._stale = stale
        self._place = ui.element("div").props('aria-live="polite"')

    def clear(self) -> None:
        """Show nothing."""
        self._place.clear()

    async def show(self, policy: PolicyView, patch: Json, reason: str, act: str = "Apply") -> None:
        """What ``patch`` of the policy as it was seen would do; ``act`` is what a button says."""
        answer = await self._ask(policy, patch, reason, is_dry_run=True)
        if answer is None:
            return
        engine_id = self._engine_id
        with self._place:
            show_changes(answer)
            place = ui.element("div")
            if not answer.changes:
                return
            with ui.element("div").classes("row"):
                text = f"{act} as version {answer.policy.version + 1}"
                button(text, lambda: self._apply(policy, patch, reason), "go")
                if can_roll_out(answer):
                    button(
                        "Prove it first ...",
                        lambda: start_rollout(
                            self._visit, engine_id, reason=reason, candidate={"patch": patch}
                        ),
                    )
        await show_effect(
            self._visit,
            place,
            answer,
            engine_id,
            lambda uow, engine: policies.patched(uow, engine, patch).settings,
        )

    async def _apply(self, policy: PolicyView, patch: Json, reason: str) -> None:
        answer = await self._ask(policy, patch, reason, is_dry_run=False)
        if answer is not None:
            await self._done()
            with self._place:
                tell_version(answer)

    async def _ask(
        self, policy: PolicyView, patch: Json, reason: str, *, is_dry_run: bool
    ) -> ChangeSet | None:
        """What the service says; None: it refuses, which is told."""

        def write(uow: UnitOfWork, caller: Caller) -> ChangeSet:
            return policies.patch(
                uow,
                self._engine_id,
                patch,
                if_match=policies.etag_of(policy),
                is_dry_run=is_dry_run,
                caller=caller,
                reason=reason,
            )

        self.clear()
        try:
            return await self._visit.act(Scope.APPLY, write)
        except Exception as error:
            refusal = as_api_error(error)
            if refusal.status not in TOLD_HERE:
                raise
            with self._place:
                self._tell(policy, refusal)
            return None

    def _tell(self, policy: PolicyView, refusal: ApiError) -> None:
        if refusal.status != HTTPStatus.PRECONDITION_FAILED:
            note(told_of(refusal), "bad")
            return
        note(
            f"Nothing was changed: somebody wrote a newer version than {policy.version}, which you "
            "see here.",
            "bad",
        )
        self._stale()


def read_policy(uow: UnitOfWork, engine_id: str) -> PolicyView:
    """What an engine is asked to run.

    Raises:
        NotFoundError: no such engine.
    """
    engine = uow.engines.get(engine_id)
    return policies.view(engine, policies.current(uow, engine))


def tell_version(answer: ChangeSet) -> None:
    """That a change was written."""
    note(f"Version {answer.policy.version} is asked for; the engine applies it next.", "good")


def show_changes(answer: ChangeSet) -> None:
    """What a change of the policy would do: knobs with their cost, the way there, warnings."""
    for warning in answer.warnings:
        note(warning, "warn")
    if not answer.changes:
        note("No setting would change.")
        return
    changes_table(answer.changes)
    if answer.transition is not None:
        note(_way(answer.transition))
    if answer.predicted is not None:
        note(_predicted(answer.predicted))


def changes_table(changes: list[Json]) -> None:
    """Knobs that differ, with what changing each costs."""
    table(CHANGES, [_row(change) for change in changes])


async def show_effect(
    visit: Visit, place: ui.element, answer: ChangeSet, engine_id: str, wanted: Wanted
) -> None:
    """Simulate both settings on the engine's last hours, which takes seconds, and show that."""
    if not answer.changes:
        return
    with place:
        Text("p", "Simulating it on the load of the last hours ...", "soft")
    context = visit.context
    found = await effects.with_effect(answer, context.database, context.aside, engine_id, wanted)
    if place.is_deleted:  # something else was asked meanwhile
        return
    place.clear()
    with place:
        if found.effect is None:
            note(f"No simulation of the last hours: {found.effect_missing}.")
        else:
            _show_effect(found.effect)


def text_of(value: Any) -> str:
    """A value of a policy as people write it."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{k}={text_of(v)}" for k, v in value.items())
    return str(value)


def _row(change: Json) -> Row:
    kind = change["class"]
    return {
        "key": change["knob"],
        "knob": change["knob"],
        "from": text_of(change["from"]) or words.NONE,
        "to": text_of(change["to"]) or words.NONE,
        "cost": f"{kind}: {words.CLASSES.get(kind, '')}",
    }


def _way(found: Json) -> str:
    """How replicas start and leave, and what that takes."""
    parts = [
        f"Way: {found['way'].replace('_', ' ')}",
        f"{found['least_devices']} to {found['peak_devices']} devices in use meanwhile",
    ]
    said = "measured" if found["is_measured"] else "estimated"
    for key, what in (("start_s", "to start"), ("drain_s", "to drain")):
        if found.get(key) is not None:
            parts.append(f"{found[key]:.1f} s {what} ({said})")
    return "; ".join(parts)


def _predicted(found: Json) -> str:
    metrics = found.get("metrics") or {}
    parts = [
        f"{percentile} {metric.removesuffix('_ms').upper()} {values[percentile]:.1f} ms"
        for metric, values in metrics.items()
        if metric.endswith("_ms") and isinstance(values, dict)
        for percentile in ("p50", "p95")
        if values.get(percentile) is not None
    ]
    return f"When it was tuned ({found.get('fidelity')}): {', '.join(parts)}"


def _show_effect(found: Json) -> None:
    if found["is_worse"]:
        note("Fewer requests would have met the SLA.", "bad")
    elif found["attainment"] is not None and found["attainment"]["low"] > 0:
        note("More requests would have met the SLA.", "good")
    table(EFFECTS, [*_attainment_rows(found["attainment"]), *map(_effect_row, found["effects"])])
    Text(
        "p",
        f"Simulated: {found['num_requests']:,} requests in {found['num_draws']} draws of "
        f"{found['minutes']} min of its load.",
        "soft",
    )


def _attainment_rows(found: Json | None) -> list[Row]:
    if found is None:
        return []
    before, after = words.share(found["before"]), words.share(found["after"])
    by = (found["change"], found["low"], found["high"])
    return [_compared("SLA attainment", before, after, by, "points")]


def _effect_row(found: Json) -> Row:
    current, candidate = words.number(found["current"]), words.number(found["candidate"])
    change = found["change"]
    by = None if change is None else (change["share"], change["low"], change["high"])
    return _compared(found["metric"], current, candidate, by, "%")


def _compared(
    what: str, now: str, then: str, by: tuple[float, float, float] | None, unit: str
) -> Row:
    """One number as it is and changed; ``by`` how much, with its interval, as shares."""
    change, low, high = (
        (words.NONE,) * 3 if by is None else (words.signed(100 * share, unit) for share in by)
    )
    ends = words.NONE if by is None else f"{low} to {high}"
    return {"key": what, "what": what, "now": now, "then": then, "by": change, "range": ends}

"""Begin a rollout of a change: it is simulated, then takes turns with what runs, then stays."""

from __future__ import annotations

from typing import Any

from nicegui import ui
from pydantic import ValidationError

from api.dashboard.layout import Text, button, dialog, guarded, page_path
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.rollouts import DEFAULTS, RolloutCreate
from api.schemas.serving import ChangeSet
from api.services import rollouts

TITLE = "Prove it before it spreads"
Json = dict[str, Any]


def can_roll_out(answer: ChangeSet) -> bool:
    """Whether what would change can take turns with what runs."""
    return bool(answer.changes) and all(map(rollouts.takes_turns, answer.changes))


async def start_rollout(visit: Visit, engine_id: str, *, reason: str, candidate: Json) -> None:
    """Ask how careful it is to be, and begin it; the page of the rollout follows.

    ``candidate`` is the ``patch`` or the ``recommendation_id`` of its body.
    """
    with dialog(TITLE) as shown:
        Text("h2", TITLE)
        Text(
            "p",
            "The change is simulated on the engine's last hours. Then it takes turns with the "
            "current settings. If it serves worse, they come back by themselves.",
        )
        with ui.element("div").classes("fields w-full"):
            form = _Form()
        with ui.element("div").classes("row"):
            button("Begin the rollout", lambda: shown.submit(form.body()), "go")
            button("Not now", lambda: shown.submit(None))
    asked = await shown
    if asked is not None:
        body = {"engine_id": engine_id, "reason": reason or "rollout", **candidate, **asked}
        await guarded(lambda: _begin(visit, body))


class _Form:
    """How a rollout is made; empty fields are as the service has them."""

    def __init__(self) -> None:
        self._hardware = ui.input("Simulate on hardware")
        self._hardware.props(
            'stack-label hint="As in 8xh200; empty: step times of the recommendation in force"'
        )
        self._skip = ui.checkbox("Do not simulate it first")
        self._tolerance = ui.number(
            "Tolerance (points of attainment)", value=100 * DEFAULTS.tolerance
        )
        self._tolerance.props('stack-label hint="Attainment lower by more than this is worse"')
        self._exposed = ui.number("Longest exposure (s)", value=DEFAULTS.max_exposed_s)
        self._exposed.props('stack-label hint="Still undecided after this time: it is taken back"')

    def body(self) -> Json:
        """The fields of a rollout that were filled in."""
        hardware = str(self._hardware.value or "").strip()
        replay: Json = {"skip": bool(self._skip.value)}
        if hardware:
            replay["hardware"] = hardware
        limits: Json = {}
        if self._tolerance.value is not None:
            limits["tolerance"] = self._tolerance.value / 100
        if self._exposed.value is not None:
            limits["max_exposed_s"] = self._exposed.value
        return {"replay": replay, "limits": limits}


async def _begin(visit: Visit, body: Json) -> None:
    try:
        asked = RolloutCreate.model_validate(body)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        ui.notify(told, type="negative", timeout=8000)
        return
    settings = visit.context.settings
    rollout_id = await visit.act(
        Scope.APPLY, lambda uow, caller: rollouts.create(uow, asked, settings, caller=caller).id
    )
    ui.navigate.to(page_path("rollouts", rollout_id))

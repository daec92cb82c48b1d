"""One replica more or fewer of a running engine."""

from __future__ import annotations

from nicegui import ui

from api.dashboard.layout import Text, allow, button, note
from api.dashboard.proposal import Proposal, read_policy
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from engine.spec.errors import EngineError
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings


class Replicas:
    """How many replicas there are, and buttons that ask for another number."""

    def __init__(self, visit: Visit, engine_id: str) -> None:
        self._visit = visit
        self._engine_id = engine_id
        self._about = Text("p", "")
        if not visit.may(Scope.APPLY):
            return
        with ui.element("div").classes("row"):
            button("Add a replica", lambda: self._ask(1))
            self._drain = button("Drain a replica", lambda: self._ask(-1), "risk")
        self._proposal = Proposal(visit, engine_id, done=self._done, stale=self._say_stale)

    def show(self, in_force: Settings | None) -> None:
        """The number that runs now."""
        self._about.set_text("Not known." if in_force is None else _told(in_force.plan))
        if self._visit.may(Scope.APPLY):
            has_more = in_force is not None and in_force.plan.dp > 1
            allow(self._drain, has_more)

    async def _ask(self, more: int) -> None:
        policy = await self._visit.read(lambda uow: read_policy(uow, self._engine_id))
        wanted = int(policy.requested["plan"]["dp"]) + more
        act = "Add it" if more > 0 else "Drain it"
        await self._proposal.show(policy, {"plan": {"dp": wanted}}, f"{wanted} replicas", act)

    async def _done(self) -> None:
        self._proposal.clear()

    def _say_stale(self) -> None:
        note("Press the button again to see what it would do now.")


def settings_in_force(policy: dict[str, object]) -> Settings | None:
    """The settings of an engine's policy; None where they cannot be read."""
    try:
        return Settings.from_json(policy)
    except EngineError:
        return None


def _told(plan: ParallelPlan) -> str:
    each = plan.replica_size
    number = f"{plan.dp} replica{'s' if plan.dp > 1 else ''}"
    return f"{number} of {each} device{'s' if each > 1 else ''} each: {plan.world_size} in use."

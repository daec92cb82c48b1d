"""``plan``: every plan judged against an SLA on hardware that is not here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from policies.capacity_table import CapacityTable
from policies.objective import Goal, Objective
from policies.points import OperatingPoint
from policies.sla import Sla
from tuner.answers.answer import Answer
from tuner.answers.asked import ServedAs
from tuner.answers.words import read_sla, read_workload
from tuner.described.title import Title
from tuner.planner.document import choices, infeasible, plan_json, plan_title
from tuner.planner.planner import PlanReport, make_plan
from tuner.planner.pool import Jobs
from tuner.planner.replan import replanner
from tuner.planner.ways_out import WaysOut, find_ways_out
from tuner.search.report import infeasible_text
from tuner.workload.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

    from tuner.pictures.picture import Picture


@dataclass(frozen=True, kw_only=True, repr=False)
class Planned(Answer):
    """What planning found; ``model`` as it was named. If they were asked for, ``ways`` are the ways
    out when nothing meets the SLA, and ``table`` has the rate that each plan carries."""

    report: PlanReport
    model: str
    ways: WaysOut | None = None
    table: CapacityTable | None = None

    @property
    def best(self) -> OperatingPoint | None:
        """The best by the goal; None if nothing meets the SLA with enough certainty."""
        return self.report.selection.best

    @property
    def title(self) -> Title:
        return plan_title(self.report, model=self.model)

    @property
    def headline(self) -> str:
        found = choices(self.report)
        if self.report.interrupted is not None:
            return self.report.interrupted
        if not found:
            reason = infeasible(self.report)
            assert reason is not None, "no choice without a reason"
            return infeasible_text(reason)
        best, sla = found[0], self.report.question.sla
        chance = best.point.probability(sla)
        return f"{best.role}: {best.point.settings} (P(SLA met) {chance:.2f}): {best.reason}"

    @cached_property
    def document(self) -> dict[str, Any]:
        return plan_json(self.report, model=self.model, ways=self.ways, table=self.table)

    def summary(self) -> pd.DataFrame:
        """The chosen plans by role; if there are none, the near misses."""
        found = choices(self.report)
        points = {choice.role: choice.point for choice in found}
        if not found and (closest := self.report.selection.closest) is not None:
            points = {"nearest": closest}
        return self._frame(list(points.values()), index=list(points))

    def to_frame(self) -> pd.DataFrame:
        """One row per settings that ran to the end of the workload: plan, devices, caps, P(SLA met)
        (NaN where it is not known) and each bounded metric."""
        return self._frame(self.report.points)

    def _frame(
        self, points: Sequence[OperatingPoint], index: list[str] | None = None
    ) -> pd.DataFrame:
        import pandas as pd

        sla = self.report.question.sla
        rows = [
            {
                "plan": str(p.settings.plan),
                "devices": p.cost_devices,
                "threshold_tokens": p.settings.threshold_tokens if p.settings.plan.shift else None,
                "max_num_seqs": p.settings.caps.max_num_seqs,
                "max_num_batched_tokens": p.settings.caps.max_num_batched_tokens,
                "sla_probability": p.probability(sla) if p.has_interval else None,
                **{c.key: p.actual(c) for c in sla.per_run},
            }
            for p in points
        ]
        return pd.DataFrame(rows, index=index)

    def picture(self) -> Picture:
        from tuner.pictures.plans import plan_picture

        return plan_picture(self.report, model=self.model)


def look_for_ways(
    report: PlanReport, *, jobs: Jobs, on_stage: Callable[[str], None] = lambda _: None
) -> WaysOut | None:
    """What would help if nothing meets the SLA; None if something does."""
    if report.selection.best is not None:
        return None
    with replanner(report, jobs=jobs) as replan:
        return find_ways_out(report, replan, on_stage)


def plan(
    model: str,
    *,
    hardware: str,
    workload: str | Workload,
    sla: str | Sla,
    seed: int = 0,
    devices: int | None = None,
    objective: str = Objective.DEVICES.value,
    use_all: bool = False,
    price_per_device_hour: float | None = None,
    backend: str | None = None,
    backend_set: Sequence[str] = (),
    dtype: str = "auto",
    max_model_len: int | None = None,
    block_size: int = 16,
    jobs: Jobs = None,
    ways_out: bool = False,
) -> Planned:
    """Judge every plan by simulation, as ``gearshift plan``, and name the best by ``objective``.

    ``devices`` None: all of the hardware. ``jobs``: processes, None for one per core; a script that
    uses them needs ``if __name__ == "__main__"``. ``ways_out``: if nothing meets the SLA, also find
    the load, the devices and the bounds with which a plan would (which takes ten times as long).

    Raises:
        TunerError: an unknown name, or no plan can run the model there.
        PolicyInputError: an SLA or objective that cannot be read.
    """
    served = ServedAs(
        dtype=dtype,
        backend=backend,
        backend_set=list(backend_set),
        block_size=block_size,
        max_model_len=max_model_len,
    )
    report = make_plan(
        served.node(model, hardware),
        read_workload(workload, seed=seed),
        read_sla(sla),
        seed=seed,
        num_devices=devices,
        goal=Goal(
            objective=Objective.parse(objective),
            price_per_device_hour=price_per_device_hour,
            uses_all_devices=use_all,
        ),
        jobs=jobs,
    )
    ways = look_for_ways(report, jobs=jobs) if ways_out else None
    return Planned(report=report, model=model, ways=ways)

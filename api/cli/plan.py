"""``gearshift plan``: which plans meet an SLA on hardware that is not here, and why others fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.answers import next_step
from api.cli.common import (
    end_interrupted,
    end_not_met,
    log,
    print_json,
    print_lines,
)
from api.cli.engine_options import MOST_DEVICES, ModelNameOption
from api.cli.grouped import grouped
from api.cli.groups import Described, GoalOptions, JobsOption, PlannedWorkload
from api.cli.pictured import DrawnOutput
from api.cli.progress import stage_bar

if TYPE_CHECKING:
    from policies.capacity_table import CapacityTable
    from tuner.planner.planner import OnPlanning, PlanReport
    from tuner.planner.pool import Jobs
    from tuner.planner.ways_out import WaysOut


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Which plans are judged, and on how much of this machine."""

    devices: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_DEVICES, help="Most devices a plan may use; by default all."),
    ] = None
    jobs: JobsOption = None
    ways_out: Annotated[
        bool,
        typer.Option(
            help="Where nothing meets the SLA: find the load, the devices and the bounds with "
            "which a plan does. Each is planned, so it takes some ten times as long."
        ),
    ] = True
    capacity_table: Annotated[
        bool,
        typer.Option(
            "--capacity-table",
            help="Also find what rate each plan worth having carries within the SLA, cheapest "
            "first. Each is simulated at many rates, so it takes some twenty times as long.",
        ),
    ] = False


@grouped(
    help_order="model hardware workload sla objective use_all price_per_device_hour dtype backend "
    "backend_set devices seed max_model_len block_size jobs ways_out capacity_table out "
    "plot"
)
def plan(
    model: ModelNameOption,
    hardware: Annotated[str, typer.Option(help="Described hardware, as in 8xh200.")],
    planned: PlannedWorkload,
    described: Described,
    judging: Judging,
    wanted: GoalOptions,
    output: DrawnOutput,
) -> None:
    """Judge every plan by simulation, and name the best by --objective (the cheapest), the fastest
    and a balanced one.

    Every dp, pp, sp, tp up to the hardware's devices, Shift on and off with the
    thresholds of each rung that step times advise, each with a few caps. Ctrl-C tells which plans
    were judged so far, and how.
    """
    from api.cli.plan_answer import print_answer
    from policies.sla import Sla
    from tuner.answers.planned import Planned
    from tuner.capacity.table import check_has_table
    from tuner.planner.planner import make_plan

    constraints = Sla.parse(planned.sla)
    output.check()
    node = described.node(model, hardware)
    load = planned.read_workload()
    if judging.capacity_table:
        check_has_table(load)
    with stage_bar("plan", _log_progress) as show:
        report = _judge(
            partial(
                make_plan,
                node,
                load,
                constraints,
                seed=planned.seed,
                num_devices=judging.devices,
                goal=wanted.goal,
                jobs=judging.jobs,
                on_progress=show,
            )
        )
        table = None
        if judging.capacity_table and report.interrupted is None:
            table = _table(report, judging.jobs, show)
    ways = None
    if report.selection.best is None and judging.ways_out and report.interrupted is None:
        ways = _ways_out(report, judging.jobs)
    answer = Planned(report=report, model=model, ways=ways, table=table)
    document = answer.document
    for warning in document["warnings"]:
        if warning != report.interrupted:  # which the answer ends with
            log(f"warning: {warning}")
    output.write(document)
    output.draw(answer.picture)
    if output.as_json:
        print_json(document)
    else:
        print_lines(answer.title.lines())
        print_answer(report, document)
    if report.interrupted is not None or (judging.capacity_table and table is None):
        end_interrupted()
    if not output.as_json and (step := next_step(document, output.out)) is not None:
        print_lines([step])
    if document["infeasible"] is not None:
        end_not_met()


def _judge(make_plan: Callable[[], PlanReport]) -> PlanReport:
    """Every plan judged; after Ctrl-C those that were judged by then."""
    from tuner.planner.planner import PlanningStopped

    try:
        return make_plan()
    except PlanningStopped as stopped:
        return stopped.report
    except KeyboardInterrupt:
        log("plan: interrupted before any plan was judged")
        raise


def _table(report: PlanReport, jobs: Jobs, show: OnPlanning) -> CapacityTable | None:
    from tuner.planner.capacity_table import find_table

    try:
        return find_table(report, jobs=jobs, on_progress=show)
    except KeyboardInterrupt:
        log("plan: stopped looking for what each plan carries; the answer without its table:")
        return None


def _ways_out(report: PlanReport, jobs: Jobs) -> WaysOut | None:
    from tuner.answers.planned import look_for_ways

    log("plan: nothing meets the SLA; looking for what would help (Ctrl-C: the answer without it)")
    try:
        return look_for_ways(report, jobs=jobs, on_stage=lambda stage: log(f"plan: {stage}"))
    except KeyboardInterrupt:
        log("plan: stopped looking for what would help")
        return None


def _log_progress(stage: str, done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        log(f"plan: {stage} {done}/{total}")

"""``gearshift plan``: which plans meet an SLA on hardware that is not here, and why others fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import end_not_met, log, print_json, print_lines, progress_console
from api.cli.engine_options import MOST_DEVICES, ModelNameOption
from api.cli.grouped import grouped
from api.cli.groups import Described, Output, WorkloadOptions

if TYPE_CHECKING:
    from rich.console import Console

    from policies.points import OperatingPoint
    from tuner.planner.document import Choice
    from tuner.planner.planner import OnPlanning, PlanReport

SHOWN_FEASIBLE = 12
SHOWN_FAILING = 24


@dataclass(frozen=True, kw_only=True)
class PlannedWorkload(WorkloadOptions):
    """A workload, and the SLA that plans must meet under it."""

    workload: Annotated[str, typer.Option(help="Workload SPEC, as in azure:PATH,seconds=900.")]
    sla: Annotated[str, typer.Option(help="SLA, as in p95_ttft_ms<=500,p95_tpot_ms<=50.")]


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Which plans are judged, and on how much of this machine."""

    devices: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_DEVICES, help="Most devices a plan may use; by default all."),
    ] = None
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Processes to simulate on; by default one per core."),
    ] = None


@grouped(
    help_order="model hardware workload sla dtype backend devices seed max_model_len block_size "
    "jobs out"
)
def plan(
    model: ModelNameOption,
    hardware: Annotated[str, typer.Option(help="Described hardware, as in 8xh200.")],
    planned: PlannedWorkload,
    described: Described,
    judging: Judging,
    output: Output,
) -> None:
    """Judge every plan by simulation, and name the cheapest, the fastest and a balanced one.

    Every dp, pp, sp, tp up to the hardware's devices, Shift on and off with the threshold that
    the modes' step times advise, each with a few caps.
    """
    from policies.sla import Sla
    from tuner.planner.document import plan_json, plan_title, warnings
    from tuner.planner.planner import make_plan

    constraints = Sla.parse(planned.sla)
    output.check()
    node = described.node(model, hardware)
    load = planned.read_workload()
    with _progress() as show:
        report = make_plan(
            node,
            load,
            constraints,
            seed=planned.seed,
            num_devices=judging.devices,
            jobs=judging.jobs,
            on_progress=show,
        )
    document = plan_json(report, model=model)
    for warning in warnings(report):
        log(f"warning: {warning}")
    output.write(document)
    if output.as_json:
        print_json(document)
    else:
        print_lines(plan_title(report, model=model).lines())
        _print(report, document)
    if document["infeasible"] is not None:
        end_not_met()


@contextmanager
def _progress() -> Iterator[OnPlanning]:
    """A bar per stage on stderr; on a file or pipe a line now and then."""
    console = progress_console()
    if not console.is_terminal:
        yield _log_progress
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("plan", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"plan: {stage}", completed=done, total=total)

        yield show


def _log_progress(stage: str, done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        log(f"plan: {stage} {done}/{total}")


def _print(report: PlanReport, document: dict[str, Any]) -> None:
    from rich.console import Console

    from tuner.planner.document import choices

    console = Console(soft_wrap=True)
    found = choices(report)
    for choice in found:
        _print_choice(console, report, choice)
    if not found:
        _print_infeasible(console, document["infeasible"])
    _print_feasible(console, report)
    _print_failing(console, report)
    judged = ", ".join(f"{count} on {kind}" for kind, count in document["judged"].items())
    console.print(f"judged: {judged}", highlight=False)


def _print_choice(console: Console, report: PlanReport, choice: Choice) -> None:
    from tuner.planner.document import commands

    point, sla = choice.point, report.question.sla
    console.print(f"[bold]{choice.role}[/]: {point.settings}", highlight=False)
    console.print(
        f"  {point.cost_devices} devices, P(SLA met) {point.probability(sla):.2f}: {choice.reason}",
        highlight=False,
    )
    for constraint in sla.per_run:
        estimate = point.metrics.get(constraint.key)
        if estimate is not None:
            console.print(
                f"  {constraint}: {estimate.value:.4g} ({estimate.low:.4g} .. {estimate.high:.4g})",
                highlight=False,
            )
    for command in commands(report, point):
        if command.is_rehearsal:
            console.print("  to rehearse without the hardware (no model is run):", highlight=False)
        text = command.command or f"cannot: {command.note}"
        note = f"   # {command.note}" if command.command and command.note else ""
        console.print(f"  {command.system.value}: {text}{note}", highlight=False, markup=False)


def _print_infeasible(console: Console, infeasible: dict[str, Any]) -> None:
    from tuner.search.report import infeasible_text

    console.print(infeasible_text(infeasible), highlight=False)
    if infeasible["is_from_single_requests"]:
        console.print("  not even with one request at a time", highlight=False)
    if (closest := infeasible["closest"]) is not None:
        headroom = closest["headroom"]
        if headroom is not None and headroom < 0:
            missed = f"misses by {-100 * headroom:.0f} % of the bound"
            console.print(f"  the nearest {missed}", highlight=False)
    for relaxation in infeasible["relaxations"]:
        if relaxation["bound"] is not None:
            console.print(
                f"  {relaxation['constraint']} would have to be {relaxation['bound']:.4g}",
                highlight=False,
            )


def _print_feasible(console: Console, report: PlanReport) -> None:
    from rich.table import Table

    if not report.feasible:
        return
    sla = report.question.sla
    table = Table("devices", "settings", *(c.key for c in sla.per_run), "P(met)", "KV tokens")
    table.title = f"{len(report.feasible)} settings whose simulated values meet {sla}"
    for point in report.feasible[:SHOWN_FEASIBLE]:
        settings = point.settings
        kv_tokens = report.question.node.memory(settings.plan, caps=settings.caps).kv_tokens
        cells = [_cell(point, c.key) for c in sla.per_run]
        chance = f"{point.probability(sla):.2f}" if point.has_interval else "-"
        table.add_row(str(point.cost_devices), str(settings), *cells, chance, str(kv_tokens))
    console.print(table)
    if (more := len(report.feasible) - SHOWN_FEASIBLE) > 0:
        console.print(f"and {more} more (--json has all)", highlight=False)


def _cell(point: OperatingPoint, key: str) -> str:
    estimate = point.metrics.get(key)
    return "-" if estimate is None else f"{estimate.value:.4g}"


def _print_failing(console: Console, report: PlanReport) -> None:
    from rich.table import Table

    from tuner.planner.planner import Why

    shown = [f for f in report.failures if f.why not in (Why.SHAPE, Why.BACKEND)]
    shapes = sum(f.why is Why.SHAPE for f in report.failures)
    lacking = sum(f.why is Why.BACKEND for f in report.failures)
    if shown:
        table = Table("plan", "fails by", "judged on", "detail", title="plans that fail")
        for failure in shown[:SHOWN_FAILING]:
            judged_on = failure.judged_on.value if failure.judged_on else "-"
            table.add_row(failure.plan, failure.why.value, judged_on, failure.detail)
        console.print(table)
    more = len(shown) - SHOWN_FAILING
    if more > 0:
        console.print(f"and {more} more plans (--json has all)", highlight=False)
    if shapes:
        console.print(
            f"{shapes} plans cannot split the model's heads or FFN evenly", highlight=False
        )
    if lacking:
        name = report.question.node.backend.name
        console.print(
            f"{lacking} plans are none that {name} can run (--json has why, --backend others)",
            highlight=False,
        )

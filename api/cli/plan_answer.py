"""How ``gearshift plan`` shows what it found: what fails and why, what will do, the answer last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from api.cli.capacity_table import print_capacity_table
from api.cli.common import settings_column
from engine.spec.settings import Settings
from policies.numbers import counted, short
from policies.objective import cost_text

if TYPE_CHECKING:
    from policies.points import OperatingPoint
    from tuner.planner.document import Choice
    from tuner.planner.planner import PlanReport

FEW_BOUNDS, FOLDED = 2, 8
SHOWN_FEASIBLE = 12
SHOWN_FAILING = 24


def print_answer(report: PlanReport, document: dict[str, Any]) -> None:
    """Everything, the best plan and its commands last."""
    from tuner.planner.document import choices
    from tuner.planner.explore import JudgedOn

    # Lines to be pasted are not broken.
    console = Console(soft_wrap=True, highlight=False)
    _print_failing(console, report)
    _print_near_misses(console, document)
    _print_feasible(console, report)
    print_capacity_table(console, document["capacity_table"])
    judged = (f"{count} on {JudgedOn(kind).meaning}" for kind, count in document["judged"].items())
    console.print(f"judged: {', '.join(judged)}")
    if report.interrupted is not None:
        console.print(report.interrupted)
        return
    found = choices(report)
    if not found:
        _print_infeasible(console, document["infeasible"])
    cards = _cards(found)
    for nth, (roles, choice) in enumerate(cards, start=1):
        _print_choice(console, report, document, roles, choice)
        if nth == len(cards):
            # The document has the commands of the others too.
            for command in document["best"][choice.role]["launch"]:
                _print_command(console, command)


def _cards(found: tuple[Choice, ...]) -> list[tuple[str, Choice]]:
    """One per point, the best last: what is cheapest and fastest at once is told once."""
    roles: dict[int, list[str]] = {}
    for choice in found:
        roles.setdefault(id(choice.point), []).append(choice.role)
    first = {id(choice.point): choice for choice in reversed(found)}
    return [(", ".join(words), first[point]) for point, words in reversed(roles.items())]


def _print_choice(
    console: Console, report: PlanReport, document: dict[str, Any], roles: str, choice: Choice
) -> None:
    point, sla = choice.point, report.question.sla
    console.print(f"[bold]{roles}[/]: {point.settings}")
    console.print(
        f"  {counted(point.cost_devices, 'device')}, P(SLA met) {point.probability(sla):.2f}: "
        f"{choice.reason}"
    )
    for constraint in sla.per_run:
        estimate = point.metrics.get(constraint.key)
        if estimate is not None:
            interval = f"{short(estimate.low)} .. {short(estimate.high)}"
            console.print(f"  {constraint}: {short(estimate.value)} ({interval})")
    if (cost := document["best"][choice.role]["cost"]) is not None:
        console.print(f"  costs {cost_text(cost)}")


def _print_command(console: Console, launch: dict[str, Any]) -> None:
    if launch["is_rehearsal"]:
        console.print("  to rehearse without the hardware (no model is run):")
    text = launch["command"] or f"cannot: {launch['note']}"
    notes = [each for each in (launch["versions"], launch["note"]) if each]
    console.print(f"  {launch['system']}: {text}", markup=False)
    if launch["command"] and notes:
        console.print(f"    # {'; '.join(notes)}", markup=False)
    if (config := launch["config"]) is not None and config["is_needed"]:
        for line in (f"{config['name']}:", *(f"  {x}" for x in config["text"].splitlines())):
            console.print(f"  {line}", markup=False)


def _print_infeasible(console: Console, infeasible: dict[str, Any]) -> None:
    from tuner.search.report import infeasible_text

    console.print(infeasible_text(infeasible))
    if infeasible["is_from_single_requests"]:
        console.print("  not even with one request at a time")
    if "verdict" in infeasible:
        _print_ways_out(console, infeasible)
        return
    if (closest := infeasible["closest"]) is not None:
        headroom = closest["headroom"]
        if headroom is not None and headroom < 0:
            console.print(f"  the nearest misses by {_miss_text(-headroom)}")
    for relaxation in infeasible["relaxations"]:
        if relaxation["relaxed"] is not None:
            console.print(f"  {relaxation['relaxed']} would do, not {relaxation['constraint']}")


def _print_ways_out(console: Console, infeasible: dict[str, Any]) -> None:
    """What would help, all of it tried."""
    console.print(f"  {infeasible['verdict']}")
    if (enough := infeasible["enough_devices"]) is not None:
        settings = Settings.from_json(enough["settings"])
        console.print(f"  {enough['num_devices']} such devices would carry it: {settings}")
    else:
        console.print(f"  up to {infeasible['most_devices_tried']} such devices do not carry it")
    for way in infeasible["relaxations"]:
        if way["relaxed"] is None:
            console.print(f"  relaxing {way['constraint']}: {way['reason']}")
            continue
        text = f"  {way['relaxed']} would do, not {way['constraint']}"
        if (price := way["price_per_percentile_point_ms"]) is not None:
            text += f" (a lower percentile saves {short(price)} ms a point)"
        console.print(text)


def _miss_text(excess: float) -> str:
    """How far beyond a bound, as a share of the bound: in percent, or times the bound."""
    return f"{100 * excess:.0f} %" if excess < 1 else f"far: {short(1 + excess)} times the bound"


def _print_near_misses(console: Console, document: dict[str, Any]) -> None:
    if not document["near_misses"]:
        return
    table = Table("devices", settings_column(), "P(met)", "lacks", title="near misses")
    for miss in document["near_misses"]:
        chance = miss["sla_probability"]
        table.add_row(
            str(miss["num_devices"]),
            str(Settings.from_json(miss["settings"])),
            "-" if chance is None else f"{chance:.2f}",
            miss["why"],
        )
    console.print(table, soft_wrap=False)


def _print_feasible(console: Console, report: PlanReport) -> None:
    if not report.feasible:
        return
    sla = report.question.sla
    bounds = [c.key for c in sla.per_run]
    # Names of more bounds are folded, so that settings have room in 80 columns.
    width = None if len(bounds) <= FEW_BOUNDS else FOLDED
    metrics = [Column(key, overflow="fold", max_width=width) for key in bounds]
    table = Table("devices", settings_column(), *metrics, "P(met)", "KV tokens")
    table.title = f"{len(report.feasible)} settings whose simulated values meet {sla}"
    for point in report.feasible[:SHOWN_FEASIBLE]:
        settings = point.settings
        kv_tokens = report.question.node.memory(settings.plan, caps=settings.caps).kv_tokens
        cells = [_cell(point, key) for key in bounds]
        chance = f"{point.probability(sla):.2f}" if point.has_interval else "-"
        table.add_row(str(point.cost_devices), str(settings), *cells, chance, str(kv_tokens))
    console.print(table, soft_wrap=False)
    console.print("P(met): chance that a run meets the SLA; -: values without an interval")
    if (more := len(report.feasible) - SHOWN_FEASIBLE) > 0:
        console.print(f"and {more} more (--json has all)")


def _cell(point: OperatingPoint, key: str) -> str:
    estimate = point.metrics.get(key)
    return "-" if estimate is None else short(estimate.value)


def _print_failing(console: Console, report: PlanReport) -> None:
    from tuner.planner.explore import JudgedOn
    from tuner.planner.failures import Why

    shown = [f for f in report.failures if f.why not in (Why.SHAPE, Why.BACKEND)]
    shapes = sum(f.why is Why.SHAPE for f in report.failures)
    lacking = sum(f.why is Why.BACKEND for f in report.failures)
    if shown:
        table = Table("plan", "fails by", "judged on", "detail", title="plans that fail")
        for failure in shown[:SHOWN_FAILING]:
            judged_on = failure.judged_on.value if failure.judged_on else "-"
            table.add_row(failure.plan, failure.why.value, judged_on, failure.detail)
        console.print(table, soft_wrap=False)
        seen = {failure.judged_on for failure in shown if failure.judged_on}
        console.print("; ".join(f"{on}: {on.meaning}" for on in JudgedOn if on in seen))
    if (more := len(shown) - SHOWN_FAILING) > 0:
        console.print(f"and {more} more plans (--json has all)")
    if shapes:
        plans = counted(shapes, "plan")
        console.print(f"{plans} left out, which cannot split the model's heads or FFN evenly")
    if lacking:
        name = report.question.node.backend.name
        console.print(
            f"{counted(lacking, 'plan')} left out, which {name} cannot run (--json has why, "
            "--backend others)"
        )

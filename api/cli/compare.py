"""``gearshift compare``: static plans, Shift, the ladder and the oracle on the same load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import (
    end_interrupted,
    end_not_met,
    log,
    print_json,
    print_lines,
)
from api.cli.engine_options import MOST_DEVICES, ModelNameOption
from api.cli.grouped import grouped
from api.cli.groups import JobsOption, JudgedWorkload, LocalMachine, PrefixCacheOption
from api.cli.pictured import DrawnOutput
from api.cli.place import NamedCaps, Place
from api.cli.progress import stage_bar
from engine.spec.modes import AUTO
from engine.spec.plan import ParallelPlan, PlanSpec
from policies.numbers import short
from tuner.answers.cases import Question, local_caps, local_machine

if TYPE_CHECKING:
    from tuner.comparison import compare as comparing
    from tuner.described.steps import StepSource
    from tuner.described.title import Title
    from tuner.pictures.picture import Picture
    from tuner.planner.pool import Jobs


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """How much is compared, and on how much of this machine."""

    devices: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_DEVICES, help="Devices that every plan uses; by default all."),
    ] = None
    draws: Annotated[
        int, typer.Option(min=2, max=100, help="Draws of the arrivals, the same for all plans.")
    ] = 5
    jobs: JobsOption = None


@dataclass(frozen=True, kw_only=True)
class Where:
    """What is compared on, and how its answer is told."""

    question: comparing.ComparisonQuestion
    steps: StepSource
    title: Title
    origin: dict[str, Any]
    warnings: tuple[str, ...]


@grouped(
    help_order="model workload sla seed draws devices cost_model hardware backend backend_set "
    "max_num_seqs max_num_batched_tokens max_step_ms max_model_len dtype kv_cache_mib block_size "
    "link prefix_cache jobs out plot"
)
def compare(
    model: ModelNameOption,
    judged: JudgedWorkload,
    caps: NamedCaps,
    place: Place,
    machine: LocalMachine,
    comparing: Comparing,
    output: DrawnOutput,
    prefix_cache: PrefixCacheOption = None,
) -> None:
    """Compare TP, SP, PP, DP, hybrids, Shift, its ladder and a per-step oracle on the same load.

    All plans use the same devices and caps and see the same draws of the arrivals (those of
    `capacity`), so differences have intervals. Described hardware is served by the backend
    gearshift, unless one is named: not every system has all plans.
    """
    from tuner.comparison.document import comparison_json

    if place.hardware is not None and place.backend is None:
        place = replace(place, backend="gearshift")
    asked = Question(
        model=model,
        spec=PlanSpec(plan=ParallelPlan()),
        workload=judged.read_workload(),
        sla=judged.read_sla(),
        seed=judged.seed,
        mode=AUTO,
        rungs=None,
        caps=caps,
        served=place,
        prefix_cache=prefix_cache,
    )
    output.check()
    where = _where(asked, place, machine, comparing)
    for warning in where.warnings:
        log(f"warning: {warning}")
    runs, num_draws = _run(where.question, comparing.jobs)
    warnings = where.warnings
    if is_interrupted := num_draws < comparing.draws:
        note = f"interrupted after {num_draws} of {comparing.draws} draws"
        log(f"compare: {note}")
        warnings = (*warnings, note)
    document = comparison_json(
        replace(where.question, num_draws=num_draws),
        runs,
        seed=asked.seed,
        title=str(where.title),
        origin={**where.origin, **_steps(where, runs)},
        warnings=warnings,
        is_interrupted=is_interrupted,
    )
    output.write(document)
    output.draw(lambda: _picture(document))
    if output.as_json:
        print_json(document)
    else:
        print_lines(where.title.lines())
        _print(document)
    if is_interrupted:
        end_interrupted()
    if asked.sla is not None and not any(run.num_met == comparing.draws for run in runs):
        end_not_met()


def _run(
    question: comparing.ComparisonQuestion, jobs: Jobs
) -> tuple[tuple[comparing.Runs, ...], int]:
    """The runs, and of how many draws they are: fewer than asked after Ctrl-C."""
    from tuner.comparison.compare import ComparisonStopped, compare

    with stage_bar("compare") as show:
        try:
            return compare(question, jobs=jobs, on_progress=show), question.num_draws
        except ComparisonStopped as stopped:
            return stopped.runs, stopped.num_draws
        except KeyboardInterrupt:
            log("compare: no two draws of all plans are done, so there is nothing to compare yet")
            raise


def _where(asked: Question, place: Place, machine: LocalMachine, comparing: Comparing) -> Where:
    if place.hardware is None:
        place.refuse_backend("--hardware")
        return _here(asked, machine, comparing)
    machine.refuse()
    return _described(asked, place.hardware, comparing)


def _described(asked: Question, hardware: str, comparing: Comparing) -> Where:
    from api.cli.common import fail
    from engine.spec.settings import Settings
    from tuner.comparison.compare import ComparisonQuestion
    from tuner.comparison.engines import ComparedNode
    from tuner.described.document import node_json
    from tuner.described.steps import NodeSteps
    from tuner.described.title import Title

    node = asked.served.node(asked.model, hardware)
    count = comparing.devices or node.hardware.count
    if count > node.hardware.count:
        fail(f"--devices {count}: {node.hardware} has {node.hardware.count}")
    keeps_prefixes = asked.keeps_prefixes(node.backend.prefix_cache)
    settings = Settings(caps=asked.caps.over(node.backend.default_caps))
    origin = node_json(node, settings, asked.model)
    del origin["memory"]
    return Where(
        question=ComparisonQuestion(
            engine=ComparedNode(node=replace(node), seed=asked.seed, keeps_prefixes=keeps_prefixes),
            load=asked.workload,
            sla=asked.sla,
            caps=settings.caps,
            num_devices=count,
            num_draws=comparing.draws,
        ),
        steps=NodeSteps(node),
        title=Title.of_node(node, asked.asked),
        origin=origin,
        warnings=asked.warnings(keeps_prefixes=keeps_prefixes),
    )


def _here(asked: Question, machine: LocalMachine, comparing: Comparing) -> Where:
    from tuner.comparison.compare import ComparisonQuestion
    from tuner.comparison.engines import ComparedMachine
    from tuner.described.document import model_json
    from tuner.described.steps import MachineSteps
    from tuner.described.title import Title

    known = local_machine(asked, machine)
    model = known.step_model
    count = comparing.devices or model.max_ranks
    return Where(
        question=ComparisonQuestion(
            engine=ComparedMachine(machine=known, seed=asked.seed),
            load=asked.workload,
            sla=asked.sla,
            caps=asked.caps.over(local_caps()),
            num_devices=count,
            num_draws=comparing.draws,
        ),
        steps=MachineSteps(machine=known, num_devices=count),
        title=Title.of_machine(
            model.machine, known.config.dtype, asked.asked, weights=model.weights
        ),
        origin={
            "model": {"name": asked.model, **model_json(known.model)},
            "dtype": known.config.dtype.value,
            "cost_model": {"id": model.id, "machine": str(model.machine)},
        },
        warnings=(
            *asked.workload.warnings,
            *asked.warnings(keeps_prefixes=known.keeps_prefixes),
        ),
    )


def _steps(where: Where, runs: tuple[comparing.Runs, ...]) -> dict[str, Any]:
    """Step times of Shift where it runs, else of the first plan that does."""
    from tuner.comparison.compare import Kind
    from tuner.described.steps import steps_json

    able = [run.case for run in runs if run.case.settings is not None]
    wanted = [case for case in able if case.kind is Kind.SHIFT]
    told = next((case for case in wanted if "tuned" in case.name), None) or next(iter(able), None)
    if told is None or told.settings is None:
        return {}
    return {"steps": steps_json(where.steps, told.settings, where.question.load)}


def _picture(document: dict[str, Any]) -> Picture:
    from tuner.pictures.comparison import comparison_picture

    return comparison_picture(document)


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from tuner.comparison.document import best_rows

    console = Console()
    # The latencies and the throughput; what else the SLA bounds is in the document.
    metrics = document["metrics"][:4]
    sla = document["sla"]
    head = ["", *(metric["name"] for metric in metrics), *(["SLA met"] if sla else [])]
    columns = [Column(text, overflow="fold") for text in head]
    table = Table(*columns, title=f"mean of {document['num_draws']} draws, simulated")
    for case in document["cases"]:
        name = _breakable(case["label"])
        if case["reason"] is not None:
            table.add_row(name, *["-"] * (len(head) - 1))
            continue
        means = [case["metrics"][metric["key"]]["mean"] for metric in metrics]
        cells = ["-" if value is None else short(value) for value in means]
        met = [f"{case['draws_met']}/{document['num_draws']}"] if sla else []
        table.add_row(name, *cells, *met)
    console.print(table)
    words = ("", "best", "next", "difference (90 %)")
    best = Table(*(Column(word, overflow="fold") for word in words), title="best by each number")
    for row in best_rows(document):
        best.add_row(*map(_breakable, row))
    console.print(best)
    for line in document["answer"]:
        console.print(line)
    for case in document["cases"]:
        if case["reason"] is not None:
            console.print(f"{case['name']}: {case['reason']}")
    if "steps" in document:
        console.print(f"TP: {document['steps']['scaling']['text']}")
    for note in document["notes"]:
        console.print(note)


def _breakable(label: str) -> str:
    """A plan's axes may stand in several lines; typed with the spaces it is the same plan."""
    return label.replace(",", ", ").replace(",  ", ", ")

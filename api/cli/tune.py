"""``gearshift tune``: search the plan, threshold and caps that meet an SLA."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.answers import next_step
from api.cli.common import (
    end_interrupted,
    end_not_met,
    fail,
    log,
    print_json,
    print_lines,
)
from api.cli.grouped import grouped
from api.cli.groups import GoalOptions, Served
from api.cli.interrupts import stoppable
from api.cli.pictured import DrawnOutput
from api.cli.trial_bar import TrialBar
from api.cli.tune_options import LiveTrials, Search, TunedMachine, tuning_spec

if TYPE_CHECKING:
    from api.jobs.kept import Keeper
    from tuner.search.context import TuningEvent
    from tuner.search.costs import Spent
    from tuner.search.report import TuningReport
    from tuner.search.spec import TuningSpec
    from tuner.search.trials import TrialRecord

# What --resume may be named with; everything else is as the job began.
WITH_RESUME = ("resume", "trials", "out", "plot", "as_json")


@grouped(
    help_order="model workload sla objective use_all price_per_device_hour devices trials seed "
    "budget out hardware cost_model engine engine_command start_timeout_s live probe_requests "
    "probe_paced capacity_seconds dtype quantization backend backend_set device link timeout_s "
    "kv_cache_mib profile_seconds resume plot"
)
def tune(
    ctx: typer.Context,
    search: Search,
    trials: LiveTrials,
    machine: TunedMachine,
    served: Served,
    wanted: GoalOptions,
    report: DrawnOutput,
    hardware: Annotated[
        str, typer.Option(help="'local', or described hardware to simulate, as in 8xh200.")
    ] = "local",
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID|last", help="Go on with an interrupted job; its options are as they were."
        ),
    ] = None,
) -> None:
    """Search plan, shift threshold and caps together, and recommend the cheapest that will do.

    Every feasible plan is simulated; promising ones run on the live engine, or on a server that
    --engine names and each trial starts; the winner is measured again with a fresh seed. What is
    recommended meets the SLA with P of at least 0.8. Trials are kept in the local database as they
    end. Ctrl-C tells what was found so far.
    """
    from api.cli.tune_answer import print_answer
    from tuner.answers.tuned import Tuned

    report.check()
    if resume is not None:
        _refuse_beside_resume(ctx)
        has_trials = _is_given(ctx, "trials")
        job = _resumed(resume, num_trials=search.trials if has_trials else None)
    else:
        _check_hardware_options(hardware, machine, served)
        job = _new(
            tuning_spec(search, hardware, trials, machine, served, wanted), machine.cost_model
        )
    found, is_interrupted = _run(job)
    answer = Tuned(report=found)
    document = answer.document | {
        "job": job.keeper.job_id,
        "recommendation_id": job.keeper.recommendation_id,
        "is_interrupted": is_interrupted,
        "resume": job.keeper.resume_command if is_interrupted else None,
    }
    report.write(document)
    report.draw(answer.picture)
    if report.as_json:
        print_json(document)
    else:
        print_lines(answer.title.lines())
        print_answer(document, report.out)
        if (step := next_step(document, report.out)) is not None:
            print_lines([step])
    if is_interrupted:
        end_interrupted()
    if document["recommendation"] is None:
        end_not_met()


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is to be run, what an earlier run left, and where it is kept."""

    spec: TuningSpec
    cost_model: dict[str, Any] | None
    keeper: Keeper
    groundwork: dict[str, Any] | None = None
    trials: tuple[TrialRecord, ...] = ()
    spent: Spent | None = None


def _new(spec: TuningSpec, cost_model: str | None) -> _Job:
    from api.cli.local_database import find_database
    from api.jobs.kept import Keeper

    document = _cost_model(spec, cost_model)
    return _Job(spec=spec, cost_model=document, keeper=Keeper(find_database("trials are")))


def _resumed(word: str, *, num_trials: int | None) -> _Job:
    """The kept job; ``num_trials`` None: as many as it was begun with."""
    from api.cli.local_database import open_database
    from api.jobs.kept import Keeper, find_kept

    database = open_database()
    keeper = Keeper(database, find_kept(database, word).job_id)
    # Read once it is ours: what another command has just ended may have brought more.
    kept = find_kept(database, str(keeper.job_id))
    spec = kept.spec if num_trials is None else replace(kept.spec, trials=num_trials)
    log(f"resume: {kept.job_id} has {len(kept.trials)} of {spec.trials} trials")
    return _Job(
        spec=spec,
        cost_model=kept.cost_model,
        keeper=keeper,
        groundwork=kept.groundwork,
        trials=kept.trials,
        spent=kept.spent,
    )


def _run(job: _Job) -> tuple[TuningReport, bool]:
    """The report, and whether Ctrl-C cut the search short."""
    from tuner.search.costs import NOTHING_SPENT
    from tuner.search.prepare import prepare
    from tuner.search.tune import search

    keeper = job.keeper
    with _Progress(job.spec.trials, len(job.trials), keeper) as show, closing(keeper):
        try:
            context = prepare(
                job.spec, cost_model=job.cost_model, groundwork=job.groundwork, on_event=show
            )
        except KeyboardInterrupt:
            log("interrupted while preparing: nothing was found yet")
            end_interrupted()
        with context, stoppable("the answer from what was found follows") as is_stopped:
            keeper.begin(context)
            if (command := keeper.resume_command) is not None:
                show.say(f"kept: after an interruption, {command}")
            try:
                found = search(
                    context,
                    job.trials,
                    is_cancelled=lambda: is_stopped() or keeper.is_cancelled(),
                    spent=job.spent or NOTHING_SPENT,
                )
            except Exception as error:
                keeper.fail(str(error))
                raise
            is_interrupted = is_stopped() or keeper.is_cancelled()
            if is_interrupted:
                found = _as_interrupted(found)
            keeper.end(found, is_interrupted=is_interrupted)
            return found, is_interrupted


def _as_interrupted(found: TuningReport) -> TuningReport:
    note = f"interrupted after {len(found.trials)} of {found.spec.trials} trials"
    return replace(found, warnings=(*found.warnings, note))


def _refuse_beside_resume(ctx: typer.Context) -> None:
    """End where an option is named that would be in vain."""
    named = [name for name in ctx.params if name not in WITH_RESUME and _is_given(ctx, name)]
    if named:
        options = ", ".join("--" + name.replace("_", "-") for name in named)
        fail(f"{options}: --resume goes on with the options that the job began with")


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_hardware_options(hardware: str, machine: TunedMachine, served: Served) -> None:
    from tuner.search.spec import LOCAL

    if hardware != LOCAL:
        machine.refuse()
    else:
        served.refuse_backend("--hardware")


def _cost_model(spec: TuningSpec, source: str | None) -> dict[str, Any] | None:
    if source is None or not spec.is_local:
        return None
    from engine.spec.model import ModelConfig
    from tuner.step_model.files import load_cost_model

    return load_cost_model(source, ModelConfig.from_dir(spec.model_path)).to_json()


class _Progress(TrialBar):
    """Tells what a search does; trials, and what was spent after them, are kept."""

    def __init__(self, total: int, done: int, keeper: Keeper) -> None:
        super().__init__(total, done)
        self._keeper = keeper

    def __call__(self, event: TuningEvent) -> None:
        if event.kind == "trial":
            self._keeper.keep(event.data)
            self.advance()
        elif event.kind == "spent":  # tuner.search.costs.SPENT, not loaded for --help
            self._keeper.tell(event.kind, event.data)
        is_named = event.message.startswith(event.kind)
        self.say(event.message if is_named else f"{event.kind}: {event.message}")

"""``gearshift tune``: search the plan, threshold and caps that meet an SLA."""

from __future__ import annotations

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
from api.cli.engine_options import (
    MOST_DEVICES,
    MOST_SEED,
    DeviceOption,
    QuantizationOption,
    check_device,
)
from api.cli.grouped import grouped
from api.cli.groups import GoalOptions, LocalMachine, Served
from api.cli.interrupts import stoppable
from api.cli.pictured import DrawnOutput
from api.cli.trial_bar import TrialBar

if TYPE_CHECKING:
    from api.jobs.kept import Keeper
    from tuner.search.context import TuningEvent
    from tuner.search.report import TuningReport
    from tuner.search.spec import TuningSpec
    from tuner.search.trials import TrialRecord

# What --resume may be named with; everything else is as the job began.
WITH_RESUME = ("resume", "trials", "out", "plot", "as_json")


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for, and how far."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Model by name, as in llama-3.1-70b, or a folder in Hugging Face format.",
        ),
    ] = None
    workload: Annotated[
        str | None,
        typer.Option(help="Workload SPEC, as in azure:PATH,seconds=120,max_input=2048."),
    ] = None
    sla: Annotated[
        str | None, typer.Option(help="SLA, as in p95_ttft_ms<=500,p95_tpot_ms<=50.")
    ] = None
    devices: Annotated[
        int, typer.Option(min=1, max=MOST_DEVICES, help="Most devices (ranks) a plan may use.")
    ] = 2
    trials: Annotated[
        int, typer.Option(min=1, max=100_000, help="Trials, the baseline included.")
    ] = 12
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of everything random.")] = 0
    capacity_table: Annotated[
        bool,
        typer.Option(
            "--capacity-table",
            help="Also find what rate each plan carries within the SLA: simulated, and driven "
            "where trials run live.",
        ),
    ] = False
    capacity_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            max=86_400,
            help="For --capacity-table: where trials run live, drive each plan of the table for so "
            "many seconds; 0: only simulate.",
        ),
    ] = 60.0
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Device time that live runs may use, as in device_minutes=30: what does not fit "
            "is not started, and the best known is told.",
        ),
    ] = None

    def require(self, way_out: str) -> tuple[str, str, str]:
        """Model, workload and SLA; ends where one is missing."""
        asked = {"--model": self.model, "--workload": self.workload, "--sla": self.sla}
        given = [value for value in asked.values() if value is not None]
        if len(given) < len(asked):
            missing = ", ".join(option for option, value in asked.items() if value is None)
            fail(f"{missing}: {way_out}")
        model, workload, sla = given
        return model, workload, sla


@dataclass(frozen=True, kw_only=True)
class LiveTrials:
    """Which trials run on the real engine, and how."""

    live: Annotated[bool, typer.Option(help="Run trials on the live engine.")] = True
    probe_requests: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Requests of a live trial.")
    ] = 64
    probe_paced: Annotated[
        bool, typer.Option(help="Run the winner on the real engine, paced as described hardware.")
    ] = False
    timeout_s: Annotated[float, typer.Option(help="A request is timed out after this.")] = 60.0
    engine: Annotated[
        str,
        typer.Option(help="What trials run on: gearshift, or a server they start: vllm, sglang."),
    ] = "gearshift"
    engine_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="What starts the server, as in 'python -m vllm.entrypoints.openai.api_server "
            "--enforce-eager'; model, port, plan and caps are added. By default vllm serve.",
        ),
    ] = None
    start_timeout_s: Annotated[
        float, typer.Option(help="A server that does not answer by then has failed its trial.")
    ] = 900.0


@dataclass(frozen=True, kw_only=True)
class TunedMachine(LocalMachine):
    """This machine as a job finds it: profiled, where no cost model is named."""

    cost_model: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Cost model; without one this machine is profiled."),
    ] = None
    device: DeviceOption = "cpu"
    quantization: QuantizationOption = None
    kv_cache_mib: Annotated[
        int | None, typer.Option(min=1, max=2**30, help="KV cache per rank (CPU); by default 256.")
    ] = None
    profile_seconds: Annotated[
        float,
        typer.Option(
            min=1,
            max=86_400,
            help="About how long to profile without a cost model, starts included.",
        ),
    ] = 30.0


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
        job = _new(_spec(search, hardware, trials, machine, served, wanted), machine.cost_model)
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
    spent_device_s: float = 0.0


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
    kept = find_kept(database, word)
    spec = kept.spec if num_trials is None else replace(kept.spec, trials=num_trials)
    log(f"resume: {kept.job_id} has {len(kept.trials)} of {spec.trials} trials")
    return _Job(
        spec=spec,
        cost_model=kept.cost_model,
        keeper=Keeper(database, kept.job_id),
        groundwork=kept.groundwork,
        trials=kept.trials,
        spent_device_s=kept.spent_device_s,
    )


def _run(job: _Job) -> tuple[TuningReport, bool]:
    """The report, and whether Ctrl-C cut the search short."""
    from tuner.search.tune import prepare, search

    keeper = job.keeper
    with _Progress(job.spec.trials, len(job.trials), keeper) as show:
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
                    spent_device_s=job.spent_device_s,
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


def _spec(
    search: Search,
    hardware: str,
    trials: LiveTrials,
    machine: TunedMachine,
    served: Served,
    wanted: GoalOptions,
) -> TuningSpec:
    from tuner.search.spec import DEFAULT_KV_CACHE_MIB, TuningSpec

    model, workload, sla = search.require(
        "needed for a new job; --resume last goes on with an old one"
    )
    kv_cache_mib = machine.kv_cache_mib
    return TuningSpec(
        model_dir=model,
        num_devices=search.devices,
        workload=workload,
        sla=sla,
        trials=search.trials,
        seed=search.seed,
        hardware=hardware,
        dtype=None if served.dtype == "auto" else served.dtype,
        quantization=machine.quantization,
        backend=served.chosen_backend,
        device=check_device(machine.device),
        link=machine.link,
        is_live=trials.live,
        probe_requests=trials.probe_requests,
        probe_paced=trials.probe_paced,
        timeout_s=trials.timeout_s,
        capacity_seconds=search.capacity_seconds,
        budget=search.budget,
        engine=trials.engine,
        engine_command=trials.engine_command,
        start_timeout_s=trials.start_timeout_s,
        kv_cache_mib=DEFAULT_KV_CACHE_MIB if kv_cache_mib is None else kv_cache_mib,
        profile_seconds=machine.profile_seconds,
        objective=wanted.goal.objective.value,
        price_per_device_hour=wanted.price_per_device_hour,
        uses_all_devices=wanted.use_all,
        capacity_table=search.capacity_table,
    )


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

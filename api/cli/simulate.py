"""``gearshift simulate``: what a plan would do under a workload, without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, log, print_json
from api.cli.engine_options import (
    BackendOption,
    JsonOption,
    ModelNameOption,
    ModeOption,
    PlanOption,
    WideDTypeOption,
)

if TYPE_CHECKING:
    from engine.config import Caps, EngineConfig, ModelConfig
    from engine.executors.protocol import StepTimer
    from engine.plan import ParallelPlan, PlanSpec
    from policies.points import Estimate
    from policies.sla import Sla
    from tuner.arrivals import Workload
    from tuner.simulate import OnProgress, SimulationResult
    from tuner.space import Settings

MIB = 2**20
LOCAL_NUM_SEQS = 64
LOCAL_BATCHED_TOKENS = 2048


def simulate(
    model: ModelNameOption,
    workload: Annotated[
        str, typer.Option(help="Workload SPEC, as in poisson:rate=4,input=512,output=64.")
    ],
    plan: PlanOption = "tp=1",
    sla: Annotated[
        str | None, typer.Option(help="SLA, as in p95_ttft_ms<=500,attainment>=0.99.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of a synthetic workload.")] = 0,
    cost_model: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Cost model; by default this machine's newest."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Described hardware instead, as in 8xh200.")
    ] = None,
    backend: BackendOption = None,
    mode: ModeOption = "auto",
    max_num_seqs: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences per step; by default the backend's (here 64)."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per step; by default the backend's (here 2048)."),
    ] = None,
    max_step_ms: Annotated[
        float | None, typer.Option(help="Chunks are sized so that a mixed step fits this.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Context in tokens.")] = None,
    dtype: WideDTypeOption = "auto",
    kv_cache_mib: Annotated[
        int, typer.Option(min=1, help="KV cache per rank of this machine.")
    ] = 256,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 16,
    link: Annotated[
        str | None, typer.Option(help="Emulated link, as in latency_us=20,gbps=100.")
    ] = None,
    intervals: Annotated[
        bool, typer.Option(help="Also run with steps slower and faster by the device's interval.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the JSON document here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the run: .svg, .png or .html.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a plan under a workload with the engine's own scheduler and a cost model."""
    from engine.plan import parse_plan
    from policies.sla import Sla
    from tuner.workload import parse_workload

    question = _Question(
        model=model,
        spec=parse_plan(plan),
        workload=parse_workload(workload, seed=seed),
        sla=Sla.parse(sla) if sla else None,
        seed=seed,
        mode=mode,
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_step_ms=max_step_ms,
        max_model_len=max_model_len,
        block_size=block_size,
    )
    if plot is not None:
        from tuner.plots import check_plot

        check_plot(plot)
    if hardware is None:
        if backend is not None:
            fail(f"--backend {backend} is for described hardware: add --hardware, as in 8xh200")
        case = _on_this_machine(question, cost_model, kv_cache_mib, link)
    else:
        if cost_model is not None or link is not None:
            fail("--cost-model and --link are of this machine: leave out --hardware, or them")
        case = _described(question, hardware, backend, has_intervals=intervals)
    _answer(question, case, out=out, plot=plot, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What was asked, whatever the step times come from."""

    model: str
    spec: PlanSpec
    workload: Workload
    sla: Sla | None
    seed: int
    mode: str
    dtype: str
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_step_ms: float | None
    max_model_len: int | None
    block_size: int

    def settings(self, timer: StepTimer, default: Caps) -> Settings:
        """With the caps named, else ``default``'s; a threshold not named is advised."""
        from dataclasses import replace

        from engine.plan import DEFAULT_SHIFT_THRESHOLD
        from tuner.design import advised_threshold
        from tuner.space import Settings

        caps = replace(
            default,
            max_num_seqs=self.max_num_seqs or default.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or default.max_num_batched_tokens,
            max_step_ms=self.max_step_ms,
        )
        threshold = self.spec.threshold_tokens
        if threshold is None and self.spec.plan.shift:
            threshold = advised_threshold(timer, caps.max_num_seqs)
            log(f"simulate: threshold {threshold} tokens, as the two modes' step times advise")
        return Settings(
            plan=self.spec.plan,
            threshold_tokens=DEFAULT_SHIFT_THRESHOLD if threshold is None else threshold,
            caps=caps,
            mode=self.mode,
        )


@dataclass(frozen=True, kw_only=True)
class _Case:
    """Settings and how to run them; ``origin`` is where step times and memory come from."""

    settings: Settings
    run: Callable[[OnProgress], SimulationResult]
    origin: dict[str, Any]
    warnings: tuple[str, ...]
    interval: Callable[[SimulationResult, OnProgress], dict[str, Estimate]] | None = None


def _described(
    question: _Question, hardware: str, backend: str | None, *, has_intervals: bool
) -> _Case:
    """On hardware that is not here, served by a backend."""
    from tuner.described import DEFAULT_BACKEND, describe_node
    from tuner.simulation_document import node_json, node_warnings, with_interval

    node = describe_node(
        model=question.model,
        hardware=hardware,
        dtype=question.dtype,
        backend=backend or DEFAULT_BACKEND,
        block_size=question.block_size,
        max_model_len=question.max_model_len,
    )
    settings = question.settings(node.timer(question.spec.plan), node.backend.default_caps)
    workload, seed = question.workload, question.seed
    device = node.hardware.device
    log(f"simulate: {device.title} is {device.calibration}: {device.source}")

    def run(on_progress: OnProgress) -> SimulationResult:
        return node.simulate(settings, workload, seed=seed, on_progress=on_progress)

    def interval(result: SimulationResult, on_progress: OnProgress) -> dict[str, Estimate]:
        return with_interval(
            node, settings, workload, result, question.sla, seed=seed, on_progress=on_progress
        )

    return _Case(
        settings=settings,
        run=run,
        origin=node_json(node, settings, question.model),
        warnings=node_warnings(node, settings, workload),
        interval=interval if has_intervals else None,
    )


def _on_this_machine(
    question: _Question, cost_model: str | None, kv_cache_mib: int, link: str | None
) -> _Case:
    """On this machine, as its cost model knows it."""
    from engine.config import Caps, EngineConfig, LinkEmulation, num_kv_blocks
    from engine.plan import check_plan
    from tuner.cost_model_files import load_cost_model
    from tuner.described import read_rank_dtype
    from tuner.models import load_model
    from tuner.simulate import simulate as run_simulation
    from tuner.simulation_document import model_json

    model, plan = load_model(question.model), question.spec.plan
    check_plan(plan, model)
    config = EngineConfig(
        model_dir=Path(question.model),
        plan=plan,
        dtype=read_rank_dtype(question.dtype, model),
        block_size=question.block_size,
        kv_cache_bytes=kv_cache_mib * MIB,
        link=LinkEmulation.parse(link) if link else None,
    )
    step_model = load_cost_model(cost_model, model, dtype=config.dtype)
    timer = step_model.timer(plan, model, link=config.link)
    default = Caps(max_num_seqs=LOCAL_NUM_SEQS, max_num_batched_tokens=LOCAL_BATCHED_TOKENS)
    settings = question.settings(timer, default)
    log(f"simulate: cost model {step_model.id} of {step_model.machine}")

    def run(on_progress: OnProgress) -> SimulationResult:
        return run_simulation(
            model=model,
            plan=plan,
            threshold_tokens=settings.threshold_tokens,
            caps=settings.caps,
            workload=question.workload,
            timer=timer,
            num_kv_blocks=num_kv_blocks(config, model, plan),
            block_size=question.block_size,
            max_model_len=question.max_model_len,
            mode=settings.mode,
            seed=question.seed,
            on_progress=on_progress,
        )

    cuts = [f"workload: {cut}" for cut in question.workload.source.cuts]
    doubts = _doubts(step_model.check_model(model), plan, step_model.max_ranks)
    return _Case(
        settings=settings,
        run=run,
        origin={
            "model": {"name": question.model, **model_json(model)},
            "dtype": config.dtype.value,
            "cost_model": {"id": step_model.id, "machine": str(step_model.machine)},
            "memory": _local_memory(config, model, plan),
        },
        warnings=(*cuts, *doubts),
    )


def _local_memory(config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> dict[str, Any]:
    from engine.config import num_kv_blocks

    blocks = num_kv_blocks(config, model, plan)
    return {
        "weight_bytes_per_rank": model.weight_bytes_per_rank(plan, config.dtype),
        "kv_bytes_per_rank": config.kv_cache_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token(plan, config.dtype),
        "kv_tokens": blocks * config.block_size,
        "block_size": config.block_size,
        "num_kv_blocks": blocks,
    }


def _doubts(other_model: str | None, plan: ParallelPlan, max_ranks: int) -> list[str]:
    found = [other_model] if other_model else []
    if plan.world_size > max_ranks:
        found.append(
            f"plan {plan} has {plan.world_size} ranks; at most {max_ranks} were timed at once on "
            "this machine, so its numbers extrapolate as if each rank had a core"
        )
    return found


def _answer(
    question: _Question, case: _Case, *, out: Path | None, plot: Path | None, as_json: bool
) -> None:
    """Run the case and hand out what came of it."""
    from api.cli.progress import request_progress
    from tuner.simulation_document import simulation_json

    for warning in case.warnings:
        log(f"warning: {warning}")
    with request_progress("simulate") as show:
        result = case.run(show)
    estimates = None
    if case.interval is not None:
        with request_progress("interval") as show:
            estimates = case.interval(result, show)
    document = simulation_json(
        result,
        sla=question.sla,
        settings=case.settings,
        workload=question.workload,
        seed=question.seed,
        origin=case.origin,
        intervals=estimates,
        warnings=case.warnings,
    )
    _write(document, result, case.settings, out=out, plot=plot)
    if as_json:
        print_json(document)
    else:
        _print(case.settings, document)


def _write(
    document: dict[str, Any],
    result: SimulationResult,
    settings: Settings,
    *,
    out: Path | None,
    plot: Path | None,
) -> None:
    import json

    try:
        if out is not None:
            out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        if plot is not None:
            from tuner.plots import plot_timeline
            from tuner.simulation_document import timelines

            title = f"{document['model']['name']}, {settings}"
            plot_timeline(plot, *timelines(result), title=title)
    except OSError as error:
        fail(f"cannot write {error.filename}: {error.strerror}")


def _print(settings: Settings, document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from policies.report import LATENCIES

    metrics, intervals = document["metrics"], document["intervals"] or {}
    table = Table("metric", "mean", "p50", "p90", "p95", "p99", "p95 interval")
    table.title = f"{settings}, simulated (ms)"
    for name in LATENCIES:
        row = metrics[name]
        cells = ["-" if value is None else f"{value:.2f}" for value in row.values()]
        ends = intervals.get(f"p95_{name}")
        cells.append("-" if ends is None else f"{ends['low']:.2f} .. {ends['high']:.2f}")
        table.add_row(name.removesuffix("_ms"), *cells)
    console = Console()
    console.print(table)
    for name in ("throughput_tokens_per_s", "goodput_rps", "attainment"):
        value = metrics[name]
        console.print(f"{name}: {'-' if value is None else f'{value:.4g}'}")
    counts, memory = document["counts"], document["memory"]
    steps = ", ".join(f"{count} in {mode}" for mode, count in counts["steps"].items())
    console.print(
        f"steps: {steps}; {counts['mode_switches']} mode switches, "
        f"{counts['preemptions']} preemptions"
    )
    console.print(
        f"memory: {memory['weight_bytes_per_rank'] / 1e9:.3g} GB of weights per rank, KV for "
        f"{memory['kv_tokens']} tokens per replica"
    )
    if document["sla"] is not None:
        missed = [f"{v['constraint']} ({v['actual']})" for v in document["sla"]["violations"]]
        console.print("SLA met" if not missed else f"SLA missed: {'; '.join(missed)}")

"""``gearshift simulate``: what a plan would do under a workload, without running it."""

from __future__ import annotations

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
    refuse_of_this_machine,
)
from api.cli.simulate_cases import Case, Question, described, on_this_machine
from engine.spec.settings import ModePin

if TYPE_CHECKING:
    from engine.spec.settings import Settings
    from tuner.simulation.simulate import SimulationResult


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
    mode: ModeOption = ModePin.AUTO,
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
        int | None, typer.Option(min=1, help="KV cache per rank of this machine; by default 256.")
    ] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 16,
    link: Annotated[
        str | None, typer.Option(help="Emulated link, as in latency_us=20,gbps=100.")
    ] = None,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache",
            help="Blocks of equal beginnings are shared (traces with hash_ids or prefix_id).",
        ),
    ] = False,
    intervals: Annotated[
        bool, typer.Option(help="Also run with steps slower and faster by what they may be off.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the JSON document here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the run: .svg, .png or .html.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Write one line per step, as a live engine does."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a plan under a workload with the engine's own scheduler and a cost model."""
    from engine.spec.plan import parse_plan
    from policies.sla import Sla
    from tuner.workload.parse import parse_workload

    question = Question(
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
        prefix_cache=prefix_cache,
    )
    if plot is not None:
        from tuner.described.plots import check_plot

        check_plot(plot)
    if hardware is None:
        if backend is not None:
            fail(f"--backend {backend} is for described hardware: add --hardware, as in 8xh200")
        case = on_this_machine(question, cost_model, kv_cache_mib, link, has_intervals=intervals)
    else:
        refuse_of_this_machine(cost_model=cost_model, link=link, kv_cache_mib=kv_cache_mib)
        case = described(question, hardware, backend, has_intervals=intervals)
    _answer(question, case, out=out, plot=plot, samples=samples, as_json=as_json)


def _answer(
    question: Question,
    case: Case,
    *,
    out: Path | None,
    plot: Path | None,
    samples: Path | None,
    as_json: bool,
) -> None:
    """Run the case and hand out what came of it."""
    from api.cli.progress import request_progress
    from tuner.described.document import simulation_json, with_interval

    for warning in case.warnings:
        log(f"warning: {warning}")
    with request_progress("simulate") as show:
        result = case.run(1.0, show)
    estimates = None
    if case.interval is not None:
        with request_progress("interval") as show:
            estimates = with_interval(
                result, case.run, question.sla, interval=case.interval, on_progress=show
            )
    document = simulation_json(
        result,
        sla=question.sla,
        settings=case.settings,
        workload=question.workload,
        seed=question.seed,
        origin=case.origin,
        intervals=estimates,
        energy=case.energy(result) if case.energy is not None else None,
        has_prefix_cache=question.prefix_cache,
        warnings=case.warnings,
    )
    _write(document, result, case.settings, out=out, plot=plot, samples=samples)
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
    samples: Path | None,
) -> None:
    import json

    import msgspec

    from tuner.simulation.step_samples import step_samples

    try:
        if out is not None:
            out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        if plot is not None:
            from tuner.described.document import timelines
            from tuner.described.plots import plot_timeline

            title = f"{document['model']['name']}, {settings}"
            plot_timeline(plot, *timelines(result), title=title)
        if samples is not None:
            lines = (msgspec.json.encode(s) for s in step_samples(result.segments, result.spells))
            samples.write_bytes(b"\n".join(lines) + b"\n")
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
    if document["prefix_cache"]["enabled"]:
        cache = document["prefix_cache"]
        share = cache["hit_tokens"] / max(1, cache["query_tokens"])
        console.print(f"prefix cache: {share:.0%} of {cache['query_tokens']} prompt tokens found")
    if document["energy"] is not None:
        energy = document["energy"]
        console.print(
            f"energy (estimate): {energy['joules'] / 3.6e6:.3g} kWh, mean {energy['mean_w']:.0f} W"
        )
    if document["sla"] is not None:
        missed = [f"{v['constraint']} ({v['actual']})" for v in document["sla"]["violations"]]
        console.print("SLA met" if not missed else f"SLA missed: {'; '.join(missed)}")

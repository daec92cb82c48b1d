"""``gearshift simulate``: what a plan would do under a workload, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import log, print_json
from api.cli.engine_options import (
    JsonOption,
    ModelOption,
    ModeOption,
    PlanOption,
    read_dtype,
    read_threshold,
)

if TYPE_CHECKING:
    from engine.config import EngineConfig, ModelConfig
    from engine.executors.protocol import StepTimer
    from engine.plan import ParallelPlan
    from tuner.simulate import SimulationResult

MIB = 2**20


def simulate(
    model: ModelOption,
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
    mode: ModeOption = "auto",
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens per step.")] = 2048,
    max_step_ms: Annotated[
        float | None, typer.Option(help="Chunks are sized so that a mixed step fits this.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Context in tokens.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ..., or auto.")] = "auto",
    kv_cache_mib: Annotated[int, typer.Option(min=1, help="KV cache per rank.")] = 256,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 16,
    link: Annotated[
        str | None, typer.Option(help="Emulated link, as in latency_us=20,gbps=100.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a plan under a workload with the engine's own scheduler and a cost model."""
    from engine.config import Caps, EngineConfig, LinkEmulation, ModelConfig
    from engine.plan import check_plan, parse_plan
    from policies.report import measurement_json
    from policies.sla import Sla
    from tuner.simulate import simulate as run
    from tuner.workload import parse_workload

    constraints = Sla.parse(sla) if sla else None
    shape = ModelConfig.from_dir(model)
    spec = parse_plan(plan)
    check_plan(spec.plan, shape)
    load = parse_workload(workload, seed=seed)
    for cut in load.source.cuts:
        log(f"workload: {cut}")
    config = EngineConfig(
        model_dir=model,
        plan=spec.plan,
        dtype=read_dtype(dtype, model),
        block_size=block_size,
        kv_cache_bytes=kv_cache_mib * MIB,
        link=LinkEmulation.parse(link) if link else None,
    )
    timer, num_blocks = _timer(config, shape, cost_model, hardware)
    result = run(
        model=shape,
        plan=spec.plan,
        threshold_tokens=read_threshold(spec.threshold_tokens),
        caps=Caps(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_step_ms=max_step_ms,
        ),
        workload=load,
        timer=timer,
        num_kv_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        mode=mode,
        seed=seed,
    )
    document = measurement_json(result.measurement, constraints)
    if as_json:
        print_json(document)
    else:
        _print(spec.plan, result, document["metrics"])


def _timer(
    config: EngineConfig, model: ModelConfig, cost_model: str | None, hardware: str | None
) -> tuple[StepTimer, int]:
    """Step times and KV blocks per rank: of described hardware, or of this machine's model."""
    from dataclasses import replace

    from engine.config import num_kv_blocks

    if hardware is not None:
        from tuner.hardware import paced_timer, parse_hardware

        node = parse_hardware(hardware)
        log(f"simulate: {node.device.title} is {node.device.calibration}: {node.device.source}")
        there = replace(
            config,
            device_memory_bytes=int(node.device.memory_bytes),
            memory_utilization=node.device.efficiency.usable_memory,
        )
        blocks = num_kv_blocks(there, model, config.plan)
        return paced_timer(node, model, config.plan, config.dtype), blocks
    from tuner.cost_model_files import load_cost_model

    step_model = load_cost_model(cost_model, model, dtype=config.dtype)
    for warning in _warnings(step_model.check_model(model), config.plan, step_model.max_ranks):
        log(f"warning: {warning}")
    log(f"simulate: cost model {step_model.id} of {step_model.machine}")
    timer = step_model.timer(config.plan, model, link=config.link)
    return timer, num_kv_blocks(config, model, config.plan)


def _warnings(other_model: str | None, plan: ParallelPlan, max_ranks: int) -> list[str]:
    found = [other_model] if other_model else []
    if plan.world_size > max_ranks:
        found.append(
            f"plan {plan} has {plan.world_size} ranks; at most {max_ranks} were timed at once on "
            "this machine, so its numbers extrapolate as if each rank had a core"
        )
    return found


def _print(plan: ParallelPlan, result: SimulationResult, metrics: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    from policies.report import LATENCIES

    table = Table("metric", "mean", "p50", "p90", "p95", "p99", title=f"{plan}, simulated (ms)")
    for name in LATENCIES:
        row = metrics[name]
        assert isinstance(row, dict), "latencies are distributions"
        cells = ("-" if value is None else f"{value:.2f}" for value in row.values())
        table.add_row(name.removesuffix("_ms"), *cells)
    console = Console()
    console.print(table)
    for name in ("throughput_tokens_per_s", "goodput_rps", "attainment"):
        value = metrics[name]
        console.print(f"{name}: {'-' if value is None else f'{value:.4g}'}")
    counts = result.counts
    steps = ", ".join(f"{count} in {mode}" for mode, count in counts.steps.items())
    console.print(
        f"steps: {steps}; {counts.mode_switches} mode switches, {counts.preemptions} preemptions"
    )

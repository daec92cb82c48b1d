"""Question: how close is a simulated run to a live one, on plans whose runs fitted nothing?

The step model is fitted on a profile (operators, collectives, passes of a model cut to a few
layers) and on a short one-rank serving run of other lengths. Then every plan is simulated once
and run live several times, plans interleaved, so that a slow minute of the machine hits all.

    python -m benchmarks.simulated_vs_measured --out FILE.md
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from benchmarks.quiet import OtherPrograms
from engine.config import Caps, EngineConfig, ExecutorKind, ModelConfig, num_kv_blocks
from engine.measurement import Fidelity, Measurement
from engine.models.create import create_model
from engine.plan import ParallelPlan, parse_plan
from tuner.arrivals import Workload
from tuner.cost_model import StepModel
from tuner.cost_model_fit import fit_step_model
from tuner.design import advised_threshold
from tuner.live import LiveEngine
from tuner.machine import num_cores, this_machine
from tuner.profile import Profile, read_json
from tuner.profile_run import ProfileSpec, run_profile
from tuner.simulate import simulate
from tuner.space import Settings
from tuner.workload import parse_workload

PLANS = ("tp=1", "tp=2", "sp=2", "sp=2,shift", "pp=2", "dp=2")
WORKLOADS = (
    "closed:concurrency=8,input=256,output=48,requests=64,input_cv=0.5,output_cv=0.5",
    "poisson:rate=2.5,input=192,output=32,requests=40,input_cv=0.8,output_cv=0.5",
)
METRICS = ("output tokens/s", "TTFT p50 ms", "TPOT p50 ms")
# A run during which other programs took more of the cores than this is discarded and repeated.
MAX_OTHERS = 0.04
MAX_TRIES = 6
PAUSE_S = 10.0
CAPS = Caps(max_num_seqs=32, max_num_batched_tokens=512)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One live run: its numbers, the share of the cores other programs took, runs discarded."""

    numbers: tuple[float, ...]
    others: float
    discarded: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan under one workload: the simulated numbers and those of each live repeat."""

    workload: str
    settings: Settings
    simulated: tuple[float, ...]
    measured: tuple[Run, ...]


def main() -> None:
    """Profile (or read a profile), simulate, measure, write the report."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="gearshift-bench-") as folder:
        model_dir = options.model or Path(folder) / "model"
        if options.model is None:
            create_model(model_dir, preset=options.preset, seed=options.seed)
        profile = _profile(options, model_dir)
        model = ModelConfig.from_dir(model_dir)
        step_model = fit_step_model(profile, model, seed=options.seed)
        rows = compare(model_dir, step_model, repeats=options.repeats, seed=options.seed)
    text = report(rows, step_model, options)
    if options.out is not None:
        options.out.write_text(text)
    print(text)


def compare(model_dir: Path, step_model: StepModel, *, repeats: int, seed: int) -> list[Row]:
    """Simulate every plan under every workload, then run all of it live, interleaved."""
    model = ModelConfig.from_dir(model_dir)
    config = EngineConfig(
        model_dir=model_dir,
        dtype=step_model.dtype,
        executor=ExecutorKind.PROCESS,
        envelope=CAPS,
        max_devices=num_cores(),
    )
    every = [_settings(text, step_model, model) for text in PLANS]
    workloads = {text: parse_workload(text, seed=seed) for text in WORKLOADS}
    cases = [(text, settings) for text in WORKLOADS for settings in every]
    simulated = {
        (text, s): _numbers(_simulate(config, model, step_model, s, workloads[text]))
        for text, s in cases
    }
    measured: dict[tuple[str, Settings], list[Run]] = {case: [] for case in cases}
    with LiveEngine(config) as live:
        for repeat in range(repeats):
            turn = repeat % len(every)
            for settings in every[turn:] + every[:turn]:
                for text, workload in workloads.items():
                    run = _measure(live, settings, workload, seed + 100 * repeat)
                    measured[text, settings].append(run)
                    print(f"repeat {repeat}: {settings.plan}: {text}: {run}", flush=True)
    return [
        Row(
            workload=text,
            settings=s,
            simulated=simulated[text, s],
            measured=tuple(measured[text, s]),
        )
        for text, s in cases
    ]


def _measure(live: LiveEngine, settings: Settings, workload: Workload, seed: int) -> Run:
    """One live run; while other programs take too much of the cores, it is repeated."""
    runs: list[Run] = []
    while not runs or (runs[-1].others > MAX_OTHERS and len(runs) < MAX_TRIES):
        if runs:
            time.sleep(PAUSE_S)
        with OtherPrograms() as others:
            measurement = live.measure(
                settings, workload, seed=seed, timeout_s=600.0, fidelity=Fidelity.MEASURED
            )
        runs.append(Run(numbers=_numbers(measurement), others=others.share, discarded=len(runs)))
    return min(runs, key=lambda run: run.others)


def report(rows: Sequence[Row], step_model: StepModel, options: argparse.Namespace) -> str:
    """The dated report: the question, the tables, the fit, and how to repeat it."""
    lines = [
        "# Simulated against measured",
        "",
        "Each plan was simulated with a step model and run live "
        f"{options.repeats} times, plans interleaved. Fitted on a profile (operators, "
        "collectives, passes of the model cut to a few layers under "
        f"{'; '.join(step_model.fitted_plans)}) and on a short serving run of other lengths on "
        f"{', '.join(step_model.served_plans)}. No serving run of two ranks was used.",
        "",
        "`measured` is the mean of the repeats, `spread` (largest - smallest) / mean, `error` "
        "simulated against that mean.",
    ]
    for workload in WORKLOADS:
        lines += ["", f"## `{workload}`", "", *_table([r for r in rows if r.workload == workload])]
    lines += ["", "## Summary", "", *_summary(rows), "", *_quietness(rows)]
    lines += ["", "## Fit", "", *_fit(step_model)]
    return "\n".join([*lines, "", "## How to repeat", "", *_setup(options), ""])


def _table(rows: Sequence[Row]) -> list[str]:
    head = ["plan"]
    for name in METRICS:
        head += [f"{name}: simulated", "measured", "spread", "error"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [_plan_text(row.settings)]
        for nth in range(len(METRICS)):
            mean, spread, error = _compare(row, nth)
            cells += [f"{row.simulated[nth]:.1f}", f"{mean:.1f}", f"{spread:.0%}", f"{error:+.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _compare(row: Row, nth: int) -> tuple[float, float, float]:
    """Mean of the repeats, their relative spread, and the simulation's relative error."""
    values = [run.numbers[nth] for run in row.measured]
    mean = fmean(values)
    return mean, (max(values) - min(values)) / mean, row.simulated[nth] / mean - 1


def _summary(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| metric | mean absolute error | worst | mean spread of repeats |",
        "|" + " --- |" * 4,
    ]
    for nth, name in enumerate(METRICS):
        compared = [_compare(row, nth) for row in rows]
        errors = [abs(error) for _, _, error in compared]
        spread = fmean(spread for _, spread, _ in compared)
        lines.append(f"| {name} | {fmean(errors):.1%} | {max(errors):.1%} | {spread:.1%} |")
    return lines


def _quietness(rows: Sequence[Row]) -> list[str]:
    runs = [run for row in rows for run in row.measured]
    loud = sum(run.others > MAX_OTHERS for run in runs)
    return [
        f"{len(runs)} runs. Other programs took {fmean(r.others for r in runs):.1%} of the cores "
        f"on average and {max(r.others for r in runs):.1%} at most. "
        f"{sum(run.discarded for run in runs)} more runs were discarded because they took more "
        f"than {MAX_OTHERS:.0%}; {loud} kept ones are above it, after {MAX_TRIES} tries."
    ]


def _fit(step_model: StepModel) -> list[str]:
    error = step_model.error
    with_residual = "none" if error.residual_mape is None else f"{error.residual_mape:.1%}"
    used = "is active" if error.is_residual_active else "is not active"
    return [
        f"{error.num_pieces} pieces, {error.num_samples} one-rank steps; serving factor "
        f"{step_model.serving_factor:.3f}. Mean absolute error on steps of a plan left out of the "
        f"fit: {error.roofline_mape:.1%} by the roofline part, {with_residual} with the boosted "
        f"residual, which {used}.",
        "",
        "| left out | steps | mean absolute error | bias |",
        "| --- | --- | --- | --- |",
        *(f"| {g.plan} | {g.num_steps} | {g.mape:.1%} | {g.bias:+.1%} |" for g in error.groups),
    ]


def _setup(options: argparse.Namespace) -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    return [
        f"`OMP_NUM_THREADS=1 python -m benchmarks.simulated_vs_measured --preset {options.preset} "
        f"--repeats {options.repeats} --seconds {options.seconds:g} --seed {options.seed}`",
        "",
        f"Machine: {this_machine()}; {platform.system()}; "
        f"Python {platform.python_version()}; {packages}. float32, one thread per rank, process "
        f"executor for every plan, caps {CAPS.max_num_seqs} sequences and "
        f"{CAPS.max_num_batched_tokens} tokens.",
    ]


def _settings(text: str, step_model: StepModel, model: ModelConfig) -> Settings:
    plan = parse_plan(text).plan
    if not plan.shift:
        return Settings(plan=plan, caps=CAPS)
    threshold = advised_threshold(step_model.timer(plan, model), CAPS.max_num_seqs)
    return Settings(plan=plan, threshold_tokens=max(threshold, CAPS.max_num_seqs), caps=CAPS)


def _simulate(
    config: EngineConfig,
    model: ModelConfig,
    step_model: StepModel,
    settings: Settings,
    workload: Workload,
) -> Measurement:
    return simulate(
        model=model,
        plan=settings.plan,
        threshold_tokens=settings.threshold_tokens,
        caps=settings.caps,
        workload=workload,
        timer=step_model.timer(settings.plan, model),
        num_kv_blocks=num_kv_blocks(replace(config, plan=settings.plan), model, settings.plan),
        block_size=config.block_size,
    ).measurement


def _numbers(run: Measurement) -> tuple[float, ...]:
    ttft_ms, tpot_ms = run.ttft_ms.p50, run.tpot_ms.p50
    assert ttft_ms is not None, "no request completed"
    assert tpot_ms is not None, "no request had two tokens"
    return (run.throughput_tokens_per_s, ttft_ms, tpot_ms)


def _plan_text(settings: Settings) -> str:
    plan: ParallelPlan = settings.plan
    return f"`{plan}={settings.threshold_tokens}`" if plan.shift else f"`{plan}`"


def _profile(options: argparse.Namespace, model_dir: Path) -> Profile:
    if options.profile is not None:
        return Profile.from_json(read_json(options.profile), where=str(options.profile))
    spec = ProfileSpec(
        model_dir=model_dir, num_ranks=2, seconds=options.seconds, seed=options.seed + 1
    )
    for _ in range(MAX_TRIES):
        with OtherPrograms() as others:
            profile = run_profile(spec, on_event=lambda text: print(text, flush=True))
        print(f"profiled while other programs took {others.share:.1%} of the cores", flush=True)
        if others.share <= MAX_OTHERS:
            break
    if options.keep_profile is not None:
        options.keep_profile.write_text(json.dumps(profile.to_json()))
    return profile


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; by default a random one")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--profile", type=Path, help="use this profile instead of measuring")
    parser.add_argument("--keep-profile", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0, help="about how long to profile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

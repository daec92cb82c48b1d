"""Question: how close is a simulated run to a live one, on plans whose runs fitted nothing?

The step model is fitted on a profile (operators, collectives, passes of a model cut to a few
layers) and on a short one-rank serving run of other lengths. Every plan is run live several times,
plans interleaved, and before each such repeat a part of the profile is measured: a machine that
other guests share changes its speed by tens of percent within minutes, and so that hits all. The
simulation sees the profile only. It takes about 10 minutes; ``--limit-s`` bounds it: no repeat
begins that would not end in time.

    python -m benchmarks.simulated_vs_measured --out FILE.md
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import monotonic

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from benchmarks.simulated_vs_measured_report import MAX_OTHERS, MAX_TRIES, Row, Run, report
from engine.executors.protocol import StepTimer
from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind, num_kv_blocks
from engine.spec.measurement import Fidelity, Measurement
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import ENDS
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.processor import num_cores
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepSample
from tuner.load.live import LiveEngine
from tuner.profiling.profile import Profile, merged, read_json
from tuner.profiling.run import ProfileSpec, run_profile
from tuner.search.design import advised_rule
from tuner.simulation.simulate import Ranks, SimulatedEngine, simulate
from tuner.spec.look_ahead import LookAhead
from tuner.spec.machine import this_machine
from tuner.step_model.fit import fit_step_model
from tuner.step_model.model import StepModel
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

PLANS = ("tp=1", "tp=2", "sp=2", "sp=2,shift", "pp=2", "dp=2")
WORKLOADS = (
    "closed:concurrency=8,input=256,output=48,requests=32,input_cv=0.5,output_cv=0.5",
    "poisson:rate=2,input=192,output=32,requests=20,input_cv=0.8,output_cv=0.5",
)
PAUSE_S = 10.0
CAPS = Caps(max_num_seqs=32, max_num_batched_tokens=512)


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """One live run as it was measured, with its steps."""

    measurement: Measurement
    samples: tuple[StepSample, ...]
    others: float
    discarded: int


LiveRuns = dict[tuple[str, Settings], list[LiveRun]]


def main() -> None:
    """Profile (or read a profile) and measure in turn, simulate, write the report."""
    options = _options()
    until_s = monotonic() + options.limit_s
    with tempfile.TemporaryDirectory(prefix="gearshift-bench-") as folder:
        model_dir = options.model or Path(folder) / "model"
        if options.model is None:
            create_model(model_dir, preset=options.preset, seed=options.seed)
        model = ModelConfig.from_dir(model_dir)
        profile, measured = profile_and_measure(model_dir, model, options, until_s)
        if options.keep_profile is not None:
            options.keep_profile.write_text(json.dumps(profile.to_json()))
        step_model = fit_step_model(profile, model, seed=options.seed)
        config = _config(model_dir, step_model.dtype)
        rows = [
            _row(config, model, step_model, text, settings, runs, options.seed)
            for (text, settings), runs in measured.items()
        ]
    text = report(rows, step_model, _setup(options, num_rounds=len(rows[0].measured)))
    publish(text, options.out)


def profile_and_measure(
    model_dir: Path, model: ModelConfig, options: argparse.Namespace, until_s: float
) -> tuple[Profile, LiveRuns]:
    """A part of the profile, then every plan under every workload, in turn.

    Repeats after the first begin only where one like the longest so far ends by ``until_s``.
    """
    rounds = [_profile_round(options, model_dir, 0, until_s)]
    first = fit_step_model(rounds[0], model, seed=options.seed)
    every = [_settings(text, first, model) for text in PLANS]
    workloads = {text: parse_workload(text, seed=options.seed) for text in WORKLOADS}
    measured: LiveRuns = {(text, settings): [] for text in WORKLOADS for settings in every}
    longest_s = 0.0
    for repeat in range(options.repeats):
        begun_s = monotonic()
        if repeat and begun_s + longest_s > until_s:
            break
        if repeat and options.profile is None:
            rounds.append(_profile_round(options, model_dir, repeat, until_s))
        turn = repeat % len(every)
        with LiveEngine(_config(model_dir, first.dtype)) as live:
            for settings in every[turn:] + every[:turn]:
                for text, workload in workloads.items():
                    seed = options.seed + 100 * repeat
                    run = _measure(live, settings, workload, seed, until_s)
                    measured[text, settings].append(run)
                    numbers = _numbers(run.measurement)
                    print(f"repeat {repeat}: {settings.plan}: {text}: {numbers}", flush=True)
        longest_s = max(longest_s, monotonic() - begun_s)
    return merged(rounds), measured


def _measure(
    live: LiveEngine, settings: Settings, workload: Workload, seed: int, until_s: float
) -> LiveRun:
    """One live run; while other programs take too much of the cores, it is repeated."""
    runs: list[LiveRun] = []
    while not runs or (runs[-1].others > MAX_OTHERS and len(runs) < MAX_TRIES):
        if runs:
            if monotonic() > until_s:
                break
            time.sleep(PAUSE_S)
        with OtherPrograms() as others:
            measurement = live.measure(
                settings, workload, seed=seed, timeout_s=600.0, fidelity=Fidelity.MEASURED
            )
        runs.append(
            LiveRun(
                measurement=measurement,
                samples=tuple(live.drain_samples()),
                others=others.share,
                discarded=len(runs),
            )
        )
    return min(runs, key=lambda run: run.others)


def _row(
    config: EngineConfig,
    model: ModelConfig,
    step_model: StepModel,
    text: str,
    settings: Settings,
    runs: Sequence[LiveRun],
    seed: int,
) -> Row:
    """What simulation says of a plan under a workload, beside what was measured."""
    workload = parse_workload(text, seed=seed)
    timer = step_model.timer(settings.plan, model)
    measured = []
    for run in runs:
        step_error, host_share = _parts(run.samples, settings.plan, timer)
        measured.append(
            Run(
                numbers=_numbers(run.measurement),
                others=run.others,
                discarded=run.discarded,
                step_error=step_error,
                host_share=host_share,
            )
        )
    return Row(
        workload=text,
        settings=settings,
        simulated=_numbers(_simulate(config, model, step_model, settings, workload)),
        measured=tuple(measured),
    )


def _parts(
    samples: Sequence[StepSample], plan: ParallelPlan, timer: StepTimer
) -> tuple[float, float]:
    """Error of the timer on the steps of a run, and the share of time ranks waited for the host.

    In a pipeline a step's span holds waiting for others, so only the last stage's own work is
    compared there.
    """
    if plan.pp > 1:
        took_s = sum(s.input_exposed_s + s.forward_s + s.sample_s for s in samples)
        said_s = sum(timer.stage_seconds(s.shape)[-1] for s in samples)
    else:
        took_s = sum(s.step_s for s in samples)
        said_s = sum(timer.stage_seconds(s.shape)[0] for s in samples)
    busy_s = sum(s.busy_s for s in samples)
    return said_s / took_s - 1, sum(s.bubble_s for s in samples) / busy_s


def _config(model_dir: Path, dtype: DType) -> EngineConfig:
    return EngineConfig(
        model_dir=model_dir,
        dtype=dtype,
        executor=ExecutorKind.PROCESS,
        envelope=CAPS,
        max_devices=num_cores(),
    )


def _setup(options: argparse.Namespace, *, num_rounds: int) -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    return [
        f"`OMP_NUM_THREADS=1 python -m benchmarks.simulated_vs_measured --preset {options.preset} "
        f"--repeats {options.repeats} --seconds {options.seconds:g} --seed {options.seed}` "
        f"({num_rounds} repeats were made)",
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
    threshold = advised_rule(
        step_model.timer(plan, model), ENDS, CAPS.max_num_seqs
    ).threshold_tokens
    return Settings(plan=plan, threshold_tokens=max(threshold, CAPS.max_num_seqs), caps=CAPS)


def _simulate(
    config: EngineConfig,
    model: ModelConfig,
    step_model: StepModel,
    settings: Settings,
    workload: Workload,
) -> Measurement:
    engine = SimulatedEngine(
        model=model,
        ranks_of=lambda plan: Ranks(
            timer=step_model.timer(plan, model, hides_host=True),
            num_kv_blocks=num_kv_blocks(config, model, plan),
        ),
        block_size=config.block_size,
        look_ahead=LookAhead.BEFORE_END,
    )
    return simulate(engine, settings, workload).measurement


def _numbers(run: Measurement) -> tuple[float, ...]:
    ttft_ms, tpot_ms = run.ttft_ms.p50, run.tpot_ms.p50
    assert ttft_ms is not None, "no request completed"
    assert tpot_ms is not None, "no request had two tokens"
    return (run.throughput_tokens_per_s, ttft_ms, tpot_ms)


def _profile_round(
    options: argparse.Namespace, model_dir: Path, number: int, until_s: float
) -> Profile:
    """The profile that was asked for, or one of ``options.repeats`` parts of a new one."""
    if options.profile is not None:
        return Profile.from_json(read_json(options.profile), where=str(options.profile))
    spec = ProfileSpec(
        model_dir=model_dir,
        num_ranks=2,
        seconds=options.seconds / options.repeats,
        seed=options.seed + 1 + number,
    )
    for _ in range(MAX_TRIES):
        with OtherPrograms() as others:
            profile = run_profile(spec, on_event=lambda text: print(text, flush=True))
        print(f"profiled while other programs took {others.share:.1%} of the cores", flush=True)
        if others.share <= MAX_OTHERS or monotonic() > until_s:
            break
    return profile


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; by default a random one")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--profile", type=Path, help="use this profile instead of measuring")
    parser.add_argument("--keep-profile", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to profile")
    parser.add_argument("--limit-s", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Question: how long do ranks stand idle between two forward passes while the host works?

The simulated executor on a wall clock keeps forward and sampling at a fixed time, so whatever lies
between two of them is the host's: scheduling, the delta message (built, encoded, decoded, applied
to a rank's tables), the back-fill of the last tokens, and the output of the step before (stop
checks, detokenisation where asked for, one callback per token). Everything runs on one core.

    python -m benchmarks.host_overhead --out FILE.md
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.engine import Engine
from engine.executors.clock import WallClock
from engine.executors.simulated import SimulatedExecutor
from engine.models.create import create_model
from engine.replica.replica import Replica
from engine.replica.stream import RequestStream
from engine.replica.telemetry import Telemetry, drain
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepSample, StepShape
from engine.text.tokenizer import Tokenizer

NUM_KV_BLOCKS = 20_000
WARM_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to run: with or without overlap, with or without text."""

    overlap: bool
    has_text: bool

    def __str__(self) -> str:
        return f"overlap {'on' if self.overlap else 'off'}, {'text' if self.has_text else 'ids'}"


@dataclass(frozen=True, kw_only=True)
class FixedTimer:
    """Forward and sampling of every step take ``step_s``."""

    step_s: float

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:  # noqa: ARG002 - a StepTimer
        return (self.step_s,)

    def host_seconds(self, shape: StepShape) -> float:  # noqa: ARG002 - a StepTimer
        return 0.0


def main() -> None:
    """Run every case ``--repeats`` times in turn and report."""
    options = _options()
    cores = os.sched_getaffinity(0)
    cases = [Case(overlap=o, has_text=t) for t in (False, True) for o in (True, False)]
    samples: dict[Case, list[StepSample]] = {case: [] for case in cases}
    real: dict[bool, list[StepSample]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="gearshift-bench-") as folder:
        model_dir = Path(folder) / "model"
        create_model(model_dir, preset=options.preset, seed=options.seed)
        with OtherPrograms() as others:
            for _ in range(options.repeats):
                os.sched_setaffinity(0, {min(cores)})
                for case in cases:
                    samples[case] += _run(case, model_dir, options)
                os.sched_setaffinity(0, cores)
                for overlap, found in real.items():
                    found += _run_rank(overlap, model_dir, options)
    text = _report(samples, real, options, others.share)
    publish(text, options.out)


def _run(case: Case, model_dir: Path, options: argparse.Namespace) -> list[StepSample]:
    """Samples of the steps in which every sequence decodes."""
    num_seqs = options.sequences
    tokenizer = Tokenizer.from_dir(model_dir) if case.has_text else None
    done = threading.Semaphore(0)

    def drained(output: RequestOutput) -> None:
        if output.is_finished:
            done.release()

    telemetry = Telemetry()
    with _replica(case, model_dir, options, telemetry) as replica:
        for number in range(num_seqs):
            request = _request(number, options)
            text = tokenizer.stream() if tokenizer is not None else None
            replica.submit(RequestStream(request, drained, text))
        for _ in range(num_seqs):
            done.acquire()
    steady = [s for s in drain(telemetry.samples) if s.shape.num_decode_tokens == num_seqs]
    return steady[WARM_STEPS:]


def _run_rank(overlap: bool, model_dir: Path, options: argparse.Namespace) -> list[StepSample]:
    """Samples of full decode steps of a real rank process, which has a core of its own."""
    num_seqs = options.rank_sequences
    caps = Caps(max_num_seqs=num_seqs, max_num_batched_tokens=2048)
    config = EngineConfig(
        model_dir=model_dir,
        envelope=caps,
        executor=ExecutorKind.PROCESS,
        overlap=overlap,
        prefix_cache=False,
        settings=Settings(caps=caps),
    )
    done = threading.Semaphore(0)

    def drained(output: RequestOutput) -> None:
        if output.is_finished:
            done.release()

    with Engine(config) as engine:
        for number in range(num_seqs):
            request = _request(number, options)
            sampling = replace(request.sampling, ignore_eos=True, stop=(), temperature=0.0)
            engine.submit(replace(request, sampling=sampling), drained)
        for _ in range(num_seqs):
            done.acquire()
        found = engine.drain_samples()
    steady = [s for s in found if s.shape.num_decode_tokens == num_seqs]
    return steady[WARM_STEPS:]


@contextmanager
def _replica(
    case: Case, model_dir: Path, options: argparse.Namespace, telemetry: Telemetry
) -> Iterator[Replica]:
    plan = ParallelPlan()
    caps = Caps(max_num_seqs=options.sequences, max_num_batched_tokens=8192)
    model = replace(ModelConfig.from_dir(model_dir), eos_token_ids=())
    make_executor = partial(
        SimulatedExecutor,
        plan=plan,
        model_vocab_size=model.vocab_size,
        num_kv_blocks=NUM_KV_BLOCKS,
        timer=FixedTimer(step_s=options.step_ms * 1e-3),
        clock=WallClock(),
        applies_inputs=True,
    )
    replica = Replica(
        index=0,
        config=EngineConfig(
            model_dir=model_dir, envelope=caps, overlap=case.overlap, settings=Settings(caps=caps)
        ),
        model=model,
        settings=Settings(plan=plan, caps=caps),
        make_executor=lambda _: make_executor(),
        telemetry=telemetry,
        is_closing=threading.Event(),
    )
    replica.launch()
    replica.wait_started()
    try:
        yield replica
    finally:
        replica.stop()


def _request(number: int, options: argparse.Namespace) -> Request:
    rng = np.random.default_rng([options.seed, number])
    stop = ("never ever said",) if number % 4 == 0 else ()
    return Request(
        request_id=str(number),
        prompt_ids=tuple(rng.integers(3, 200, options.input).tolist()),
        sampling=SamplingParams(max_tokens=options.output + number % 7, temperature=0.8, stop=stop),
        arrival_s=time.monotonic(),
    )


def _report(
    samples: dict[Case, list[StepSample]],
    real: dict[bool, list[StepSample]],
    options: argparse.Namespace,
    others: float,
) -> str:
    lines = [
        "# Host overhead between forward passes",
        "",
        f"{time.strftime('%Y-%m-%d')}. {options.sequences} running sequences, forward and "
        f"sampling fixed at {options.step_ms:g} ms, prompts {options.input} tokens, outputs "
        f"{options.output} to {options.output + 6}, sampling at temperature 0.8, a stop string on "
        f"every fourth request, seed {options.seed}, {options.repeats} runs of each case in turn. "
        "The whole engine (and the rank's table and back-fill) on one core; streams drained in "
        f"process. Other programs took {others:.1%} of the cores meanwhile.",
        "",
        f"CPU: {platform.processor() or platform.machine()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}; numpy {version('numpy')}; msgspec {version('msgspec')}.",
        "",
        "`gap`: time between the end of one forward pass and the start of the next. The parts are "
        "the host's own time per step, hidden or not.",
        "",
        "| case | steps | gap mean ms | p50 | p99 | share of the step | schedule us | message us "
        "| output us |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(case, found, options.step_ms) for case, found in samples.items()),
        "",
        "`message` builds, encodes, decodes and applies the step's delta; `output` is stop checks,",
        "detokenisation (cases with text) and callbacks. The commit of a result (placeholders,",
        "lengths, ends) lies in the gap when overlap is off, and has no column of its own.",
        "",
        f"## One real rank ({options.preset} preset, {options.rank_sequences} sequences)",
        "",
        "The rank is a process on the second core; it says itself how long it waited for the host.",
        "",
        "| overlap | steps | wait mean ms | p50 | p99 | step mean ms | waited, share of the time |",
        "|---|---|---|---|---|---|---|",
        *(_rank_row(overlap, found) for overlap, found in real.items()),
        "",
        "```",
        f"python -m benchmarks.host_overhead {_arguments(options)}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(case: Case, found: Sequence[StepSample], step_ms: float) -> str:
    gap_ms = np.array([s.bubble_s for s in found]) * 1e3
    parts = [
        np.mean([getattr(s, f"{name}_s") for s in found]) * 1e6
        for name in ("schedule", "input", "output")
    ]
    middle, high = np.percentile(gap_ms, [50, 99])
    share = gap_ms.mean() / (step_ms + gap_ms.mean())
    columns = [str(len(found)), *(f"{v:.3f}" for v in (gap_ms.mean(), middle, high))]
    columns += [f"{share:.1%}", *(f"{v:.0f}" for v in parts)]
    return f"| {case} | {' | '.join(columns)} |"


def _rank_row(overlap: bool, found: Sequence[StepSample]) -> str:
    wait_ms = np.array([s.bubble_s for s in found]) * 1e3
    step_ms = np.array([s.step_s for s in found]) * 1e3
    middle, high = np.percentile(wait_ms, [50, 99])
    share = wait_ms.mean() / (wait_ms.mean() + step_ms.mean())
    numbers = (wait_ms.mean(), middle, high, step_ms.mean())
    columns = [str(len(found)), *(f"{v:.3f}" for v in numbers), f"{share:.1%}"]
    return f"| {'on' if overlap else 'off'} | {' | '.join(columns)} |"


def _arguments(options: argparse.Namespace) -> str:
    names = ("sequences", "step_ms", "rank_sequences", "input", "output", "repeats", "seed")
    return " ".join(f"--{n.replace('_', '-')} {getattr(options, n):g}" for n in names)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--rank-sequences", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--input", type=int, default=64)
    parser.add_argument("--output", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.output <= 2 * WARM_STEPS:
        parser.error(f"--output {options.output}: the first {WARM_STEPS} full steps are left out")
    return options


if __name__ == "__main__":
    main()

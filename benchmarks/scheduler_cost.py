"""Question: what does one step cost the host, with hundreds of sequences running?

Schedules, encodes and commits decode steps back to back on one core, without ranks and without
waiting: with and without looking one step ahead, with and without prefix reuse. A profile says
where the time goes.

    python -m benchmarks.scheduler_cost --out FILE.md
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import time
from collections import deque
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median

import msgspec
import numpy as np

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.modes.chooser import ModeChooser
from engine.replica.messages_out import step_plan
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step import ScheduledStep
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, SamplingParams
from engine.spec.settings import Caps

NUM_BLOCKS = 20_000
EOS = 2
PROFILED = 12


@dataclass
class Costs:
    """Seconds of each full decode step, by part."""

    schedule: list[float] = field(default_factory=list)
    message: list[float] = field(default_factory=list)
    commit: list[float] = field(default_factory=list)
    message_bytes: list[int] = field(default_factory=list)


def main() -> None:
    """Time every case, profile one, write the report."""
    options = _options()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cases = [(ahead, prefixes) for prefixes in (False, True) for ahead in (False, True)]
    with OtherPrograms() as others:
        costs = {case: run(*case, options.sequences, options.output) for case in cases}
    profile = cProfile.Profile()
    profile.runcall(run, True, True, options.sequences, options.output)
    text = _report(costs, profile, options, others.share)
    publish(text, options.out)


def run(looks_ahead: bool, keeps_prefixes: bool, num_seqs: int, output: int) -> Costs:
    """Serve ``num_seqs`` requests from prompt to end; the costs of full decode steps."""
    caps = Caps(max_num_seqs=num_seqs, max_num_batched_tokens=8192)
    scheduler = Scheduler(
        caps=caps,
        envelope=caps,
        chooser=ModeChooser(plan=ParallelPlan(), threshold_tokens=256),
        num_blocks=NUM_BLOCKS,
        block_size=16,
        max_model_len=2048,
        eos_token_ids=(EOS,),
        keeps_prefixes=keeps_prefixes,
    )
    for number in range(num_seqs):
        sampling = SamplingParams(max_tokens=output, temperature=0.5)
        prompt = tuple(range(3 + number, 67 + number + number % 16))
        scheduler.add(Request(request_id=str(number), prompt_ids=prompt, sampling=sampling))
    costs, encoder = Costs(), msgspec.msgpack.Encoder()
    flights: deque[ScheduledStep] = deque()
    ids = np.full(num_seqs, 5, np.int32)
    while not scheduler.is_idle:
        begun_s = time.perf_counter()
        step = scheduler.schedule_ahead() if flights else scheduler.schedule()
        scheduled_s = time.perf_counter()
        if step is not None:
            raw = encoder.encode(step_plan(step, eos_token_ids=scheduler.roster.eos_token_ids))
            encoded_s = time.perf_counter()
            flights.append(step)
            if step.shape.num_decode_tokens == num_seqs:
                costs.schedule.append(scheduled_s - begun_s)
                costs.message.append(encoded_s - scheduled_s)
                costs.message_bytes.append(len(raw))
        if looks_ahead and len(flights) == 1 and step is not None:
            continue
        done = flights.popleft()
        begun_s = time.perf_counter()
        scheduler.commit(done, ids[: done.shape.num_sampled])
        if done.shape.num_decode_tokens == num_seqs:
            costs.commit.append(time.perf_counter() - begun_s)
    return costs


def _report(
    costs: dict[tuple[bool, bool], Costs],
    profile: cProfile.Profile,
    options: argparse.Namespace,
    others: float,
) -> str:
    return "\n".join(
        [
            "# What a step costs the host",
            "",
            f"{time.strftime('%Y-%m-%d')}. {options.sequences} sequences decode, prompts of 64 to "
            f"79 tokens, outputs of {options.output}; steps back to back, one core. Other programs "
            f"took {others:.1%} of the cores meanwhile.",
            "",
            f"CPU: {platform.processor() or platform.machine()}, {os.cpu_count()} cores; Python "
            f"{platform.python_version()}; numpy {version('numpy')}; msgspec {version('msgspec')}.",
            "",
            "| one step ahead | prefix reuse | schedule us, median (mean) | message | commit "
            "| all, mean | bytes per sequence |",
            "|---|---|---|---|---|---|---|",
            *(_row(case, found, options.sequences) for case, found in costs.items()),
            "",
            "`schedule` packs the rows and gives them KV blocks, `message` builds and encodes the",
            "delta, `commit` takes the tokens in and finds ends.",
            "",
            "What is left, with one step ahead and prefix reuse (profiled, so slower):",
            "",
            "```",
            *_hot_spots(profile),
            "```",
            "",
            "```",
            "python -m benchmarks.scheduler_cost "
            f"--sequences {options.sequences} --output {options.output}",
            "```",
            "",
        ]
    )


def _row(case: tuple[bool, bool], costs: Costs, num_seqs: int) -> str:
    words = ["yes" if value else "no" for value in case]
    parts = (costs.schedule, costs.message, costs.commit)
    cells = [f"{median(part) * 1e6:.0f} ({fmean(part) * 1e6:.0f})" for part in parts]
    whole = sum(fmean(part) for part in parts) * 1e6
    size = fmean(costs.message_bytes) / num_seqs
    return f"| {' | '.join(words + cells)} | {whole:.0f} | {size:.1f} |"


def _hot_spots(profile: cProfile.Profile) -> list[str]:
    # The table has no other way out, and its type is not published.
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    own = sorted(stats.items(), key=lambda item: -item[1][2])[:PROFILED]
    total = sum(entry[2] for entry in stats.values())
    return [
        f"{entry[2] / total:6.1%}  {Path(where).name}:{name}" for (where, _, name), entry in own
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--output", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    main()

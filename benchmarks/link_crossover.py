"""Question: on an emulated link, does simulation find the step size at which base overtakes shift?

Real ranks run steps of 1, 2, 4, ... tokens in both modes of ``sp=2,shift``, in turn, behind links
that delay every collective by a declared time. The step model is fitted on a profile without any
link; only the link's declaration is added to it. A crossover is the smallest size from which base
is the faster mode, by the split of sizes that loses least.

    python -m benchmarks.link_crossover --out FILE.md
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean, median

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.executors.process import ProcessExecutor
from engine.models.create import create_model
from engine.replica.mode_timing import SyntheticSteps
from engine.spec.config import EngineConfig, ExecutorKind, LinkEmulation
from engine.spec.model import ModelConfig
from engine.spec.modes import BASE, ENDS, SHIFT, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepShape
from policies.threshold import StepPair, shift_threshold
from tuner.profiling.profile import Profile, merged, read_json
from tuner.profiling.run import ProfileSpec, run_profile
from tuner.spec.machine import this_machine
from tuner.step_model.fit import fit_step_model
from tuner.step_model.model import StepModel

PLAN = ParallelPlan(sp=2, shift=True)
LINKS = ("latency_us=20,gbps=0.5", "latency_us=20,gbps=4")
MAX_NUM_SEQS = 32
NUM_KV_BLOCKS = 1024
Seconds = dict[Mode, list[float]]


@dataclass(frozen=True, kw_only=True)
class SizeTimes:
    """Seconds of steps of one size in both modes: medians on real ranks, and simulated."""

    num_tokens: int
    measured: dict[Mode, float]
    simulated: dict[Mode, float]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The shapes that one turn ran, their seconds, and the share that other programs took."""

    shapes: dict[tuple[int, Mode], StepShape]
    seconds: dict[int, Seconds]
    others: float


@dataclass(frozen=True, kw_only=True)
class LinkResult:
    """All sizes behind one link, and the share of the cores that other programs took."""

    link: str
    sizes: tuple[SizeTimes, ...]
    others: float

    @property
    def measured_bucket(self) -> int:
        return crossover([(s.num_tokens, s.measured) for s in self.sizes])

    @property
    def simulated_bucket(self) -> int:
        return crossover([(s.num_tokens, s.simulated) for s in self.sizes])

    @property
    def passes(self) -> bool:
        """Within one size bucket: a factor of two."""
        measured, simulated = self.measured_bucket, self.simulated_bucket
        return max(measured, simulated) <= 2 * min(measured, simulated)


def main() -> None:
    """Profile without a link and time both modes behind each link, in turn; then simulate."""
    options = _options()
    links = options.links.split(";")
    with tempfile.TemporaryDirectory(prefix="gearshift-bench-") as folder:
        model_dir = Path(folder) / "model"
        create_model(model_dir, preset=options.preset, seed=options.seed)
        model = ModelConfig.from_dir(model_dir)
        profiles = []
        timed: dict[str, list[Timed]] = {link: [] for link in links}
        for turn in range(options.turns):
            if turn == 0 or options.profile is None:
                profiles.append(_profile(options, model_dir, turn))
            for link in links:
                timed[link].append(_timed(model_dir, model, link, options))
    step_model = fit_step_model(merged(profiles), model, seed=options.seed)
    results = [compare(model, step_model, link, timed[link]) for link in links]
    text = report(results, options)
    publish(text, options.out)


def _timed(model_dir: Path, model: ModelConfig, text: str, options: argparse.Namespace) -> Timed:
    """Every size in both modes on ranks behind ``text``, in one turn's share of the rounds."""
    sizes = [2**n for n in range(options.max_tokens.bit_length()) if 2**n <= options.max_tokens]
    rounds = -(-options.rounds // options.turns)
    with OtherPrograms() as others:
        shapes, seconds = time_sizes(model_dir, model, LinkEmulation.parse(text), sizes, rounds)
    print(f"{text}: timed while other programs took {others.share:.1%} of the cores", flush=True)
    return Timed(shapes=shapes, seconds=seconds, others=others.share)


def compare(
    model: ModelConfig, step_model: StepModel, text: str, turns: Sequence[Timed]
) -> LinkResult:
    """Medians over all turns beside what the step model says."""
    timer = step_model.timer(PLAN, model, link=LinkEmulation.parse(text))
    found = []
    for size in turns[0].seconds:
        shapes = {mode: turns[0].shapes[size, mode] for mode in ENDS}
        found.append(
            SizeTimes(
                num_tokens=size,
                measured={m: median(s for t in turns for s in t.seconds[size][m]) for m in ENDS},
                simulated={mode: timer.stage_seconds(shapes[mode])[0] for mode in ENDS},
            )
        )
    return LinkResult(link=text, sizes=tuple(found), others=fmean(t.others for t in turns))


def time_sizes(
    model_dir: Path, model: ModelConfig, link: LinkEmulation, sizes: Sequence[int], rounds: int
) -> tuple[dict[tuple[int, Mode], StepShape], dict[int, Seconds]]:
    """Seconds on the ranks of steps of each size; in each round every size in both modes, so
    that a slow moment hits both. The first round only warms up.
    """
    config = EngineConfig(
        model_dir=model_dir,
        executor=ExecutorKind.PROCESS,
        link=link,
        num_kv_blocks=NUM_KV_BLOCKS,
        envelope=Caps(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=max(sizes)),
        settings=Settings(plan=PLAN),
    )
    steps = SyntheticSteps(
        max_num_seqs=MAX_NUM_SEQS,
        longest=min(model.max_positions, NUM_KV_BLOCKS * config.block_size),
        block_size=config.block_size,
        num_kv_blocks=NUM_KV_BLOCKS,
        vocab_size=model.vocab_size,
    )
    shapes: dict[tuple[int, Mode], StepShape] = {}
    seconds: dict[int, Seconds] = {size: {mode: [] for mode in ENDS} for size in sizes}
    executor = ProcessExecutor(config, model, PLAN)
    step_id = 0
    try:
        executor.start()
        for number in range(rounds + 1):
            for size in sizes:
                for mode in ENDS:
                    step = steps.build(size, mode, step_id=step_id, num_before=0)
                    executor.submit(step)
                    rank_s = executor.collect().rank_s
                    step_id += 1
                    shapes[size, mode] = step.shape
                    if number:
                        seconds[size][mode].append(rank_s)
    finally:
        executor.close()
    return shapes, seconds


def crossover(times: Sequence[tuple[int, dict[Mode, float]]]) -> int:
    """The size from which base is the faster mode; twice the largest where it never is."""
    pairs = [
        # In shares of the step's own time: a large step must not outweigh all small ones.
        StepPair(
            num_tokens=size,
            base_ms=1e3 * seconds[BASE],
            shift_ms=1e3 * seconds[SHIFT],
            weight=1.0 / (1e3 * min(seconds.values())),
        )
        for size, seconds in times
    ]
    threshold = shift_threshold(pairs)
    above = [size for size, _ in times if size > threshold]
    return above[0] if above else 2 * times[-1][0]


def report(results: Sequence[LinkResult], options: argparse.Namespace) -> str:
    """The dated report: a table per link, the crossovers, and how to repeat it."""
    lines = [
        f"# Crossover of base and shift behind emulated links, {date.today()}",
        "",
        f"Plan `{PLAN}` on two CPU ranks, preset {options.preset}, float32. Links are "
        "**emulated**: each collective is delayed by the declared latency and bytes over "
        "bandwidth. The step model was fitted on a profile without a link; nothing measured "
        f"here was used. Measured: medians of {options.rounds} rounds in which every size runs in "
        f"both modes, milliseconds on the ranks; in {options.turns} turns, a part of the profile "
        "before each, because a shared machine's speed drifts. `base - shift` is relative to "
        "shift: below 0 base is faster.",
        "",
        "| link | crossover measured | simulated | within one size bucket |",
        "| --- | --- | --- | --- |",
    ]
    for r in results:
        verdict = "pass" if r.passes else "**fail**"
        lines.append(
            f"| `{r.link}` | {r.measured_bucket} | {r.simulated_bucket} tokens | {verdict} |"
        )
    for result in results:
        lines += ["", f"## `{result.link}`", "", *_table(result)]
    lines += ["", "## How to repeat", "", *_setup(options), ""]
    return "\n".join(lines)


def _table(result: LinkResult) -> list[str]:
    lines = [
        f"Other programs took {result.others:.1%} of the cores.",
        "",
        "| tokens | base: measured | simulated | shift: measured | simulated "
        "| base - shift: measured | simulated |",
        "|" + " --- |" * 7,
    ]
    for size in result.sizes:
        cells = [str(size.num_tokens)]
        for mode in ENDS:
            cells += [f"{1e3 * size.measured[mode]:.2f}", f"{1e3 * size.simulated[mode]:.2f}"]
        for times in (size.measured, size.simulated):
            cells.append(f"{times[BASE] / times[SHIFT] - 1:+.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _setup(options: argparse.Namespace) -> list[str]:
    return [
        f"`OMP_NUM_THREADS=1 python -m benchmarks.link_crossover --preset {options.preset} "
        f'--links "{options.links}" --rounds {options.rounds} --turns {options.turns} '
        f"--max-tokens {options.max_tokens} --seconds {options.seconds:g} "
        f"--seed {options.seed}`",
        "",
        f"Machine: {this_machine()}; {platform.system()}; Python {platform.python_version()}.",
    ]


def _profile(options: argparse.Namespace, model_dir: Path, turn: int) -> Profile:
    """The profile that was asked for, or one of ``options.turns`` parts of a new one."""
    if options.profile is not None:
        return Profile.from_json(read_json(options.profile), where=str(options.profile))
    spec = ProfileSpec(
        model_dir=model_dir,
        num_ranks=2,
        seconds=options.seconds / options.turns,
        seed=options.seed + 1 + turn,
    )
    return run_profile(spec, on_event=lambda text: print(text, flush=True))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--profile", type=Path, help="use this profile instead of measuring")
    parser.add_argument("--links", default=";".join(LINKS), help="links, with ; between them")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turns", type=int, default=3, help="profile and timing, in turn")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=45.0, help="about how long to profile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

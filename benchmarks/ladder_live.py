"""Question: does the ladder serve better than every static plan on real ranks behind slow links?

Four CPU ranks, each collective delayed by a declared link (a sleep, which takes no core). The
ladder of ``sp=4,shift`` with its middle rung, its two ends alone, and each of its rungs as a static
plan take turns under bursts. Whether the delays are what steps are made of, so that four ranks on
fewer cores do not blur the comparison, is told by the steps' own times, beside the results.

Two rounds take about 10 minutes on two quiet cores. What was measured is kept in
``WORK/ladder-live.json``: the same command goes on after an interruption.

    python -m benchmarks.ladder_live --work DIR --out FILE
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.kept import KeptRuns
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind, LinkEmulation
from engine.spec.measurement import Fidelity, Measurement
from engine.spec.modes import BASE, ENDS, TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepSample
from policies.report import flat_metrics
from tuner.load.live import LiveEngine
from tuner.spec.machine import this_machine
from tuner.workload.parse import parse_workload

CAPS = Caps(max_num_seqs=32, max_num_batched_tokens=1024)
SHIFT = ParallelPlan(sp=4, shift=True)
CHOICES = {
    "tp=4": Settings(plan=ParallelPlan(tp=4), caps=CAPS),
    "sp=2,tp=2": Settings(plan=ParallelPlan(sp=2, tp=2), caps=CAPS),
    "sp=4": Settings(plan=ParallelPlan(sp=4), caps=CAPS),
    "shift, two ends": Settings(plan=SHIFT, pin=TABLE, rungs=ENDS, caps=CAPS),
    "ladder": Settings(plan=SHIFT, pin=TABLE, caps=CAPS),
}
STATIC = tuple(name for name, settings in CHOICES.items() if not settings.plan.shift)
FULL = "full"
LENGTHS = "input=uniform:64..512,output=uniform:16..48"
METRICS = ("mean_ttft_ms", "p95_ttft_ms", "mean_tpot_ms", "p95_tpot_ms", "throughput_tokens_per_s")
KEPT = "ladder-live.json"
TIMEOUT_S = 600.0


@dataclass
class Bench:
    """What is measured with, and what has been: runs by choice, in order of their rounds."""

    options: argparse.Namespace
    model_dir: Path
    store: KeptRuns

    @property
    def kept(self) -> dict[str, Any]:
        """The document of what has been measured."""
        return self.store.document

    @property
    def workload(self) -> str:
        """Bursts whose rates are shares of what ``tp=4`` carries."""
        rate, seconds = self.kept[FULL], self.options.seconds
        low, high = (f"{share * rate:.3g}" for share in (0.15, self.options.peak))
        return f"burst:rate={low},peak={high},on_s=4,off_s=6,{LENGTHS},seconds={seconds}"

    def measure_full(self) -> None:
        """The requests a second that ``tp=4`` carries where they never end."""
        if FULL not in self.kept:
            clients, count = CAPS.max_num_seqs // 2, CAPS.max_num_seqs
            spec = f"closed:concurrency={clients},{LENGTHS},requests={count}"
            run, _ = self._run(CHOICES["tp=4"], spec, seed=0)
            self.kept[FULL] = len(run.completed) / max(t.token_s[-1] for t in run.completed)
            self.store.keep()

    def measure(self, name: str, number: int) -> None:
        """One round of one choice, unless it is kept."""
        runs = self.kept["runs"].setdefault(name, [])
        if len(runs) > number:
            return
        with OtherPrograms() as others:
            run, samples = self._run(CHOICES[name], self.workload, seed=number + 1)
        runs.append({**flat_metrics(run, None), "others": others.share, **_steps(samples)})
        self.store.keep()
        told = ", ".join(f"{key} {runs[-1][key]:.4g}" for key in METRICS)
        print(f"round {number}, {name}: {told}", flush=True)

    def _run(
        self, settings: Settings, spec: str, seed: int
    ) -> tuple[Measurement, list[StepSample]]:
        config = EngineConfig(
            model_dir=self.model_dir,
            settings=settings,
            envelope=CAPS,
            executor=ExecutorKind.PROCESS,
            link=LinkEmulation.parse(self.options.link),
            num_kv_blocks=2048,
            threads_per_rank=1,
        )
        with LiveEngine(config) as live:
            run = live.measure(
                settings,
                parse_workload(spec, seed=seed),
                seed=seed,
                timeout_s=TIMEOUT_S,
                fidelity=Fidelity.MEASURED,
            )
            return run, live.drain_samples()


def _steps(samples: list[StepSample]) -> dict[str, Any]:
    """Steps by mode, and the share of the ranks' time that they communicated: with delays."""
    modes: dict[str, int] = {}
    for sample in samples:
        modes[sample.shape.mode] = modes.get(sample.shape.mode, 0) + 1
    busy_s = sum(sample.step_s for sample in samples)
    return {
        "modes": modes,
        "communication": sum(sample.communication_s for sample in samples) / max(busy_s, 1e-9),
        "step_ms": 1e3 * busy_s / max(1, len(samples)),
    }


def main() -> None:
    """Measure what is missing, and write the report."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    model_dir = work / options.preset
    if not model_dir.exists():
        create_model(model_dir, preset=options.preset)
    asked = {name: getattr(options, name) for name in ("preset", "link", "seconds", "peak")}
    store = KeptRuns(work / KEPT, asked=asked, empty={"runs": {}})
    bench = Bench(options=options, model_dir=model_dir, store=store)
    bench.measure_full()
    for number in range(options.rounds):
        for name in CHOICES:
            bench.measure(name, number)
    report = "\n".join(_report(bench)) + "\n"
    publish(report, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--link", default="latency_us=500,gbps=0.2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=40, help="of bursts, of each run")
    parser.add_argument("--peak", type=float, default=0.9, help="share of what tp=4 carries")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is kept")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _report(bench: Bench) -> Iterator[str]:
    options = bench.options
    others = [run["others"] for runs in bench.kept["runs"].values() for run in runs]
    yield "# The ladder against static plans on four ranks behind an emulated link"
    yield ""
    yield (
        f"{datetime.date.today()}, {this_machine()}, {platform.system()}. The link is "
        f"**emulated**: each collective is delayed by `{options.link}`. Model {options.preset}, "
        f"float32. Load `{bench.workload}`, rounds {options.rounds}, medians; other programs "
        f"took {median(others):.0%} of the cores. Command: `python -m benchmarks.ladder_live "
        f"--preset {options.preset} --link {options.link} --rounds {options.rounds} --seconds "
        f"{options.seconds} --peak {options.peak:g} --work DIR --out FILE`"
    )
    yield ""
    yield "| plan | " + " | ".join(METRICS) + " | step, ms | of it communication | steps by mode |"
    yield "|---|" + "---|" * (len(METRICS) + 3)
    for name in CHOICES:
        runs = bench.kept["runs"][name]
        cells = [f"{_middle(runs, key):,.4g}" for key in METRICS]
        modes = ", ".join(f"{mode} {count}" for mode, count in runs[-1]["modes"].items())
        step, share = _middle(runs, "step_ms"), _middle(runs, "communication")
        yield f"| {name} | {' | '.join(cells)} | {step:.1f} | {share:.0%} | {modes or BASE} |"
    yield ""
    yield "Over the best static plan of each metric (latencies: below 1 is better):"
    yield ""
    for name in ("shift, two ends", "ladder"):
        found = []
        for key in METRICS:
            best = max if key.startswith("throughput") else min
            static = best(_middle(bench.kept["runs"][other], key) for other in STATIC)
            found.append(f"{key} {_middle(bench.kept['runs'][name], key) / static:.2f}")
        yield f"* {name}: {', '.join(found)}"


def _middle(runs: list[dict[str, Any]], key: str) -> float:
    return float(median(run[key] for run in runs))


if __name__ == "__main__":
    main()

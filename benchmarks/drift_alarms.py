"""Question: how often does the watch over drift raise a false alarm, and how soon a true one?

A day of an engine is simulated (load by a wave, lengths with a long tail) and its steps are read
every half minute, as heartbeats tell them, against those of an hour at the mean rate. Then steps
are made slower by a share from some moment on, and every reading is off by noise that lasts for
minutes. What is counted: alarms in days without drift, and the minutes until one with it.

    python -m benchmarks.drift_alarms --days 200 --out benchmarks/reports/DATE-drift-alarms.md
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.reporting import publish
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.drift import DriftLimits, DriftMemory, ForeseenSteps, watch
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.simulation.log import Segment
from tuner.simulation.step_samples import summed
from tuner.workload.parse import parse_workload

FloatArray = npt.NDArray[np.float64]
LIMITS = DriftLimits()
SETTINGS = Settings(plan=ParallelPlan(), caps=Caps(max_num_seqs=128, max_num_batched_tokens=2048))
MEAN_TOKENS = (1024, 128)
MEAN_RPS, SWING_RPS = 2.0, 1.7
# Noise of one reading (as a share), and for how long it lasts.
NOISES = (0.02, 0.05, 0.1)
NOISE_LASTS_S = 300.0
SLOWDOWNS = (1.05, 1.1, 1.15, 1.2, 1.3, 1.5)
# A day of drift begins as another ends: what is seen in six hours after that counts.
WATCHED_S = 6 * 3600.0


def main() -> None:
    """Simulate the day once, then draw noise for many."""
    options = _options()
    begin_s = time.process_time()
    readings, unread = _readings(options.day_s)
    rng = np.random.default_rng(options.seed)
    lines = [
        "# False alarms of the watch over drift, and how soon a true one comes",
        "",
        f"A simulated day of llama-3.1-8b on one H100 ({MEAN_RPS - SWING_RPS:.1f} to "
        f"{MEAN_RPS + SWING_RPS:.1f} requests/s by a wave; {MEAN_TOKENS[0]} tokens in and "
        f"{MEAN_TOKENS[1]} out in the mean, lognormal), read every {LIMITS.every_s:g} s against an "
        f"hour at {MEAN_RPS:g} requests/s: {len(readings)} readings, {unread} without enough "
        f"steps. Without any noise the ratio lies between {math.exp(readings.min()):.3f} and "
        f"{math.exp(readings.max()):.3f} (mean {math.exp(readings.mean()):.3f}): that is what "
        f"another load does to it. Tolerance {LIMITS.tolerance:g}, threshold {LIMITS.threshold:g}. "
        f"Noise is redrawn for each of {options.days} days; it is correlated over "
        f"{NOISE_LASTS_S:g} s. Seed {options.seed}.",
        "",
        "| noise of a reading | false alarms in days without drift | "
        + " | ".join(f"{s - 1:.0%} slower" for s in SLOWDOWNS)
        + " |",
        "|---" * (2 + len(SLOWDOWNS)) + "|",
    ]
    for sigma in NOISES:
        false = sum(
            _num_alarms(readings + _noise(rng, sigma, len(readings))) for _ in range(options.days)
        )
        cells = [_told(rng, readings, sigma, s, options.days) for s in SLOWDOWNS]
        lines.append(f"| {sigma:.0%} | {false} in {options.days} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "With drift: minutes until the alarm, median and 95 %, and in how many of the runs there "
        f"was one within {WATCHED_S / 3600:g} h; more than one alarm in a run is told. Below the "
        "tolerance none is wanted.",
        "",
        f"`python -m benchmarks.drift_alarms --days {options.days} --day-s {options.day_s:g} "
        f"--seed {options.seed}`; {time.process_time() - begin_s:.0f} s of CPU.",
        "",
    ]
    text = "\n".join(lines)
    publish(text, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=200)
    parser.add_argument("--day-s", type=float, default=86_400.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _readings(day_s: float) -> tuple[FloatArray, int]:
    """Log ratios of the day's readings, and how many could not be read."""
    node = describe_node(model="llama-3.1-8b", hardware="1xh100", dtype=None, backend="gearshift")
    hour = parse_workload(
        f"poisson:rate={MEAN_RPS},seconds=3600,input=lognormal:{MEAN_TOKENS[0]}~0.8,"
        f"output=lognormal:{MEAN_TOKENS[1]}~0.6",
        seed=1,
    )
    foreseen = ForeseenSteps(summed(node.simulate(SETTINGS, hour).segments))
    windows: dict[int, list[Segment]] = defaultdict(list)
    for segment in _day(node, day_s):
        windows[int(segment.end_s[-1] // LIMITS.every_s)].append(segment)
    found = [foreseen.log_ratio(summed(segments)) for _, segments in sorted(windows.items())]
    told = [ratio for ratio in found if ratio is not None]
    return np.array(told), len(found) - len(told)


def _day(node: Node, day_s: float) -> Sequence[Segment]:
    at = np.arange(0.0, day_s, 60.0)
    rates = MEAN_RPS - SWING_RPS * np.cos(2 * np.pi * at / day_s)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "day.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["window_start_s", "rate_rps", "mean_input_tokens", "mean_output_tokens"]
            )
            writer.writerows((s, r, *MEAN_TOKENS) for s, r in zip(at, rates, strict=True))
        workload = parse_workload(f"servegen:{path}", seed=2)
    return node.simulate(SETTINGS, workload).segments


def _noise(rng: np.random.Generator, sigma: float, count: int) -> FloatArray:
    """Log noise that lasts: an autoregressive process of the first order, f8[count]."""
    keeps = math.exp(-LIMITS.every_s / NOISE_LASTS_S)
    fresh = rng.normal(0.0, sigma * math.sqrt(1 - keeps**2), count)
    noise = np.empty(count)
    noise[0] = rng.normal(0.0, sigma)
    for nth in range(1, count):
        noise[nth] = keeps * noise[nth - 1] + fresh[nth]
    return noise


def _follow(log_ratios: FloatArray) -> list[float]:
    """When each alarm rose."""
    memory, raised = DriftMemory(), []
    for nth, ratio in enumerate(log_ratios.tolist()):
        before, now_s = memory.alarmed_s, nth * LIMITS.every_s
        memory = watch(memory, ratio, now_s, LIMITS)
        if memory.alarmed_s is not None and before is None:
            raised.append(now_s)
    return raised


def _num_alarms(log_ratios: FloatArray) -> int:
    return len(_follow(log_ratios))


def _told(
    rng: np.random.Generator, readings: FloatArray, sigma: float, slowdown: float, days: int
) -> str:
    """Minutes until the alarm over many starts of a drift."""
    count = int(WATCHED_S / LIMITS.every_s)
    minutes, repeated = [], 0
    for _ in range(days):
        first = int(rng.integers(0, max(1, len(readings) - count)))
        part = readings[first : first + count]
        raised = _follow(part + math.log(slowdown) + _noise(rng, sigma, len(part)))
        repeated += len(raised) > 1
        if raised:
            minutes.append(raised[0] / 60)
    if not minutes:
        return f"none in {days}"
    median, late = np.percentile(minutes, [50, 95])
    more = f", {repeated} with more" if repeated else ""
    return f"{median:.1f}, {late:.1f} min; {len(minutes)} of {days}{more}"


if __name__ == "__main__":
    main()

"""Question: how often does a rollout judge wrongly, and what does a regression cost until seen?

Llama-3.1-8B on one described A10G, simulated by the engine's own scheduler under steady, bursty and
drifting loads. *A/A*: candidate and control are the same settings, so every rollback is false;
whoever serves, requests fare alike, so that one long run is enough for many rollouts, each with its
own beginning and its own lot. *Injected*: requests of candidate slices miss with a stated chance.
*Simulated regressions*: settings that serve worse, switched in the running simulation by the same
decisions as the service's, with the queues that they leave behind.

    python -m benchmarks.rollouts --out FILE.md
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import meets
from policies.rollout import (
    FEW_REQUESTS,
    Arm,
    Canary,
    CanaryAction,
    CanaryDecision,
    CanaryState,
    RolloutLimits,
    RolloutReason,
    Slice,
    Tally,
    decide_canary,
)
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.simulation.steering import RunView, SettingsChange, Turn, free_reshapes
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

TICK_S = 5.0
SLA = Sla.parse("p95_ttft_ms<=1500,p95_tpot_ms<=130")
LENGTHS = "input=256,output=16,input_cv=0.8,output_cv=0.8"
CONTROL = Settings(plan=ParallelPlan(), caps=Caps(max_num_seqs=64, max_num_batched_tokens=1024))
LOADS = {
    "steady": f"poisson:rate=5,{LENGTHS}",
    "bursty": f"burst:rate=3,peak=7,on_s=40,off_s=110,{LENGTHS}",
    "drifting": f"ramp:rate=2.5,to=6,{LENGTHS}",
    "sparse": "poisson:rate=0.9,input=1024,output=128,input_cv=0.8,output_cv=0.8",
}
CANDIDATES = {
    "starved": Caps(max_num_seqs=3, max_num_batched_tokens=1024),
    "small chunks": Caps(max_num_seqs=64, max_num_batched_tokens=64),
    "large chunks": Caps(max_num_seqs=64, max_num_batched_tokens=4096),
    "one sequence less": Caps(max_num_seqs=63, max_num_batched_tokens=1024),
}
ENVELOPE = Caps(max_num_seqs=64, max_num_batched_tokens=4096)
DROPS = (0.01, 0.05, 0.1, 0.2, 0.5)

Floats = npt.NDArray[np.float64]
Count = Callable[[Slice, RolloutLimits], Tally]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A run: when requests came and whether each met the SLA, in order of arrival."""

    arrival_s: Floats
    met: npt.NDArray[np.bool_]
    span_s: float

    def count(self, begin_s: float, end_s: float) -> tuple[int, int]:
        """How many came in between, and how many of these met it."""
        low, high = np.searchsorted(self.arrival_s, (begin_s, end_s))
        return int(high - low), int(self.met[low:high].sum())


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rollout ended, and what it had exposed by then."""

    reason: RolloutReason
    exposed_s: float
    exposed_requests: int
    pairs: int
    took_s: float

    @classmethod
    def of(cls, decision: CanaryDecision, now_s: float) -> Ended:
        canary = decision.canary
        assert decision.reason is not None, "it has ended"
        return cls(
            reason=decision.reason,
            exposed_s=canary.exposed_s,
            exposed_requests=canary.exposed_requests,
            pairs=len(canary.pairs),
            took_s=now_s - canary.began_s,
        )


def play(
    served: Served, *, start_s: float, seed: str, limits: RolloutLimits, drop: float, luck: int
) -> Ended:
    """A rollout over a recorded run; requests of the candidate miss with a chance of ``drop``."""
    rng = np.random.default_rng(luck)
    canary, now_s = Canary(began_s=start_s, seen_s=start_s), start_s
    while True:
        arrived, _ = served.count(canary.seen_s, now_s)
        tallies = {}
        for part in canary.due(now_s, limits):
            judged, met = _counted(served, part, limits)
            if part.arm is Arm.CANDIDATE and drop:
                met = int(rng.binomial(met, 1 - drop))
            tallies[part.number] = Tally(met=met, judged=judged)
        decision = decide_canary(
            CanaryState(
                canary=canary,
                now_s=now_s,
                in_force_since_s=0.0,
                data_age_s=0.0,
                seed=seed,
                limits=limits,
                tallies=tallies,
                num_arrived=arrived,
            )
        )
        if decision.reason is not None:
            return Ended.of(decision, now_s)
        # Slices begin and end with looks, so that more looks would find nothing new.
        canary, now_s = decision.canary, now_s + limits.slice_s


def _counted(served: Served, part: Slice, limits: RolloutLimits) -> tuple[int, int]:
    assert part.began_s is not None, "a switch takes no time here"
    assert part.ended_s is not None, "it is due"
    return served.count(part.began_s + limits.settle_s, part.ended_s)


@dataclass
class RolloutSteering:
    """A rollout in a running simulation: the service's decisions, on what ended by then."""

    control: Settings
    candidate: Settings
    limits: RolloutLimits
    seed: str
    start_s: float = 60.0
    ended: Ended | None = None
    _canary: Canary = field(init=False)
    _asked_s: float = field(init=False, default=0.0)
    _inside: int = field(init=False, default=0)
    _came: list[float] = field(init=False, default_factory=list)
    _met: list[bool] = field(init=False, default_factory=list)

    def first_s(self) -> float:
        self._canary = Canary(began_s=self.start_s, seen_s=self.start_s)
        return TICK_S

    def ask(self, now_s: float, view: RunView) -> Turn:
        timings = view.timings_since(self._asked_s)
        inside = view.num_running + view.num_waiting
        arrived = max(0, inside - self._inside + len(timings))
        self._asked_s, self._inside = now_s, inside
        self._came += [timing.scheduled_s for timing in timings]
        self._met += [bool(meets(SLA, timing)) for timing in timings]
        if now_s < self.start_s or self.ended is not None:
            return Turn(change=None, next_s=now_s + TICK_S)
        decision = decide_canary(
            CanaryState(
                canary=self._canary,
                now_s=now_s,
                in_force_since_s=0.0,
                data_age_s=0.0,
                seed=self.seed,
                limits=self.limits,
                tallies={
                    part.number: self._tally(part) for part in self._canary.due(now_s, self.limits)
                },
                num_arrived=arrived,
            )
        )
        self._canary = decision.canary
        if decision.reason is not None:
            self.ended = Ended.of(decision, now_s)
        return Turn(change=self._change(decision, view), next_s=now_s + TICK_S)

    def _tally(self, part: Slice) -> Tally:
        assert part.began_s is not None, "a switch takes no time here"
        assert part.ended_s is not None, "it is due"
        came = np.array(self._came)
        inside = (came >= part.began_s + self.limits.settle_s) & (came < part.ended_s)
        return Tally(met=int(np.array(self._met)[inside].sum()), judged=int(inside.sum()))

    def _change(self, decision: CanaryDecision, view: RunView) -> SettingsChange | None:
        match decision.action:
            case CanaryAction.HOLD:
                return None
            case CanaryAction.SWITCH:
                is_candidate = decision.canary.slices[-1].arm is Arm.CANDIDATE
            case CanaryAction.PROMOTE:
                is_candidate = True
            case CanaryAction.ROLL_BACK:
                is_candidate = False
        wanted = self.candidate if is_candidate else self.control
        return SettingsChange.between(
            view.settings, wanted, envelope=view.envelope, reshape_s=free_reshapes
        )


def serve(node: Node, workload: Workload) -> Served:
    """The workload under the settings of control."""
    timings = node.simulate(CONTROL, workload).measurement.timings
    return Served(
        arrival_s=workload.arrival_s,
        met=np.array([bool(meets(SLA, timing)) for timing in timings]),
        span_s=workload.span_s,
    )


def naive_false_share(served: Served, limits: RolloutLimits, *, rollouts: int) -> dict[str, float]:
    """False rollbacks of what is usually done instead, on the same slices, looked at after each
    pair: a z-test on all requests so far, and a test that may be looked at at any time but takes
    requests as independent (the mean of bets on single requests)."""
    rng = np.random.default_rng(5)
    pair_s = 2 * limits.slice_s
    pairs = int(limits.max_exposed_s / limits.slice_s)
    wrong: Counter[str] = Counter()
    for _ in range(rollouts):
        start_s = rng.uniform(0, served.span_s - pairs * pair_s)
        totals = np.zeros((2, 2))
        seen: set[str] = set()
        for pair in range(pairs):
            begin_s = start_s + pair * pair_s
            halves = [
                served.count(begin_s + half * limits.slice_s + limits.settle_s, end_s)
                for half, end_s in enumerate((begin_s + limits.slice_s, begin_s + pair_s))
            ]
            order = (0, 1) if rng.random() < 0.5 else (1, 0)
            for arm, half in enumerate(order):
                totals[arm] += halves[half]
            if (totals[:, 0] > 0).all():
                seen |= _alarms(totals, limits)
        wrong.update(seen)
    return {name: wrong[name] / rollouts for name in ("z-test, looked at", "independent requests")}


def _alarms(totals: Floats, limits: RolloutLimits) -> set[str]:
    """Which tests say by now that the second arm is worse."""
    judged, met = totals[:, 0], totals[:, 1]
    share = met.sum() / judged.sum()
    spread = math.sqrt(max(share * (1 - share), 1e-9) * (1 / judged).sum())
    z = (met[1] / judged[1] - met[0] / judged[0]) / spread
    found = {"z-test, looked at"} if z < -1.645 else set()
    # A normal mixture over effects (Johari et al., mSPRT), of unit information at 1,000 requests.
    variance, prior = spread**2, max(share * (1 - share), 1e-9) / 1000
    log_ratio = 0.5 * math.log(variance / (variance + prior)) + 0.5 * z**2 * prior / (
        variance + prior
    )
    if z < 0 and log_ratio > -math.log(2 * limits.alpha):
        found.add("independent requests")
    return found


def play_many(
    served: Served, *, rollouts: int, limits: RolloutLimits, drop: float = 0.0
) -> list[Ended]:
    """Rollouts that begin anywhere in a run."""
    starts = np.random.default_rng(11).uniform(
        0, served.span_s - limits.max_duration_s - limits.wait_s, rollouts
    )
    return [
        play(served, start_s=float(s), seed=f"ro_{n}", limits=limits, drop=drop, luck=n)
        for n, s in enumerate(starts)
    ]


def main() -> None:
    """Simulate, play, count, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000, help="A/A rollouts of each load")
    parser.add_argument("--hours", type=float, default=2.5, help="of each recorded run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each simulated regression")
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    started_s = time.process_time()
    limits = RolloutLimits(few_requests=FEW_REQUESTS)
    node = describe_node(model="llama-3.1-8b", hardware="a10g", backend="gearshift")
    served = {
        name: serve(node, parse_workload(f"{spec},seconds={options.hours * 3600:g}", seed=3))
        for name, spec in LOADS.items()
    }
    lines = _head(limits, options)
    lines += _aa_lines(served, limits, options.rollouts)
    lines += _drop_lines(served, limits, max(1, options.rollouts // 20))
    lines += _regression_lines(node, limits, options.seeds)
    lines += [f"{time.process_time() - started_s:.0f} s of one core.", ""]
    report = "\n".join(lines)
    print(report)
    if options.out:
        options.out.write_text(report)


def _head(limits: RolloutLimits, options: argparse.Namespace) -> list[str]:
    return [
        "# Rollouts: false ones, and what a regression costs",
        "",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, "
        f"{platform.machine()}. `python -m benchmarks.rollouts --rollouts {options.rollouts} "
        f"--hours {options.hours:g} --seeds {options.seeds}`.",
        "",
        f"Llama-3.1-8B on one A10G (described), `{CONTROL}`, SLA `{SLA}`. Slices of "
        f"{limits.slice_s:g} s, the first {limits.settle_s:g} s not counted, each counted "
        f"{limits.wait_s:g} s after its end; tolerance {limits.tolerance:g}, alpha "
        f"{limits.alpha:g}, at most {limits.max_exposed_s:g} s exposed, twice as long with fewer "
        f"than {limits.few_requests} requests.",
        "",
    ]


def _aa_lines(served: dict[str, Served], limits: RolloutLimits, rollouts: int) -> list[str]:
    lines = [
        f"## A/A: {rollouts} rollouts of each load",
        "",
        "The candidate is what runs already. `rolled back`: taken for worse, which is false; the "
        f"promise is at most {limits.alpha:.0%}. `open`: not decided at a cap, and "
        "therefore taken back.",
        "",
        "| load | attainment | requests a slice | lag-1 correlation of slices | rolled back | "
        "open | promoted | exposed s, median (p95) | z-test, looked at | independent requests |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    counted_s = limits.slice_s - limits.settle_s
    for name, run in served.items():
        ended = play_many(run, rollouts=rollouts, limits=limits)
        why = Counter(end.reason for end in ended)
        naive = naive_false_share(run, limits, rollouts=max(1, rollouts // 5))
        exposed = [end.exposed_s for end in ended]
        lines.append(
            f"| {name} | {run.met.mean():.3f} | {counted_s * len(run.met) / run.span_s:.0f} | "
            f"{_correlation(run, limits.slice_s):.2f} | "
            f"{why[RolloutReason.REGRESSION] / rollouts:.1%} | "
            f"{_undecided(ended):.1%} | "
            f"{why[RolloutReason.NOT_WORSE] / rollouts:.1%} | {_spread(exposed)} | "
            f"{naive['z-test, looked at']:.1%} | {naive['independent requests']:.1%} |"
        )
    return [
        *lines,
        "",
        "The two last columns: false rollbacks of what is often done instead, on the same slices, "
        "looked at after each pair, of a fifth as many rollouts. Requests of a burst fare alike, "
        "so tests that take them as independent see differences that are luck.",
        "",
    ]


def _drop_lines(served: dict[str, Served], limits: RolloutLimits, rollouts: int) -> list[str]:
    lines = [
        f"## Injected regressions: {rollouts} rollouts of each",
        "",
        "Each request of a candidate slice misses with the chance that is named, whatever it did.",
        "",
        "| load | misses injected | rolled back | open at the cap | promoted | exposed s until "
        "rolled back, median (p95) | requests, median (p95) | minutes until then, median (p95) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in served.items():
        for drop in DROPS:
            ended = play_many(run, rollouts=rollouts, limits=limits, drop=drop)
            why = Counter(end.reason for end in ended)
            seen = [end for end in ended if end.reason is RolloutReason.REGRESSION]
            lines.append(
                f"| {name} | {drop:g} | {why[RolloutReason.REGRESSION] / rollouts:.1%} | "
                f"{_undecided(ended):.1%} | "
                f"{why[RolloutReason.NOT_WORSE] / rollouts:.1%} | "
                f"{_spread([end.exposed_s for end in seen])} | "
                f"{_spread([end.exposed_requests for end in seen])} | "
                f"{_spread([end.took_s / 60 for end in seen])} |"
            )
    return [*lines, ""]


def _regression_lines(node: Node, limits: RolloutLimits, seeds: int) -> list[str]:
    lines = [
        f"## Settings that serve worse, in a running simulation: {seeds} seeds",
        "",
        "Switched to and fro under the steady load; queues that one leaves are the other's.",
        "",
        "| candidate | attainment alone (control) | ended | exposed s, median (p95) | requests, "
        "median (p95) |",
        "|---|---|---|---|---|",
    ]
    for name, caps in CANDIDATES.items():
        candidate = replace(CONTROL, caps=caps)
        ended: list[Ended] = []
        alone: list[float] = []
        control: list[float] = []
        for seed in range(seeds):
            workload = parse_workload(
                f"{LOADS['steady']},seconds={limits.max_duration_s + 120:g}", seed=100 + seed
            )
            steering = RolloutSteering(CONTROL, candidate, limits, f"ro_{name}_{seed}")
            node.simulate(CONTROL, workload, steering=steering, envelope=ENVELOPE)
            assert steering.ended is not None, "the run is longer than a rollout may last"
            ended.append(steering.ended)
            head = replace(
                workload, arrivals=tuple(a for a in workload.arrivals if a.arrival_s < 600)
            )
            for shares, settings in ((alone, candidate), (control, CONTROL)):
                timings = node.simulate(settings, head, envelope=ENVELOPE).measurement.timings
                shares.append(fmean([bool(meets(SLA, timing)) for timing in timings]))
        why = Counter(end.reason.value for end in ended)
        told = ", ".join(f"{reason} {count}" for reason, count in why.most_common())
        lines.append(
            f"| {name}: {caps.max_num_seqs} sequences, {caps.max_num_batched_tokens} tokens | "
            f"{np.mean(alone):.3f} ({np.mean(control):.3f}) | {told} | "
            f"{_spread([end.exposed_s for end in ended])} | "
            f"{_spread([end.exposed_requests for end in ended])} |"
        )
    return [*lines, ""]


def _undecided(ended: Sequence[Ended]) -> float:
    return float(np.mean([end.reason.is_undecided for end in ended]))


def _correlation(run: Served, slice_s: float) -> float:
    """Of the attainment of slices with that of the slice before."""
    edges = np.arange(0, run.span_s, slice_s)
    counts = [run.count(a, b) for a, b in pairwise(edges)]
    shares = np.array([met / judged if judged else 1.0 for judged, met in counts])
    return float(np.corrcoef(shares[:-1], shares[1:])[0, 1]) if shares.std() else 0.0


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{np.median(values):.0f} ({np.percentile(values, 95):.0f})"


if __name__ == "__main__":
    main()

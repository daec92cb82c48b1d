"""Rollouts over recorded runs and in running simulations, for ``benchmarks.rollouts``."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import meets
from policies.rollout import (
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
from tuner.simulation.steering import RunView, SettingsChange, Turn, free_reshapes
from tuner.workload.workload import Workload

TICK_S = 5.0
SLA = Sla.parse("p95_ttft_ms<=1500,p95_tpot_ms<=130")
CONTROL = Settings(plan=ParallelPlan(), caps=Caps(max_num_seqs=64, max_num_batched_tokens=1024))

Floats = npt.NDArray[np.float64]


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

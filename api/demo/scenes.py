"""What the demo plays: two engines, each with its workload, its SLA and a change of load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.spec.measurement import Measurement
from engine.spec.plan import ParallelPlan
from policies.capacity_table import CapacityTable
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

# Lengths of the Azure code trace, at sizes that two cores can serve; where no trace is given, drawn
# by its means and spreads. Arrivals are independent: two stretches of half a minute of that trace
# differ so much that nothing told of one holds for the next.
TRACE_LENGTHS = "lengths=auto:{trace},input_scale=0.2"
DRAWN_LENGTHS = "input=lognormal:400~0.9,output=lognormal:17~0.6"
MOST_LENGTHS = "max_input=1024,max_output=32"
# The guess serves so many clients at once as fast as it can; the scene's rate is this share of what
# it then finishes.
BUSY_CLIENTS, BUSY_REQUESTS, BUSY_SHARE = 16, 64, 0.65
# Before and after are so long, the load that rises twice so long.
ACT_S = 45.0
# Windows of the second scene's rates.
WINDOW_S = 10.0
# The first scene's SLA: what this share of requests had under the guess, 95 % shall have.
GUESS_PERCENT = 85
LEAST_TTFT_MS, LEAST_TPOT_MS = 100.0, 10.0
# Where no plan meets that, since the machine has become slower meanwhile, so many times as long.
ROOMS = (1.0, 2.0)
# The first scene's load rises to so many times what the plan in force carries, but to no more than
# this share of what the table's largest entry does: a load that no plan carries can only be turned
# away.
RUSH_BEYOND, RUSH_SHARE = 1.3, 0.85
RUSH_S = 60.0
# The second scene's calm load, of what the plan in force carries: little enough that devices are
# given back for it. It rises so far beyond that a window of seconds can tell it from luck.
CALM_SHARE, RISE = 0.7, 2.5


@dataclass(frozen=True, kw_only=True)
class Cast:
    """One engine and the job that tunes it. ``guess`` is the plan an operator might start with;
    ``job`` are the fields of the tuning job beside model, workload and SLA.
    """

    preset: str
    guess: str
    vocab_size: int
    job: dict[str, Any]
    engine_options: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The first story: a guess, the tuner's answer, a load that rises. ``lengths`` are those of all
    its requests; ``guards`` are those of a change that has a minute."""

    title: str
    cast: Cast
    lengths: str
    guards: dict[str, float]

    @property
    def busy(self) -> str:
        """A load that is as much as the guess can do."""
        return f"closed:concurrency={BUSY_CLIENTS},requests={BUSY_REQUESTS},{self.lengths}"

    def at(self, rate_rps: float, seconds: float = ACT_S) -> str:
        """Requests that arrive independently of each other."""
        return f"poisson:rate={rate_rps:.3g},seconds={seconds:g},{self.lengths}"

    def rush(self, table: CapacityTable, plan: ParallelPlan, seed: int) -> str:
        """A load that the table's largest entry carries, and ``plan`` does not unless it is that
        entry: how much a rank carries differs from machine to machine.

        The requests that ``seed`` draws come at that rate, not only their mean over all seeds.
        """
        in_force = table.find(plan) or table.entries[0]
        rate_rps = min(RUSH_BEYOND * in_force.low_rps, RUSH_SHARE * table.entries[-1].low_rps)
        drawn = len(parse_workload(self.at(rate_rps, RUSH_S), seed=seed)) / RUSH_S
        return self.at(rate_rps * rate_rps / drawn, RUSH_S)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Seconds of load at one rate."""

    name: str
    seconds: float
    rate_rps: float


@dataclass(frozen=True, kw_only=True)
class Day:
    """The second story: capacity that follows the load. ``workload`` is the load of the first
    phase, which the engine is tuned for; ``guards`` are those of a day that lasts minutes."""

    title: str
    cast: Cast
    sla: str
    workload: str
    phases: tuple[Phase, ...]
    lengths: str
    guards: dict[str, float]

    def beside(self, table: CapacityTable, plan: ParallelPlan) -> Day:
        """The day at rates that ``plan`` carries while it is calm, and not when they rise."""
        in_force = table.find(plan) or table.entries[0]
        factor = CALM_SHARE * in_force.low_rps / self.phases[0].rate_rps
        phases = (replace(p, rate_rps=round(factor * p.rate_rps, 2)) for p in self.phases)
        return replace(self, phases=tuple(phases))

    def load(self, folder: Path, seed: int) -> Workload:
        """All phases, one after the other."""
        path = folder / "day.csv"
        rows = ["window_start_s,rate_rps,mean_input_tokens,mean_output_tokens"]
        sizes = dict(part.split("=") for part in self.lengths.split(","))
        at_s = 0.0
        for phase in self.phases:
            # Windows of one length: the last one is as long as the one before it.
            rows += [
                f"{start_s:g},{phase.rate_rps:g},{sizes['input']},{sizes['output']}"
                for start_s in np.arange(at_s, at_s + phase.seconds, WINDOW_S)
            ]
            at_s += phase.seconds
        path.write_text("\n".join(rows) + "\n")
        spread = f"input_cv={sizes['input_cv']},output_cv={sizes['output_cv']}"
        return parse_workload(f"servegen:{path},{spread}", seed=seed)


def live_scene(trace: str | None) -> Scene:
    """Two real ranks on this machine's cores, at sizes that two cores can serve. HTTP, clients and
    control share the cores and are in no table: prompts are so long that these take little.
    """
    lengths = TRACE_LENGTHS.format(trace=trace) if trace else DRAWN_LENGTHS
    return Scene(
        title="Two real ranks on this machine",
        cast=Cast(
            preset="small",
            guess="pp=2",
            vocab_size=4096,
            job={"num_devices": 2, "trials": 4, "hardware": "local"},
            options={
                "probe_requests": 40,
                "profile_seconds": 24.0,
                "timeout_s": 60.0,
                "capacity_table": True,
            },
        ),
        lengths=f"{lengths},{MOST_LENGTHS}",
        guards={"min_interval_s": 10, "max_reshapes_per_h": 30},
    )


def sla_from(measured: Measurement, room: float = 1.0) -> str:
    """An SLA that the guess misses: what ``GUESS_PERCENT`` of its requests had, 95 % shall have, or
    ``room`` times as much.

    Bounds in fixed milliseconds are met by everything on one machine and by nothing on another.
    """
    ttft = [t.ttft_ms for t in measured.completed if t.ttft_ms is not None]
    tpot = [t.tpot_ms for t in measured.completed if t.tpot_ms is not None]
    bounds = (_bound(ttft, LEAST_TTFT_MS, room), _bound(tpot, LEAST_TPOT_MS, room))
    return f"p95_ttft_ms<={bounds[0]:g},p95_tpot_ms<={bounds[1]:g},attainment>=0.9"


def _bound(values: Sequence[float], least: float, room: float) -> float:
    """Two digits are enough for a bound."""
    found = max(float(np.percentile(values, GUESS_PERCENT)), least) if values else least
    return float(f"{room * found:.2g}")


def paced_day() -> Day:
    """Four H200 that are not here: real scheduler, server and control, steps paced by a model.

    A capacity table of eight takes minutes of two cores to find.
    """
    lengths = "input=2000,output=60,input_cv=0.6,output_cv=0.6"
    calm = 1.6
    return Day(
        title="Four H200, paced by the wall clock (steps from measured operators, no GPU here)",
        cast=Cast(
            preset="llama-3.1-70b",
            guess="tp=2",
            vocab_size=128_000,
            job={
                "num_devices": 4,
                "trials": 4,
                "hardware": "4xh200",
                "dtype": "bfloat16",
                "backend": "gearshift",  # as the engine is paced
            },
            engine_options=(
                *("--paced", "4xh200", "--dtype", "bfloat16"),
                *("--max-num-batched-tokens", "8192"),
                *("--paced-start-s", "5"),  # a story of minutes; a real start takes one of them
            ),
            options={"capacity_table": True},
        ),
        sla="p95_ttft_ms<=1500,p95_tpot_ms<=80,attainment>=0.9",
        workload=f"poisson:rate={calm:g},seconds=75,{lengths}",
        phases=(
            Phase(name="calm", seconds=60, rate_rps=calm),
            Phase(name="load has risen", seconds=90, rate_rps=RISE * calm),
            Phase(name="calm again", seconds=300, rate_rps=calm),
        ),
        lengths=lengths,
        guards={"min_interval_s": 10, "max_reshapes_per_h": 30},
    )

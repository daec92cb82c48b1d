"""What the demo plays: two engines, each with its workload, its SLA and a change of load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tuner.spec.errors import WorkloadError
from tuner.workload.parse import parse_workload

# Where the Azure code trace stays busy for more than a minute.
BUSY_S = 2000
# Where to look for such a stretch in arrivals of its statistics: they come in bursts, and between
# two of them, at other times for each seed, for minutes nothing comes.
STARTS_S = range(1000, 4000, 50)
ENOUGH = 60


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One engine's story. ``guess`` is the plan an operator might start with.

    ``job`` are the fields of the tuning job beside model, workload and SLA; ``rush`` is the
    workload after the load has changed.
    """

    title: str
    preset: str
    guess: str
    workload: str
    rush: str
    sla: str
    vocab_size: int
    job: dict[str, Any]
    engine_options: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def live_scene(trace: str | None, *, seed: int) -> Scene:
    """Two real ranks on this machine's cores, at sizes that two cores can serve."""
    sizes = "input_scale=0.02,max_input=256,max_output=32"
    return Scene(
        title="Two real ranks on this machine",
        preset="small",
        guess="pp=2",
        workload=_spec(trace, seed, f"seconds=40,scale=2,requests=70,{sizes}"),
        rush=_spec(trace, seed, f"seconds=120,scale=6,requests=180,{sizes}"),
        sla="p95_ttft_ms<=500,p95_tpot_ms<=40,attainment>=0.9",
        vocab_size=4096,
        job={"num_devices": 2, "trials": 4, "hardware": "local"},
        options={"probe_requests": 40, "profile_seconds": 24.0, "timeout_s": 60.0},
    )


def paced_scene(trace: str | None, *, seed: int) -> Scene:
    """Eight H200 that are not here: real scheduler, server and control, steps paced by a model."""
    sizes = "max_input=8000,max_output=200"
    # At this many times the source's rate, full TP on eight devices is not quite enough.
    rate = 1.25 if trace else 3.0
    return Scene(
        title="Eight H200, paced by the wall clock (steps from measured operators, no GPU here)",
        preset="llama-3.1-70b",
        guess="tp=8",
        workload=_spec(trace, seed, f"seconds={30 * rate:g},scale={rate:g},requests=300,{sizes}"),
        rush=_spec(trace, seed, f"seconds={30 * rate:g},scale={1.5 * rate:g},requests=400,{sizes}"),
        sla="p95_ttft_ms<=1500,p95_tpot_ms<=80,attainment>=0.9",
        vocab_size=128_000,
        job={
            "num_devices": 8,
            "trials": 10,
            "hardware": "8xh200",
            "dtype": "bfloat16",
            "backend": "gearshift",  # as the engine is paced
        },
        engine_options=(
            *("--paced", "8xh200", "--dtype", "bfloat16"),
            *("--max-num-batched-tokens", "8192"),
            *("--paced-start-s", "0"),  # a story of minutes; the price of a start is told apart
        ),
    )


def _spec(trace: str | None, seed: int, options: str) -> str:
    """A busy stretch of the trace where it is given, else of arrivals of its statistics."""
    if trace:
        return f"azure:{trace},start={BUSY_S},{options}"
    specs = [f"azure-like:start={start_s},{options}" for start_s in STARTS_S]
    return next((spec for spec in specs if _num_requests(spec, seed) >= ENOUGH), specs[-1])


def _num_requests(spec: str, seed: int) -> int:
    try:
        return len(parse_workload(spec, seed=seed))
    except WorkloadError:  # nothing arrives in that stretch
        return 0

"""What other settings would have done on the load that was: paired, with intervals."""

from __future__ import annotations

import json

import pytest

from engine.spec.measurement import Measurement
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.load_history import SLOT_S, LoadSlot
from policies.sla import Sla
from tuner.comparison.replay import Replay, replay
from tuner.described.parse import describe_node
from tuner.workload.observed import draw_minutes
from tuner.workload.workload import Workload

SLA = Sla.parse("p95_ttft_ms<=2000,p95_tpot_ms<=60,attainment>=0.9")
NODE = describe_node(model="llama-3.1-8b", hardware="4xh100", dtype=None, backend=None)
ONE, THREE = (
    Settings(plan=ParallelPlan(dp=n), caps=Caps(max_num_seqs=128, max_num_batched_tokens=8192))
    for n in (1, 3)
)
# What three replicas serve and one does not.
BUSY = [
    LoadSlot(
        start_s=nth * SLOT_S,
        seen_s=SLOT_S,
        requests=80,
        input_tokens=80 * 26_000,
        output_tokens=80 * 4,
    )
    for nth in range(1)
]


def run_at(settings: Settings, load: Workload, step_scale: float) -> Measurement:
    return NODE.simulate(settings, load, step_scale=step_scale).measurement


def asked(current: Settings, candidate: Settings, count: int = 2) -> Replay:
    draws = [draw_minutes(BUSY, seed) for seed in range(count)]
    return replay(run_at, draws, current=current, candidate=candidate, sla=SLA, interval=0.1)


def test_more_replicas_are_told_to_help_and_fewer_to_hurt() -> None:
    there, back = asked(ONE, THREE), asked(THREE, ONE)
    assert there.attainment is not None
    assert there.attainment.low > 0.1, there
    assert there.is_no_worse()
    assert back.attainment is not None
    assert back.attainment.high < -0.1, back
    assert back.is_worse()
    ttft = next(effect for effect in there.effects if effect.metric == "p95_ttft_ms")
    assert ttft.change is not None
    assert ttft.change.high < 0
    json.dumps(there.to_json(), allow_nan=False)


def test_the_same_settings_differ_by_nothing() -> None:
    same = asked(THREE, THREE, count=2)
    assert same.attainment is not None
    assert (same.attainment.low, same.attainment.high) == (0.0, 0.0)
    assert same.is_no_worse()
    assert not same.is_worse()


def test_one_draw_proves_nothing() -> None:
    once = asked(ONE, THREE, count=1)
    assert not once.is_worse()
    assert not once.is_no_worse()
    with pytest.raises(ValueError, match="at least one draw"):
        asked(ONE, THREE, count=0)

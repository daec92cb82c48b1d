"""What shares a step, as the system that is simulated has it."""

from __future__ import annotations

import pytest

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tuner.described.parse import describe_node
from tuner.simulation.simulate import SimulationResult
from tuner.workload.parse import parse_workload

LOAD = parse_workload("poisson:rate=12,input=1500,output=80,requests=60", seed=0)


def served(backend: str) -> SimulationResult:
    node = describe_node(model="llama-3.1-8b", hardware="1xh100", backend=backend)
    return node.simulate(Settings(caps=node.backend.default_caps), LOAD)


def test_where_prompts_come_first_no_step_has_both_and_every_token_comes() -> None:
    result = served("sglang")
    shapes = [segment.shape for segment in result.segments]
    assert any(shape.num_prefill_tokens for shape in shapes)
    assert any(shape.num_decode_tokens for shape in shapes)
    assert not any(s.num_prefill_tokens and s.num_decode_tokens for s in shapes)
    assert max(shape.num_prefill_tokens for shape in shapes) <= 8192
    tokens = [len(timing.token_s) for timing in result.measurement.timings]
    assert tokens == [arrival.output_tokens for arrival in LOAD.arrivals]


def test_prompts_first_mean_sooner_first_tokens() -> None:
    def middle_ttft_s(order: str) -> float:
        timings = served(f"sglang,step_order={order}").measurement.timings
        return sorted(t.token_s[0] - t.sent_s for t in timings)[len(timings) // 2]

    assert middle_ttft_s("prefill_first") < middle_ttft_s("mixed")


@pytest.mark.parametrize("pp", [1, 2])
def test_prompts_first_under_scarce_memory_ends_every_request(pp: int) -> None:
    node = describe_node(
        model="llama-3.1-70b", hardware=f"{pp}xh200", dtype="fp8", backend="sglang"
    )
    caps = node.backend.default_caps
    load = parse_workload("closed:concurrency=100,input=3000,output=300,requests=120", seed=0)
    result = node.simulate(Settings(plan=ParallelPlan(pp=pp), caps=caps), load)
    assert all(len(t.token_s) == 300 for t in result.measurement.timings)

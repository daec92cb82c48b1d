"""Tokens that leave a simulated replica by one process, one after the other."""

from __future__ import annotations

import pytest

from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tests.tuner.worlds import SMALL, LinearTimer, closed_loop
from tuner.backends import load_backend
from tuner.simulation.simulate import Ranks, SimulatedEngine, simulate
from tuner.spec.errors import TunerError
from tuner.spec.front_end import FrontEnd

CLIENTS, OUTPUT = 8, 20


def timings(front_end: FrontEnd) -> tuple[RequestTiming, ...]:
    """Of eight clients that ask again as soon as they have their answers."""
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=lambda plan: Ranks(timer=LinearTimer(stages=1), num_kv_blocks=2000),
        max_model_len=1024,
        front_end=front_end,
    )
    caps = Caps(max_num_seqs=16, max_num_batched_tokens=1024)
    settings = Settings(plan=ParallelPlan(), threshold_tokens=64, caps=caps)
    load = closed_loop(requests=5 * CLIENTS, concurrency=CLIENTS, output_tokens=OUTPUT)
    return simulate(engine, settings, load).measurement.timings


def tokens_per_s(served: tuple[RequestTiming, ...]) -> float:
    stamps = [stamp for timing in served for stamp in timing.token_s]
    return len(stamps) / max(stamps)


def test_clients_get_no_more_tokens_a_second_than_the_process_sends() -> None:
    # Eight decodes take about 11 ms, and their tokens 24. Now and then there is nothing to send.
    assert tokens_per_s(timings(FrontEnd())) > 450
    assert 0.85 / 3e-3 < tokens_per_s(timings(FrontEnd(token_s=3e-3))) <= 1 / 3e-3


def test_a_process_that_keeps_up_costs_no_more_than_the_tokens_of_a_step() -> None:
    for slow, quick in zip(timings(FrontEnd(token_s=1e-5)), timings(FrontEnd()), strict=True):
        late_s = slow.token_s[0] - quick.token_s[0]
        assert 0 < late_s < 0.02


def test_tokens_that_are_sent_together_cost_as_one() -> None:
    assert timings(FrontEnd(token_s=3e-3, stream_interval=10)) == timings(FrontEnd(token_s=3e-4))
    assert load_backend("trtllm,stream_interval=10").front_end.stream_interval == 10
    with pytest.raises(TunerError, match="at least 1"):
        load_backend("trtllm,stream_interval=0")


def test_a_client_asks_again_when_its_last_token_is_out() -> None:
    served = timings(FrontEnd(token_s=3e-3))
    ends = {timing.token_s[-1] for timing in served}
    again = [timing.sent_s for timing in served[CLIENTS:]]
    assert all(min(abs(sent_s - end_s) for end_s in ends) < 1e-9 for sent_s in again)

"""Requests and tokens that pass one process on their way to and from a simulated replica."""

from __future__ import annotations

import pytest

from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tests.tuner.worlds import SMALL, LinearTimer, closed_loop, open_loop
from tuner.backends import load_backend
from tuner.simulation.simulate import Ranks, SimulatedEngine, simulate
from tuner.spec.errors import TunerError
from tuner.spec.front_end import FrontEnd
from tuner.workload.workload import Workload

CLIENTS, OUTPUT = 8, 20
EIGHT_CLIENTS = closed_loop(requests=5 * CLIENTS, concurrency=CLIENTS, output_tokens=OUTPUT)


def timings(
    front_end: FrontEnd,
    load: Workload = EIGHT_CLIENTS,
) -> tuple[RequestTiming, ...]:
    """Of eight clients that ask again as soon as they have their answers, or of another load."""
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=lambda plan: Ranks(timer=LinearTimer(stages=1), num_kv_blocks=2000),
        max_model_len=1024,
        front_end=front_end,
    )
    caps = Caps(max_num_seqs=16, max_num_batched_tokens=1024)
    settings = Settings(plan=ParallelPlan(), threshold_tokens=64, caps=caps)
    return simulate(engine, settings, load).measurement.timings


def tokens_per_s(served: tuple[RequestTiming, ...]) -> float:
    stamps = [stamp for timing in served for stamp in timing.token_s]
    return len(stamps) / max(stamps)


def test_clients_get_no_more_tokens_a_second_than_the_process_sends() -> None:
    # Eight decodes take about 11 ms, and their tokens 24. Requests that come meanwhile are taken in
    # together, and there is nothing to send while their prompts run.
    assert tokens_per_s(timings(FrontEnd())) > 450
    assert 0.8 / 3e-3 < tokens_per_s(timings(FrontEnd(token_s=3e-3))) <= 1 / 3e-3


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


def test_requests_wait_for_tokens_on_their_way_out_and_for_each_other() -> None:
    # The first answer has ended after 0.3 s, but its tokens keep the process busy for 4 s.
    slow = FrontEnd(token_s=0.2, request_s=0.5)
    first, second = timings(slow, open_loop(requests=2, gap_s=1.0))
    assert first.token_s[-1] == pytest.approx(0.5 + 0.2 * len(first.token_s), abs=0.1)
    assert second.token_s[0] == pytest.approx(first.token_s[-1] + 0.5 + 0.2, abs=0.1)
    # Tokens wait for requests that came before; with a process for each way, nobody does.
    for token_s, first_s in ((1e-5, 2.0), (0.0, 0.5)):
        front_end = FrontEnd(token_s=token_s, request_s=0.5)
        at_once = timings(front_end, open_loop(requests=4, gap_s=0.0))
        assert [each.token_s[0] for each in at_once] == pytest.approx([first_s] * 4, abs=0.1)

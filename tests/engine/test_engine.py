"""The engine's front door over paced replicas: routing, policies, refusals, ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from engine.engine import Engine
from engine.policy.document import KnobClass
from engine.replica.telemetry import PARTS
from engine.spec.config import EngineConfig
from engine.spec.errors import (
    EngineError,
    PolicyError,
    QueueFullError,
    RankError,
    RequestError,
    StalePolicyError,
)
from engine.spec.modes import BASE, SHIFT
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Order
from tests.engine.configs import policy_with, with_settings
from tests.engine.paced import (
    Collector,
    ConstantTimer,
    submit,
)
from tests.waiting import wait_until


def test_an_engine_that_runs_does_not_start_again(engine: Engine) -> None:
    with pytest.raises(RankError, match="cannot start: it is running"):
        engine.start()
    assert submit(engine, "a").wait().reason is FinishReason.LENGTH


def test_every_request_gets_its_tokens_with_rising_stamps_and_a_reason(engine: Engine) -> None:
    collectors = [submit(engine, str(i), tokens=5 + i) for i in range(12)]
    for i, collector in enumerate(collectors):
        outputs = collector.wait().outputs
        assert len(collector.token_ids) == 5 + i
        assert collector.reason is FinishReason.LENGTH
        stamps = [output.token_s for output in outputs]
        assert stamps == sorted(stamps)
        assert outputs[0].scheduled_s is not None
        assert outputs[0].scheduled_s <= stamps[0]
    stats = engine.stats()
    assert stats.generation_tokens == sum(range(5, 17))
    assert stats.prompt_tokens == 12 * 20
    assert stats.finished[FinishReason.LENGTH] == 12
    assert len(engine.drain_timings()) == 12
    assert len(engine.drain_samples()) == sum(stats.steps.values())


def test_who_has_an_answer_finds_it_counted(engine: Engine) -> None:
    """Read in the callback itself: nobody can be quicker."""
    seen: list[tuple[int, int, int]] = []

    def look(output: RequestOutput) -> None:
        stats = engine.stats()
        ended = stats.finished[FinishReason.LENGTH]
        seen.append((stats.generation_tokens, sum(stats.steps.values()), ended))

    request = Request(request_id="a", prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=4))
    engine.submit(request, look)
    wait_until(lambda: len(seen) == 4)
    assert seen == [(1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 4, 1)]


def test_threads_may_generate_at_once(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as threads:
        futures = [
            threads.submit(engine.generate, (5, 6, 7), SamplingParams(max_tokens=20 + i))
            for i in range(8)
        ]
        lengths = [len(future.result(timeout=20).token_ids) for future in futures]
    assert lengths == [20 + i for i in range(8)]


def test_two_replicas_share_the_requests(config: EngineConfig) -> None:
    with Engine(
        with_settings(config, plan=ParallelPlan(dp=2)), timer_factory=ConstantTimer
    ) as engine:
        for collector in [submit(engine, str(i)) for i in range(8)]:
            collector.wait()
        assert {sample.replica for sample in engine.drain_samples()} == {0, 1}


def test_pipeline_stages_hold_different_sequences_at_once(config: EngineConfig) -> None:
    plan = ParallelPlan(pp=4)
    with Engine(with_settings(config, plan=plan), timer_factory=ConstantTimer) as engine:
        for collector in [submit(engine, str(i), prompt=16, tokens=40) for i in range(8)]:
            collector.wait()
        steps = engine.drain_samples()
        span_s = max(s.start_s + s.step_s for s in steps) - min(s.start_s for s in steps)
        # Steps that pass all four stages one after the other take no longer than all the time.
        assert sum(s.step_s for s in steps) > span_s


def test_an_aborted_request_ends_and_frees_its_place(engine: Engine) -> None:
    collector = submit(engine, "a", tokens=400)
    wait_until(lambda: len(collector.outputs) > 3)
    engine.abort("a")
    assert collector.wait().reason is FinishReason.ABORT
    wait_until(lambda: engine.stats().kv_usage == 0.0)
    engine.abort("never seen")


def test_tokens_are_counted_when_they_are_handed_out_and_not_for_requests_that_have_gone(
    engine: Engine,
) -> None:
    collectors = [submit(engine, str(i), tokens=400) for i in range(40)]
    for i, collector in enumerate(collectors):
        wait_until(lambda one=collector: one.outputs)
        engine.abort(str(i))
    given = sum(len(collector.wait().token_ids) for collector in collectors)
    wait_until(lambda: engine.stats().running == 0)
    assert engine.stats().generation_tokens == given


def test_a_request_that_has_not_ended_at_its_deadline_ends_there_with_its_tokens_so_far(
    engine: Engine,
) -> None:
    late = submit(engine, "late", tokens=480, within_s=0.1)
    other = submit(engine, "other", tokens=60, within_s=60)
    assert late.wait().reason is FinishReason.DEADLINE
    assert 0 < len(late.token_ids) < 480
    assert late.outputs[-1].error == "its deadline passed"
    assert len(other.wait().token_ids) == 60
    wait_until(lambda: engine.stats().kv_usage == 0.0)
    assert engine.stats().finished[FinishReason.DEADLINE] == 1


def test_a_deadline_also_ends_a_request_that_still_waits(config: EngineConfig) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64)
    with Engine(with_settings(config, caps=caps), timer_factory=ConstantTimer) as engine:
        running = submit(engine, "running", tokens=200)
        waiting = submit(engine, "waiting", within_s=0.05)
        assert waiting.wait().reason is FinishReason.DEADLINE
        assert waiting.token_ids == []
        assert len(running.wait().token_ids) == 200
        engine.check_integrity()


def test_under_priority_an_urgent_request_overtakes_those_that_wait(config: EngineConfig) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64)
    with Engine(with_settings(config, caps=caps), timer_factory=ConstantTimer) as engine:
        engine.apply(policy_with(engine.policy, order=Order.PRIORITY))
        running = submit(engine, "running", tokens=100)
        wait_until(lambda: running.outputs)
        patient = submit(engine, "patient", priority=5)
        urgent = submit(engine, "urgent", priority=-1)
        assert urgent.wait().outputs[-1].token_s < patient.wait().outputs[0].token_s


@pytest.mark.parametrize("plan", [ParallelPlan(), ParallelPlan(pp=3)])
def test_what_a_request_gets_is_the_same_with_overlap_off(
    config: EngineConfig, plan: ParallelPlan
) -> None:
    lengths: list[list[int]] = []
    for overlap in (True, False):
        settings = replace(with_settings(config, plan=plan), overlap=overlap)
        with Engine(settings, timer_factory=ConstantTimer) as engine:
            collectors = [submit(engine, str(i), tokens=5 + 3 * i) for i in range(12)]
            lengths.append([len(c.wait().token_ids) for c in collectors])
            stats = engine.stats()
            engine.check_integrity()
        assert stats.generation_tokens == sum(lengths[-1])
        assert 0 <= stats.bubble_ratio < 1
        assert set(stats.exposed_seconds) == set(PARTS)
    assert lengths[0] == lengths[1] == [5 + 3 * i for i in range(12)]


def test_an_id_in_use_a_foreign_token_and_a_long_prompt_are_refused(engine: Engine) -> None:
    collector = submit(engine, "a", tokens=100)
    with pytest.raises(RequestError, match="'a' is in use"):
        submit(engine, "a")
    with pytest.raises(RequestError, match=r"450 prompt tokens plus max_tokens 100 .* 512"):
        submit(engine, "long", prompt=450, tokens=100)
    foreign = Request(request_id="b", prompt_ids=(3, 500))
    with pytest.raises(RequestError, match="token id 500 is outside the vocabulary of 500"):
        engine.submit(foreign, Collector())
    collector.wait()


def test_an_id_is_free_again_as_soon_as_its_last_token_is_there(engine: Engine) -> None:
    """Who gets the last token may ask again at once, under the same name."""
    again = Collector()

    def ask_again(output: RequestOutput) -> None:
        if output.is_finished:
            engine.submit(Request(request_id="a", prompt_ids=(5, 6)), again)

    engine.submit(Request(request_id="a", prompt_ids=(5, 6)), ask_again)
    assert again.wait().reason is FinishReason.LENGTH
    engine.check_integrity()


def test_the_admission_limit_refuses_more(engine: Engine) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64, max_queue=2)
    engine.apply(policy_with(engine.policy, caps=caps))
    running = submit(engine, "running", tokens=200)
    wait_until(lambda: running.outputs)
    queued = [submit(engine, name) for name in ("first", "second")]
    with pytest.raises(QueueFullError, match="max_queue is 2"):
        submit(engine, "third")
    for collector in (running, *queued):
        assert collector.wait().reason is FinishReason.LENGTH


def test_a_hot_change_takes_effect_at_the_next_step(config: EngineConfig) -> None:
    plan = ParallelPlan(sp=2, shift=True)
    config = with_settings(config, plan=plan, threshold_tokens=100)
    with Engine(config, timer_factory=ConstantTimer) as engine:
        collector = submit(engine, "a", tokens=200)
        wait_until(lambda: len(collector.outputs) > 5)
        applied = engine.apply(policy_with(engine.policy, threshold_tokens=0))
        wait_until(lambda: len(collector.outputs) > 20)
        collector.wait()
        assert applied.changes == {"shift.threshold_tokens": KnobClass.HOT}
        for sample in engine.drain_samples():
            expected = BASE if sample.step_id >= applied.effective_step else SHIFT
            assert sample.shape.mode is expected
        assert engine.stats().mode_switches == 1
        assert applied.warnings


def test_caps_above_the_envelope_are_refused(engine: Engine) -> None:
    with pytest.raises(PolicyError, match="100000 is above the 8192"):
        engine.apply(policy_with(engine.policy, caps=Caps(max_num_batched_tokens=100_000)))


def test_a_change_of_a_policy_that_someone_else_has_replaced_is_refused(engine: Engine) -> None:
    read = engine.policy
    engine.apply(policy_with(read, threshold_tokens=9, version=1))
    with pytest.raises(StalePolicyError, match="version 0 is not in force any more"):
        engine.apply(policy_with(read, threshold_tokens=11), expected=read)
    assert engine.settings.threshold_tokens == 9


def test_a_caller_whose_callback_fails_loses_its_own_request_only(engine: Engine) -> None:
    def fail(output: RequestOutput) -> None:
        raise RuntimeError("the loop of this caller is closed")

    request = Request(
        request_id="bad", prompt_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=50)
    )
    other = submit(engine, "good", tokens=30)
    engine.submit(request, fail)
    assert len(other.wait().token_ids) == 30
    wait_until(lambda: engine.stats().kv_usage == 0.0)
    assert engine.is_healthy


@pytest.mark.parametrize("asked", [0, 513])
def test_a_context_that_the_model_has_no_positions_for_is_refused(
    config: EngineConfig, asked: int
) -> None:
    with pytest.raises(EngineError, match=rf"max_model_len={asked}: must be in 1\.\.512"):
        Engine(replace(config, max_model_len=asked), timer_factory=ConstantTimer)


def test_ids_that_no_rank_could_look_up_are_refused(engine: Engine) -> None:
    for sampling in (
        SamplingParams(stop_token_ids=(500,), min_tokens=1),
        SamplingParams(logit_bias=((500, 1.0),)),
    ):
        request = Request(request_id="a", prompt_ids=(3,), sampling=sampling)
        with pytest.raises(RequestError, match="token id 500 is outside the vocabulary of 500"):
            engine.submit(request, Collector())


def test_who_hears_of_an_end_at_the_close_may_call_the_engine_back(config: EngineConfig) -> None:
    refusals: list[str] = []
    engine = Engine(config, timer_factory=ConstantTimer)
    engine.start()

    def call_back(output: RequestOutput) -> None:
        if output.is_finished:
            with pytest.raises(RankError) as refused:
                engine.apply(engine.policy)
            refusals.append(str(refused.value))

    request = Request(request_id="r", prompt_ids=(3,), sampling=SamplingParams(max_tokens=400))
    engine.submit(request, call_back)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert refusals == ["the engine cannot change: it is closed"]


def test_an_engine_that_was_closed_does_not_start(config: EngineConfig) -> None:
    engine = Engine(config, timer_factory=ConstantTimer)
    engine.close()
    with pytest.raises(RankError, match="it is closed"):
        engine.start()


def test_an_idle_engine_takes_as_many_requests_as_it_has_rows_whatever_the_admission_limit(
    engine: Engine,
) -> None:
    caps = Caps(max_num_seqs=8, max_num_batched_tokens=64, max_queue=0)
    engine.apply(policy_with(engine.policy, caps=caps))
    collectors = [submit(engine, str(i), tokens=200) for i in range(8)]
    with pytest.raises(QueueFullError):
        submit(engine, "one too many")
    for collector in collectors:
        assert len(collector.wait().token_ids) == 200


def test_closing_ends_what_is_left_with_reason_abort(config: EngineConfig) -> None:
    engine = Engine(config, timer_factory=ConstantTimer)
    engine.start()
    collector = submit(engine, "a", tokens=400)
    engine.close()
    assert collector.wait().reason is FinishReason.ABORT
    with pytest.raises(RankError, match="closed"):
        submit(engine, "b")

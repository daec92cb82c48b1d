from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler.skipping import SkippingScheduler
from engine.spec.measurement import Measurement, Outcome
from engine.spec.modes import AUTO, BASE, SHIFT, TABLE, Mode, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepShape
from tests.tuner.worlds import SMALL, LinearTimer, closed_loop, in_python, open_loop
from tuner.simulation.simulate import (
    Ranks,
    SimulatedEngine,
    SimulationResult,
    ranks_of_one,
    simulate,
)
from tuner.simulation.step_samples import step_samples
from tuner.spec.errors import TunerError
from tuner.spec.front_end import NO_FRONT_END, FrontEnd
from tuner.spec.look_ahead import LookAhead
from tuner.workload.workload import Workload


def run(
    workload: Workload,
    *,
    plan: ParallelPlan | None = None,
    caps: Caps | None = None,
    timer: LinearTimer | None = None,
    num_kv_blocks: int = 2000,
    threshold_tokens: int = 64,
    keeps_prefixes: bool = False,
    front_end: FrontEnd = NO_FRONT_END,
    pin: ModePin = AUTO,
    by: Callable[..., SimulationResult] = simulate,
) -> SimulationResult:
    plan = plan or ParallelPlan()
    ranks = Ranks(timer=timer or LinearTimer(stages=plan.pp), num_kv_blocks=num_kv_blocks)
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=ranks_of_one(plan, ranks),
        max_model_len=1024,
        keeps_prefixes=keeps_prefixes,
        front_end=front_end,
    )
    given = Settings(
        plan=plan,
        threshold_tokens=threshold_tokens,
        caps=caps or Caps(max_num_seqs=16, max_num_batched_tokens=256),
        pin=pin,
    )
    return by(engine, given, workload, seed=3)


@contextmanager
def without_skipping() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SkippingScheduler, "quiet_steps", lambda self, most: iter(()))
        patch.setattr(SkippingScheduler, "quiet_rounds", lambda self: None)
        yield


def assert_equal(a: Measurement, b: Measurement) -> None:
    assert len(a.timings) == len(b.timings)
    for one, other in zip(a.timings, b.timings, strict=True):
        assert one.token_s == pytest.approx(other.token_s, abs=1e-9)
        assert one.outcome is other.outcome


def test_the_same_seed_gives_the_same_result() -> None:
    workload = open_loop(requests=40, gap_s=0.05)
    assert run(workload) == run(workload)


def test_one_request_takes_its_steps_one_after_the_other() -> None:
    result = run(open_loop(requests=1, gap_s=0.0, input_tokens=100, output_tokens=3))
    timing = result.measurement.timings[0]
    assert len(timing.token_s) == 3
    assert timing.ttft_ms == pytest.approx(1 + 10 + 10)
    assert result.counts.num_steps == 3


def test_every_request_gets_exactly_its_output_tokens() -> None:
    workload = open_loop(requests=60, gap_s=0.004)
    timings = run(workload).measurement.timings
    assert [t.output_tokens for t in timings] == [a.output_tokens for a in workload.arrivals]


@settings(max_examples=25, deadline=None)
@given(
    requests=st.integers(1, 30),
    gap_s=st.floats(0.0, 0.3),
    output_tokens=st.integers(1, 60),
    max_num_seqs=st.integers(1, 12),
    concurrency=st.integers(0, 6),
    dp=st.integers(1, 2),
    pp=st.integers(1, 4),
)
def test_skipping_quiet_steps_equals_taking_each(
    requests: int,
    gap_s: float,
    output_tokens: int,
    max_num_seqs: int,
    concurrency: int,
    dp: int,
    pp: int,
) -> None:
    if concurrency:
        workload = closed_loop(
            requests=requests, concurrency=concurrency, output_tokens=output_tokens
        )
    else:
        workload = open_loop(requests=requests, gap_s=gap_s, output_tokens=output_tokens)
    caps = Caps(max_num_seqs=max_num_seqs, max_num_batched_tokens=256)
    plan = ParallelPlan(dp=dp, pp=pp)
    skipped = run(workload, caps=caps, plan=plan, num_kv_blocks=60, by=in_python)
    with without_skipping():
        single = run(workload, caps=caps, plan=plan, num_kv_blocks=60, by=in_python)
    assert_equal(skipped.measurement, single.measurement)
    assert skipped.counts.steps == single.counts.steps


def test_skipping_schedules_far_fewer_steps() -> None:
    counts = run(open_loop(requests=4, gap_s=5.0, output_tokens=200)).counts
    assert counts.num_steps >= 800
    assert counts.scheduled_steps < 40


def test_skipping_schedules_far_fewer_steps_of_a_pipeline_too() -> None:
    plan = ParallelPlan(pp=2)
    counts = run(closed_loop(requests=8, concurrency=8, output_tokens=200), plan=plan).counts
    assert counts.num_steps >= 400
    assert counts.scheduled_steps < 60


def test_a_pipeline_overlaps_its_stages() -> None:
    workload = closed_loop(requests=64, concurrency=32)
    # Bound by tokens, not by reading weights: halves of the batch take half the time.
    bound = LinearTimer(fixed_s=0.0, per_token_s=0.001, host_s=0.0)
    one = run(workload, timer=bound)
    two = run(workload, plan=ParallelPlan(pp=2), timer=replace(bound, stages=2))
    assert two.measurement.window_s < 0.8 * one.measurement.window_s


def test_two_replicas_share_the_load() -> None:
    workload = open_loop(requests=80, gap_s=0.01)
    one = run(workload).measurement
    two = run(workload, plan=ParallelPlan(dp=2)).measurement
    assert (two.e2e_ms.mean or 0) < 0.8 * (one.e2e_ms.mean or 0)


def test_small_steps_run_in_shift_and_large_ones_in_base() -> None:
    plan = ParallelPlan(sp=2, shift=True)
    counts = run(open_loop(requests=20, gap_s=0.05), plan=plan).counts
    assert counts.steps[SHIFT] > 0
    assert counts.steps[BASE] > 0
    assert counts.mode_switches > 0


class RungTimer(LinearTimer):
    """Shift is quickest up to 32 tokens, the rung between up to 128, and base beyond."""

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        slices = {BASE: 4, SHIFT: 1}.get(shape.mode, 2)
        most = {1: 32, 2: 128, 4: 10_000}[slices]
        lost_s = 0.01 * slices + (0.1 if shape.num_tokens > most else 0.0)
        return (self.fixed_s + lost_s + 1e-6 * shape.num_tokens,)


def test_by_table_a_simulated_step_takes_the_rung_that_its_timer_tells_is_fastest() -> None:
    plan, timer = ParallelPlan(sp=4, shift=True), RungTimer()
    load = open_loop(requests=40, gap_s=0.05)
    by_table = run(load, plan=plan, timer=timer, pin=TABLE)
    for mode in plan.modes:
        assert by_table.counts.steps[mode] > 0
    by_threshold = run(load, plan=plan, timer=timer)
    assert set(by_threshold.counts.steps) == {BASE, SHIFT}
    assert (by_table.measurement.e2e_ms.mean or 0) < (by_threshold.measurement.e2e_ms.mean or 0)
    held = run(load, plan=plan, timer=timer, pin=ModePin("2x2"))
    assert {mode for mode, count in held.counts.steps.items() if count} == {Mode("2x2")}


def test_a_closed_loop_never_runs_more_than_its_concurrency() -> None:
    workload = closed_loop(requests=30, concurrency=4)
    timings = run(workload).measurement.timings
    events = sorted(
        [(t.scheduled_s, 1) for t in timings] + [(t.token_s[-1], -1) for t in timings],
        key=lambda event: (event[0], event[1]),
    )
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    assert most == 4


def test_a_client_in_a_closed_loop_misses_the_step_that_starts_with_its_answer() -> None:
    timings = run(closed_loop(requests=4, concurrency=1, output_tokens=2)).measurement.timings
    alone = [t.token_s[0] - t.scheduled_s for t in timings]
    assert alone == pytest.approx([0.021, 0.0217, 0.0224, 0.0231], abs=1e-4)
    crowded = run(closed_loop(requests=12, concurrency=2, output_tokens=6)).measurement.timings
    # With another request running, a step passes before the new prompt's own.
    assert min(t.token_s[0] - t.scheduled_s for t in crowded[4:]) > 0.030


def test_a_request_that_cannot_run_is_an_error_and_the_rest_goes_on() -> None:
    workload = open_loop(requests=10, gap_s=0.1, input_tokens=1010)
    measurement = run(workload).measurement
    assert measurement.count(Outcome.ERRORED) == 10
    mixed = run(open_loop(requests=10, gap_s=0.1, input_tokens=980)).measurement
    assert mixed.count(Outcome.ERRORED) > 0
    assert mixed.count(Outcome.COMPLETED) > 0


def test_a_full_queue_refuses() -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=256, max_queue=2)
    measurement = run(open_loop(requests=20, gap_s=0.0), caps=caps).measurement
    assert measurement.count(Outcome.ERRORED) == 17  # one runs, two wait


def test_a_full_queue_refuses_nobody_for_whom_another_replica_has_room() -> None:
    caps = Caps(max_num_seqs=2, max_num_batched_tokens=256, max_queue=0)
    few = open_loop(requests=4, gap_s=0.0, output_tokens=10).arrivals
    # The first has more to do than any two of the others, which fill the other replica.
    arrivals = (replace(few[0], output_tokens=500), *few[1:])
    workload = replace(open_loop(requests=4, gap_s=0.0), arrivals=arrivals)
    measurement = run(workload, plan=ParallelPlan(dp=2), caps=caps).measurement
    assert measurement.count(Outcome.COMPLETED) == 4


def test_a_step_time_cap_sizes_chunks_alike_whether_quiet_steps_are_skipped_or_not() -> None:
    caps = Caps(max_num_seqs=16, max_num_batched_tokens=256, max_step_ms=12.0)
    arrivals = (
        *open_loop(requests=4, gap_s=0.0, input_tokens=20, output_tokens=60).arrivals,
        *(
            replace(a, arrival_s=0.4, input_tokens=200)
            for a in open_loop(requests=2, gap_s=0).arrivals
        ),
    )
    workload = replace(open_loop(requests=1, gap_s=0.0), arrivals=arrivals)
    skipped = run(workload, caps=caps)
    with without_skipping():
        single = run(workload, caps=caps)
    assert_equal(skipped.measurement, single.measurement)


def test_a_step_time_cap_bounds_mixed_steps() -> None:
    caps = Caps(max_num_seqs=16, max_num_batched_tokens=256, max_step_ms=20.0)
    workload = open_loop(requests=40, gap_s=0.1)
    loose, tight = run(workload), run(workload, caps=caps)
    assert (tight.measurement.itl_ms.p99 or 0) < (loose.measurement.itl_ms.p99 or 0)


def test_shared_beginnings_are_found_in_the_prefix_cache_and_shorten_prefill() -> None:
    base = open_loop(requests=12, gap_s=0.5, input_tokens=900)
    shared = tuple(replace(a, prefix_id="system") for a in base.arrivals)
    workload = replace(base, arrivals=shared)
    without = run(workload)
    with_cache = run(workload, keeps_prefixes=True)
    assert without.counts.prefix_hits == 0
    assert with_cache.counts.prefix_hits > 11 * 800
    assert (with_cache.measurement.ttft_ms.p50 or 0) < 0.6 * (without.measurement.ttft_ms.p50 or 0)
    assert run(workload, keeps_prefixes=True) == with_cache


def test_a_preempted_request_computes_its_outputs_again_with_the_prefix_cache_on() -> None:
    workload = open_loop(requests=8, gap_s=0.0, input_tokens=100, output_tokens=200)
    result = run(workload, keeps_prefixes=True, num_kv_blocks=60)
    assert result.counts.preemptions > 0
    assert result.measurement.count(Outcome.COMPLETED) == 8


def test_the_front_end_delays_what_clients_see_and_not_the_steps() -> None:
    workload = open_loop(requests=1, gap_s=0.0, input_tokens=100, output_tokens=3)
    front_end = FrontEnd(request_s=0.005, prompt_token_s=1e-5, answer_s=0.002)
    direct, served = run(workload), run(workload, front_end=front_end)
    (before,), (after,) = direct.measurement.timings, served.measurement.timings
    assert (after.ttft_ms or 0) == pytest.approx((before.ttft_ms or 0) + 5 + 1 + 2)
    assert after.tpot_ms == pytest.approx(before.tpot_ms)
    assert served.counts.steps == direct.counts.steps


def test_an_engine_without_room_for_a_block_is_refused() -> None:
    with pytest.raises(TunerError, match="num_kv_blocks=0"):
        run(open_loop(requests=1, gap_s=0.0), num_kv_blocks=0)
    ranks = Ranks(timer=LinearTimer(), num_kv_blocks=1)
    with pytest.raises(TunerError, match="block_size=0"):
        SimulatedEngine(model=SMALL, ranks_of=lambda plan: ranks, block_size=0)


@pytest.mark.parametrize("look_ahead", [LookAhead.NONE, LookAhead.BEFORE_END])
def test_samples_tell_the_ranks_seconds_from_those_they_waited_for_the_host(
    look_ahead: LookAhead,
) -> None:
    timer = LinearTimer(per_token_s=0.0, per_context_s=0.0, host_s=0.002)
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=lambda plan: Ranks(timer=timer, num_kv_blocks=200),
        look_ahead=look_ahead,
    )
    given = Settings(plan=ParallelPlan(), threshold_tokens=64, caps=Caps(max_num_seqs=4))
    result = simulate(engine, given, open_loop(requests=3, gap_s=0.0, output_tokens=30))
    samples = list(step_samples(result.segments, result.spells))[2:-2]
    assert [s.forward_s for s in samples] == pytest.approx([0.010] * len(samples))
    waited = 0.0 if look_ahead is LookAhead.BEFORE_END else 0.002
    assert [s.bubble_s for s in samples] == pytest.approx([waited] * len(samples), abs=1e-9)
    assert [s.step_s for s in samples] == pytest.approx([0.010 + waited] * len(samples))


@pytest.mark.parametrize("plan", [ParallelPlan(), ParallelPlan(pp=2), ParallelPlan(dp=2)], ids=str)
def test_a_run_leaves_one_sample_per_step_as_a_live_engine_does(plan: ParallelPlan) -> None:
    result = run(open_loop(requests=20, gap_s=0.02), plan=plan)
    samples = list(step_samples(result.segments, result.spells))
    assert len(samples) == result.counts.num_steps
    assert [s.step_id for s in samples] == list(range(len(samples)))
    assert {s.plan for s in samples} == {str(plan)}
    assert {s.replica for s in samples} == set(range(plan.dp))
    tokens = sum(s.shape.num_sampled for s in samples)
    assert tokens == sum(t.output_tokens for t in result.measurement.timings)
    ends = [s.start_s + s.step_s for s in samples]
    assert ends == sorted(ends)
    last_token_s = max(t.token_s[-1] for t in result.measurement.timings)
    assert ends[-1] == pytest.approx(last_token_s)
    assert all(0 < s.busy_s <= s.step_s + 1e-12 for s in samples)

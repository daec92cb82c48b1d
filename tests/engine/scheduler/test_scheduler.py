"""The scheduler under random loads: nothing is lost, nothing exceeds a cap, books balance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.modes.chooser import ModeChooser
from engine.scheduler.skipping import SkippingScheduler, with_more_context
from engine.scheduler.step import ScheduledStep
from engine.scheduler.table import Sequence
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.modes import BASE, SHIFT
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request, SamplingParams
from engine.spec.settings import Caps, Order

SP4 = ParallelPlan(sp=4, shift=True)


def make_scheduler(
    *,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    num_blocks: int = 64,
    block_size: int = 4,
    depth: int = 1,
    order: Order = Order.FCFS,
    max_queue: int | None = None,
    threshold: int = 8,
    eos: tuple[int, ...] = (),
    keeps_prefixes: bool = False,
) -> SkippingScheduler:
    caps = Caps(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_queue=max_queue,
    )
    return SkippingScheduler(
        caps=caps,
        envelope=caps,
        chooser=ModeChooser(plan=SP4, threshold_tokens=threshold),
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=128,
        depth=depth,
        order=order,
        eos_token_ids=eos,
        keeps_prefixes=keeps_prefixes,
    )


def make_request(name: str, prompt_len: int, max_tokens: int, **sampling: object) -> Request:
    return Request(
        request_id=name,
        prompt_ids=tuple(range(1, prompt_len + 1)),
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),
    )


def run_to_end(scheduler: SkippingScheduler, *, token: int = 7) -> dict[str, int]:
    """Drive until idle; returns tokens produced per request."""
    produced: dict[str, int] = {}
    outstanding = []
    for _ in range(10_000):
        while (step := scheduler.schedule()) is not None:
            assert step.shape.num_tokens <= scheduler.packer.caps.max_num_batched_tokens
            assert scheduler.num_running <= scheduler.packer.caps.max_num_seqs
            outstanding.append(step)
        in_flight = [name for s in outstanding for name in s.request_ids]
        assert len(in_flight) == len(set(in_flight)), "a sequence is in two steps at once"
        if not outstanding:
            break
        step = outstanding.pop(0)
        ids = np.full(int(step.is_sampled.sum()), token, np.int32)
        for sequence, _ in scheduler.commit(step, ids).sampled:
            name = sequence.request_id
            produced[name] = produced.get(name, 0) + 1
        scheduler.check_integrity()
    assert scheduler.is_idle, "the scheduler stopped with work left"
    return produced


requests = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(
    lengths=requests,
    max_num_seqs=st.integers(1, 8),
    budget=st.integers(1, 40),
    num_blocks=st.integers(23, 60),
    depth=st.integers(1, 4),
    order=st.sampled_from(Order),
)
def test_every_request_gets_all_its_tokens_within_the_caps_whatever_the_load(
    lengths: list[tuple[int, int]],
    max_num_seqs: int,
    budget: int,
    num_blocks: int,
    depth: int,
    order: Order,
) -> None:
    scheduler = make_scheduler(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        num_blocks=num_blocks,
        depth=depth,
        order=order,
    )
    for i, (prompt_len, max_tokens) in enumerate(lengths):
        scheduler.add(make_request(str(i), prompt_len, max_tokens))
    produced = run_to_end(scheduler)
    assert produced == {str(i): max_tokens for i, (_, max_tokens) in enumerate(lengths)}
    assert scheduler.kv_usage == 0.0
    assert scheduler.roster.load.tokens == 0


@settings(max_examples=150, deadline=None)
@given(
    lengths=requests,
    num_blocks=st.integers(23, 200),
    keeps_prefixes=st.booleans(),
    data=st.data(),
)
def test_steps_in_bulk_and_at_once_leave_the_same_state_as_single_ones(
    lengths: list[tuple[int, int]], num_blocks: int, keeps_prefixes: bool, data: st.DataObject
) -> None:
    bulk, single = (
        make_scheduler(num_blocks=num_blocks, keeps_prefixes=keeps_prefixes) for _ in range(2)
    )
    for scheduler in (bulk, single):
        for i, (prompt_len, max_tokens) in enumerate(lengths):
            scheduler.add(make_request(str(i), prompt_len, max_tokens))
    while not bulk.is_idle:
        most = data.draw(st.integers(1, 40))
        runs = list(bulk.quiet_steps(most))
        assert runs == list(single.quiet_steps(most))
        if runs:
            expected = [
                with_more_context(run.shape, nth * run.shape.num_seqs)
                for run in runs
                for nth in range(run.count)
            ]
            assert len(expected) <= most
            ends_at = set(np.cumsum([run.count for run in runs]).tolist())
            count = data.draw(st.integers(1, len(expected)))
            ended = bulk.advance(count)
            finished: list[Sequence] = []
            for nth in range(count):
                step = single.schedule()
                assert step is not None
                assert step.shape == expected[nth]
                finished += (now := single.commit_lengths(step))
                assert not now or nth + 1 in ends_at, "a step within a run ended a sequence"
            assert [s.request_id for s in finished] == [s.request_id for s in ended]
        else:
            packed, step = bulk.pack(), single.schedule()
            assert packed is not None
            assert step is not None
            assert packed.shape == step.shape
            assert [p.slot for p in packed.placed] == [p.slot for p in step.placed]
            assert bulk.kv_usage == single.kv_usage
            taken = bulk.take(packed)
            assert taken.sampled_slots.tolist() == step.sampled_slots.tolist()
            ended = single.commit_lengths(step)
            assert [s.request_id for s in taken.ended] == [s.request_id for s in ended]
        bulk.check_integrity()
        for name in ("num_tokens", "num_computed", "num_blocks"):
            assert np.array_equal(
                getattr(bulk.running.table, name), getattr(single.running.table, name)
            ), name
        assert (bulk.kv_usage, bulk.counts) == (single.kv_usage, single.counts)
        assert bulk.next_step_id == single.next_step_id


@settings(max_examples=100, deadline=None)
@given(
    lengths=requests,
    depth=st.integers(2, 4),
    num_blocks=st.integers(23, 200),
    data=st.data(),
)
def test_advancing_rounds_of_a_pipeline_leaves_the_same_state_as_single_steps(
    lengths: list[tuple[int, int]], depth: int, num_blocks: int, data: st.DataObject
) -> None:
    bulk, single = (
        make_scheduler(num_blocks=num_blocks, depth=depth, keeps_prefixes=True) for _ in range(2)
    )
    for scheduler in (bulk, single):
        for i, (prompt_len, max_tokens) in enumerate(lengths):
            scheduler.add(make_request(str(i), prompt_len, max_tokens))
    flights: list[list[ScheduledStep]] = [[], []]
    while not bulk.is_idle:
        rounds = bulk.quiet_rounds()
        if rounds is not None:
            count = data.draw(st.integers(1, rounds.count))
            flights[0] = bulk.advance_rounds(rounds, count)
            for _ in range(count * depth):
                launched = single.schedule()
                assert launched is not None
                flights[1].append(launched)
                ended = single.commit_lengths(flights[1].pop(0))
                assert not ended, "a sequence ended in a quiet round"
        else:
            for scheduler, flying in zip((bulk, single), flights, strict=True):
                while (step := scheduler.schedule()) is not None:
                    flying.append(step)
                scheduler.commit_lengths(flying.pop(0))
        bulk.check_integrity()
        for name in ("num_tokens", "num_computed", "num_known", "num_blocks", "in_flight"):
            assert np.array_equal(
                getattr(bulk.running.table, name), getattr(single.running.table, name)
            ), name
        assert bulk.running.pool.num_cached == single.running.pool.num_cached
        assert [s.shape for s in flights[0]] == [s.shape for s in flights[1]]
        assert [s.step_id for s in flights[0]] == [s.step_id for s in flights[1]]
        assert [s.request_ids for s in flights[0]] == [s.request_ids for s in flights[1]]
        assert bulk.next_step_id == single.next_step_id


@settings(max_examples=100, deadline=None)
@given(lengths=requests, depth=st.integers(1, 3), data=st.data())
def test_an_abort_at_any_point_frees_everything_it_held(
    lengths: list[tuple[int, int]], depth: int, data: st.DataObject
) -> None:
    scheduler = make_scheduler(depth=depth, num_blocks=30)
    alive = {str(i) for i in range(len(lengths))}
    for i, (prompt_len, max_tokens) in enumerate(lengths):
        scheduler.add(make_request(str(i), prompt_len, max_tokens))
    outstanding = []
    while not scheduler.is_idle:
        while (step := scheduler.schedule()) is not None:
            outstanding.append(step)
        if alive and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(alive)))
            alive.discard(name)
            assert scheduler.abort(name) is not None
        if outstanding:
            step = outstanding.pop(0)
            outcome = scheduler.commit(step, np.full(step.num_sampled, 7, np.int32))
            names = {sequence.request_id for sequence, _ in outcome.sampled}
            assert names <= alive, "an aborted request got a token"
            alive -= {sequence.request_id for sequence, _ in outcome.finished}
        scheduler.check_integrity()
    assert not alive
    assert scheduler.kv_usage == 0.0
    assert scheduler.roster.load.tokens == 0


def test_a_prompt_longer_than_the_budget_is_cut_into_chunks_and_samples_once() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10)
    scheduler.add(make_request("a", 25, 2))
    chunks, sampled = [], []
    while (step := scheduler.schedule()) is not None:
        chunks.append(step.shape.num_tokens)
        sampled.append(step.shape.num_sampled)
        scheduler.commit_lengths(step)
    assert chunks == [10, 10, 5, 1]
    assert sampled == [0, 0, 1, 1]


def test_decodes_are_never_held_back_by_a_long_prompt() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10)
    scheduler.add(make_request("decode", 1, 20))
    first = scheduler.schedule()
    assert first is not None
    scheduler.commit_lengths(first)
    scheduler.add(make_request("long", 60, 1))
    step = scheduler.schedule()
    assert step is not None
    assert step.request_ids == ["decode", "long"]
    assert step.query_lens.tolist() == [1, 9]


def test_the_mode_follows_the_tokens_of_the_step_and_the_boundary_is_shift() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=9, threshold=8)
    scheduler.add(make_request("a", 17, 2))
    modes = []
    while (step := scheduler.schedule()) is not None:
        modes.append((step.shape.num_tokens, step.shape.mode))
        scheduler.commit_lengths(step)
    assert modes == [(9, BASE), (8, SHIFT), (1, SHIFT)]


def test_when_memory_runs_out_the_last_admitted_is_preempted_and_still_completes() -> None:
    scheduler = make_scheduler(num_blocks=10, block_size=4)
    scheduler.add(make_request("first", 14, 20))
    scheduler.add(make_request("second", 14, 20))
    assert run_to_end(scheduler) == {"first": 20, "second": 20}
    assert scheduler.counts.preemptions >= 1


def test_an_end_of_sequence_token_stops_unless_ignored_or_too_early() -> None:
    scheduler = make_scheduler(eos=(7,))
    scheduler.add(make_request("stops", 3, 10))
    scheduler.add(make_request("ignores", 3, 10, ignore_eos=True))
    scheduler.add(make_request("waits", 3, 10, min_tokens=4))
    assert run_to_end(scheduler, token=7) == {"stops": 1, "ignores": 10, "waits": 4}


def test_a_stop_token_id_ends_with_reason_stop() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 3, 10, stop_token_ids=(5,)))
    step = scheduler.schedule()
    assert step is not None
    outcome = scheduler.commit(step, np.array([5], np.int32))
    assert [reason for _, reason in outcome.finished] == [FinishReason.STOP]


def test_a_request_longer_than_the_context_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler()
    with pytest.raises(RequestError, match=r"120 prompt tokens plus max_tokens 10.*128"):
        scheduler.add(make_request("a", 120, 10))


def test_a_request_larger_than_the_whole_cache_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    with pytest.raises(RequestError, match=r"20 tokens need 5 KV blocks, this engine has 4"):
        scheduler.add(make_request("a", 10, 10))


def test_the_admission_limit_counts_those_for_whom_there_is_no_row() -> None:
    scheduler = make_scheduler(max_queue=1, max_num_seqs=2)
    for name in ("a", "b", "waits"):
        scheduler.add(make_request(name, 3, 1))
    with pytest.raises(QueueFullError, match="3 requests wait, max_queue is 1"):
        scheduler.add(make_request("refused", 3, 1))


def test_rows_that_all_make_room_for_others_do_not_leave_the_ranks_idle() -> None:
    """With a budget of one token, the row whose turn it is may be the one that is preempted."""
    scheduler = make_scheduler(num_blocks=12, max_num_seqs=4, max_num_batched_tokens=64)
    for name in "abcd":
        scheduler.add(make_request(name, 9, 30))
    for _ in range(3):
        step = scheduler.schedule()
        assert step is not None
        scheduler.commit_lengths(step)
    narrow = Caps(max_num_seqs=4, max_num_batched_tokens=1)
    scheduler.set_hot(caps=narrow, chooser=scheduler.packer.chooser, order=scheduler.waiting.order)
    while not scheduler.is_idle:
        step = scheduler.schedule()
        assert step is not None, "work is left and nothing runs"
        scheduler.commit_lengths(step)
        scheduler.check_integrity()
    assert scheduler.counts.preemptions


def test_a_tight_step_time_cuts_prefill_chunks_but_never_to_nothing() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=32)
    for tokens in (1, 8, 16, 32):
        scheduler.packer.pace.observe(BASE, tokens, 1e-3 + tokens * 1e-3)
    tight = Caps(max_num_seqs=8, max_num_batched_tokens=32, max_step_ms=17.0)
    scheduler.set_hot(caps=tight, chooser=scheduler.packer.chooser, order=scheduler.waiting.order)
    scheduler.add(make_request("a", 60, 1))
    step = scheduler.schedule()
    assert step is not None
    assert 14 <= step.shape.num_tokens <= 17
    scheduler.commit_lengths(step)
    tight = Caps(max_num_seqs=8, max_num_batched_tokens=32, max_step_ms=0.1)
    scheduler.set_hot(caps=tight, chooser=scheduler.packer.chooser, order=scheduler.waiting.order)
    step = scheduler.schedule()
    assert step is not None
    assert step.shape.num_tokens == scheduler.running.block_size


def test_released_sequences_keep_their_tokens_and_finish_in_another_scheduler() -> None:
    old = make_scheduler()
    for name in ("a", "b"):
        old.add(make_request(name, 5, 6))
    for _ in range(3):
        step = old.schedule()
        assert step is not None
        old.commit(step, np.full(int(step.is_sampled.sum()), 9, np.int32))
    new = make_scheduler(num_blocks=32)
    new.adopt(old.release())
    old.check_integrity()
    assert run_to_end(new) == {"a": 3, "b": 3}


def test_an_empty_queue_blocks_nobody_though_the_last_step_left_someone_waiting() -> None:
    scheduler = make_scheduler(num_blocks=6, block_size=4, max_queue=0)
    scheduler.add(make_request("runs", 16, 4))
    first = scheduler.schedule()
    assert first is not None
    scheduler.add(make_request("waits", 12, 4))
    scheduler.commit_lengths(first)
    second = scheduler.schedule()
    assert second is not None
    for name in ("runs", "waits"):
        scheduler.abort(name)
    scheduler.commit_lengths(second)
    assert scheduler.is_idle
    scheduler.add(make_request("comes", 8, 4))

"""The load that routing balances: what a replica was handed and has not ended, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from engine.executors.protocol import ExecutorInfo
from engine.executors.simulated import SimulatedExecutor
from engine.fleet import Fleet
from engine.replica.handover import Handover
from engine.replica.replica import Replica
from engine.replica.stream import OnOutput, RequestStream
from engine.scheduler.table import Sequence
from engine.spec.config import EngineConfig
from engine.spec.errors import QueueFullError, RankError
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepResult
from tests.engine.paced import (
    Collector,
    ConstantTimer,
)
from tests.waiting import wait_until

CAPS = Caps(max_num_seqs=8, max_num_batched_tokens=64)


@contextmanager
def replicas(
    config: EngineConfig, plan: ParallelPlan | None = None, caps: Caps = CAPS
) -> Iterator[list[Replica]]:
    """The started replicas of a plan, stopped at the end."""
    model = ModelConfig.from_dir(config.model_dir)
    fleet = Fleet(config, model, threading.Event(), timer_factory=ConstantTimer)
    settings = Settings(plan=plan or config.settings.plan, threshold_tokens=0, caps=caps)
    running = fleet.launch(settings)
    with ExitStack() as ends:
        for replica in running:
            ends.callback(replica.stop)
        yield running


@pytest.fixture
def replica(config: EngineConfig) -> Iterator[Replica]:
    with replicas(config) as (only,):
        yield only


class Letters:
    """Every token is an x."""

    def push(self, token_id: int) -> str:
        return "x"

    def flush(self) -> str:
        return ""


def hand(
    replica: Replica,
    name: str,
    *,
    tokens: int = 400,
    within_s: float | None = None,
    stop: tuple[str, ...] = (),
    on_output: OnOutput | None = None,
) -> Collector:
    """Hand a request of 20 prompt tokens to a replica."""
    collector = Collector()
    request = Request(
        request_id=name,
        prompt_ids=(1,) * 20,
        sampling=SamplingParams(max_tokens=tokens, stop=stop),
        deadline_s=None if within_s is None else time.monotonic() + within_s,
    )
    replica.submit(RequestStream(request, on_output or collector, Letters()))
    return collector


def is_free(replica: Replica) -> bool:
    return replica.load_tokens == 0 and replica.num_waiting == 0


def test_a_request_counts_with_all_it_may_grow_to_from_the_moment_it_is_handed_over(
    replica: Replica,
) -> None:
    long, short = hand(replica, "long"), hand(replica, "short", tokens=3)
    assert replica.load_tokens in (420 + 23, 420)  # the short one may have ended by now
    short.wait()
    assert replica.load_tokens == 420
    replica.abort("long", FinishReason.ABORT)
    long.wait()
    assert is_free(replica)


def test_a_caller_who_hears_of_the_end_finds_the_load_gone(replica: Replica) -> None:
    seen: list[int] = []

    def look(output: RequestOutput) -> None:
        if output.is_finished:
            seen.append(replica.load_tokens)

    for number in range(3):
        hand(replica, str(number), tokens=5, on_output=look)
        wait_until(lambda number=number: len(seen) == number + 1)
    assert seen == [0, 0, 0]


def test_stop_strings_deadlines_and_callers_that_fail_leave_no_load(replica: Replica) -> None:
    def fail(output: RequestOutput) -> None:
        raise ValueError("a caller's fault")

    hand(replica, "fails", on_output=fail)
    stopped = hand(replica, "stops", stop=("xxx",))
    late = hand(replica, "late", within_s=0.05)
    over = hand(replica, "over before it arrives", within_s=-1.0)
    assert stopped.wait().reason is FinishReason.STOP
    assert late.wait().reason is FinishReason.DEADLINE
    assert over.wait().reason is FinishReason.DEADLINE
    wait_until(lambda: is_free(replica))
    replica.call(replica.scheduler.check_integrity)


def test_a_refused_request_is_no_load(config: EngineConfig) -> None:
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64, max_queue=2)
    with replicas(config, caps=caps) as (replica,):
        taken = [hand(replica, str(number)) for number in range(3)]
        with pytest.raises(QueueFullError, match="max_queue is 2"):
            hand(replica, "one too many")
        assert replica.load_tokens == 3 * 420
        for number in range(3):
            replica.abort(str(number), FinishReason.ABORT)
        for collector in taken:
            collector.wait()
        assert is_free(replica)


class Failing(SimulatedExecutor):
    """Ranks that die in their fifth step, and start again once they may, or cannot."""

    may_start: threading.Event
    num_starts = 0
    num_collected = 0
    most_starts = 2

    def start(self) -> ExecutorInfo:
        Failing.num_starts += 1
        if Failing.num_starts > 1:
            assert Failing.may_start.wait(20)
        if Failing.num_starts > Failing.most_starts:
            raise RankError("no memory")
        return super().start()

    def collect(self, timeout_s: float | None = None) -> StepResult:
        Failing.num_collected += 1
        if Failing.num_collected == 5:
            raise RankError("rank 0 died")
        return super().collect(timeout_s)


@pytest.fixture
def failing(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    Failing.num_starts = Failing.num_collected = 0
    Failing.may_start = threading.Event()
    monkeypatch.setattr("engine.executors.simulated.SimulatedExecutor", Failing)
    with replicas(config) as (replica,):
        yield replica


def test_while_ranks_are_replaced_a_replica_keeps_its_load_and_then_ends_it(
    failing: Replica,
) -> None:
    collectors = [hand(failing, str(number), tokens=30) for number in range(3)]
    wait_until(lambda: Failing.num_starts == 2)
    assert failing.load_tokens == 3 * 50
    assert failing.num_waiting == 3
    Failing.may_start.set()
    for collector in collectors:
        assert len(collector.wait().token_ids) == 30
    assert is_free(failing)


def test_a_replica_that_gives_up_has_no_load(
    failing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "most_starts", 1)
    Failing.may_start.set()
    collectors = [hand(failing, str(number)) for number in range(3)]
    for collector in collectors:
        assert collector.wait().reason is FinishReason.ERROR
    wait_until(lambda: is_free(failing))
    assert hand(failing, "afterwards").wait().reason is FinishReason.ERROR
    wait_until(lambda: is_free(failing))


def test_an_error_that_nobody_expects_in_a_restart_leaves_no_load(
    failing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(executor: Failing) -> ExecutorInfo:
        raise MemoryError("the device is full")

    monkeypatch.setattr(Failing, "start", start)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # the thread tells of its fault
    collectors = [hand(failing, str(number)) for number in range(3)]
    for collector in collectors:
        assert collector.wait().reason is FinishReason.ERROR
    wait_until(lambda: is_free(failing))


def test_a_request_that_comes_while_failed_ranks_are_ended_is_ended_too(
    failing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Collector] = []
    close = Failing.close

    def hand_one_more(executor: Failing) -> None:
        # The loop has given up and ended all it knew of; its thread still lives.
        if failing.failure is not None and not late:
            late.append(hand(failing, "late"))
        close(executor)

    def fail() -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(Failing, "close", hand_one_more)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    failing._mailbox.post(fail)
    wait_until(lambda: bool(late))
    assert late[0].wait().reason is FinishReason.ERROR
    wait_until(lambda: is_free(failing))


def test_what_comes_after_the_last_command_of_a_loop_is_refused_or_handed_back(
    failing: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals: list[str] = []
    left: list[RequestStream] = []

    def fail() -> None:
        raise ZeroDivisionError("a bug of ours")

    def hand_more(_: object) -> None:
        # The loop's thread still lives, and will not look at its commands again.
        with pytest.raises(RankError) as refusal:
            hand(failing, "late")
        stream = RequestStream(Request(request_id="left", prompt_ids=(1,)), Collector(), None)
        sequence = Sequence.of(stream.request)
        left.extend(failing.adopt(Handover(sequences=[sequence], streams={"left": stream})))
        refusals.append(str(refusal.value))

    monkeypatch.setattr(threading, "excepthook", hand_more)
    failing._mailbox.post(fail)
    wait_until(lambda: bool(refusals))
    assert "the step loop failed: ZeroDivisionError('a bug of ours')" in refusals[0]
    assert [stream.request.request_id for stream in left] == ["left"]
    assert failing.is_empty
    assert is_free(failing)
    with pytest.raises(RankError, match="has ended"):
        failing.call(lambda: None)


def test_whoever_leaves_while_ranks_are_replaced_is_answered_at_once(failing: Replica) -> None:
    collectors = [hand(failing, str(number), tokens=30) for number in range(3)]
    wait_until(lambda: Failing.num_starts == 2)
    late = hand(failing, "late", within_s=0.05)
    given_up = hand(failing, "given up")
    for name in ("1", "given up"):
        failing.abort(name, FinishReason.ABORT)
    assert collectors[1].wait().reason is FinishReason.ABORT
    assert given_up.wait().reason is FinishReason.ABORT
    assert late.wait().reason is FinishReason.DEADLINE
    assert Failing.num_starts == 2
    assert failing.is_recovering
    assert failing.load_tokens == 2 * 50
    failing.call(failing.scheduler.check_integrity)
    new = hand(failing, "new", tokens=30)
    Failing.may_start.set()
    for collector in (collectors[0], collectors[2], new):
        assert len(collector.wait().token_ids) == 30
    assert is_free(failing)
    failing.call(failing.scheduler.check_integrity)


def test_a_reshape_takes_the_load_along(config: EngineConfig) -> None:
    with replicas(config) as (old,):
        collectors = [hand(old, str(number), tokens=60) for number in range(5)]
        wait_until(lambda: all(collector.outputs for collector in collectors[:3]))
        left = old.stop()
        assert is_free(old)
    with replicas(config, ParallelPlan(dp=2)) as new:
        for replica, share in zip(new, left.deal(2), strict=True):
            replica.adopt(share)
        assert [replica.load_tokens for replica in new] == [3 * 80, 2 * 80]
        for collector in collectors:
            assert len(collector.wait().token_ids) == 60
        assert all(map(is_free, new))

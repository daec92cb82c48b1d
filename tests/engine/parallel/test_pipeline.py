"""Sampled tokens find their way from the last stage to the first, however late they are read."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.parallel.pipeline import TokenFeedback
from engine.spec.plan import ParallelPlan, parse_plan
from tests.engine.checkpoints import family_config, write_checkpoint
from tests.engine.plan_worlds import World, coin
from tests.engine.thread_ranks import ThreadCommunicator, ThreadWorld

NUM_SLOTS = 5


def ends(num_stages: int) -> tuple[TokenFeedback, torch.Tensor, TokenFeedback]:
    """The first stage's end with its table of last tokens, and the last stage's end."""
    world = ThreadWorld(ParallelPlan(pp=num_stages), timeout_s=1.0)
    tokens = torch.zeros(NUM_SLOTS, dtype=torch.int64)
    first = TokenFeedback(tokens, world.groups(0))
    last = TokenFeedback(torch.zeros_like(tokens), world.groups(num_stages - 1))
    return first, tokens, last


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_tokens_come_into_their_slots_up_to_the_step_asked_for() -> None:
    first, tokens, last = ends(3)
    for number, slots, sampled in ((0, ids(1, 4), ids(11, 14)), (3, ids(4, 0), ids(24, 20))):
        first.expect(number, slots)
        last.send(sampled)
    first.receive_until(-1)
    assert tokens.tolist() == [0, 0, 0, 0, 0]
    first.receive_until(2)
    assert tokens.tolist() == [0, 11, 0, 0, 14]
    first.receive_until(3)
    assert tokens.tolist() == [20, 11, 0, 0, 24]


def test_the_last_stage_goes_on_while_nobody_reads() -> None:
    first, tokens, last = ends(2)
    for number in range(50):
        first.expect(number, ids(number % NUM_SLOTS))
        last.send(ids(number))
    first.receive_until(49)
    assert tokens.tolist() == [45, 46, 47, 48, 49]


@pytest.mark.parametrize("text", ["pp=2", "pp=2,sp=2,shift"])
def test_both_ends_of_two_stages_queue_the_same_messages_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """NCCL has one queue for a pair of ranks, so in another order they would wait for ever."""
    queues: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    send, receive = ThreadCommunicator.send, ThreadCommunicator.recv

    def noted_send(self: ThreadCommunicator, x: torch.Tensor, dst: int) -> None:
        queues[id(self._group), self.rank].append((self.rank, dst))
        send(self, x, dst)

    def noted_receive(self: ThreadCommunicator, like: torch.Tensor, src: int) -> torch.Tensor:
        queues[id(self._group), self.rank].append((src, self.rank))
        return receive(self, like, src)

    monkeypatch.setattr(ThreadCommunicator, "send", noted_send)
    monkeypatch.setattr(ThreadCommunicator, "recv", noted_receive)
    # As on CUDA; the communicators of threads keep their receiver waiting instead of a stream.
    at_once = partial(TokenFeedback, posts_at_once=True)
    monkeypatch.setattr("engine.rank.runner.TokenFeedback", at_once)
    plan = parse_plan(text).plan
    write_checkpoint(tmp_path, family_config("llama"))
    World(tmp_path).run(plan, mode=coin(plan), num_ahead=2)
    pairs = {group for group, _ in queues}
    assert len(pairs) == plan.stage_size
    for group in pairs:
        assert queues[group, 0] == queues[group, 1]
        assert {(0, 1), (1, 0)} == set(queues[group, 0])

"""Sampled tokens find their way from the last stage to the first, however late they are read."""

from __future__ import annotations

import torch

from engine.parallel.pipeline import TokenFeedback
from engine.spec.plan import ParallelPlan
from tests.engine.thread_ranks import ThreadWorld

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

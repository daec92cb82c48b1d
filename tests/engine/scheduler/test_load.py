"""The load book through a scheduler: in at the door, out at the end, kept by who waits between."""

from __future__ import annotations

import numpy as np
import pytest

from engine.modes.chooser import ModeChooser
from engine.scheduler.load import LoadBook
from engine.scheduler.scheduler import Scheduler
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, SamplingParams
from engine.spec.settings import Caps


def make_scheduler(book: LoadBook, caps: Caps | None = None) -> Scheduler:
    caps = caps or Caps(max_num_seqs=8, max_num_batched_tokens=64)
    return Scheduler(
        caps=caps,
        envelope=caps,
        chooser=ModeChooser(plan=ParallelPlan(), threshold_tokens=0),
        num_blocks=100,
        block_size=4,
        max_model_len=128,
        load=book,
    )


def make_request(name: str, *, prompt: int = 10, tokens: int = 5) -> Request:
    sampling = SamplingParams(max_tokens=tokens)
    return Request(request_id=name, prompt_ids=(1,) * prompt, sampling=sampling)


def run_to_end(scheduler: Scheduler) -> None:
    while (step := scheduler.schedule()) is not None:
        scheduler.commit(step, np.full(step.num_sampled, 7, np.int32))


def test_a_request_is_in_the_book_before_it_arrives_and_counts_once() -> None:
    book = LoadBook()
    scheduler, request = make_scheduler(book), make_request("a")
    scheduler.admit(request)
    assert (book.tokens, book.num_coming, scheduler.num_waiting) == (15, 1, 0)
    scheduler.add(request, is_in_book=True)
    assert (book.tokens, book.num_coming, scheduler.num_waiting) == (15, 0, 1)
    run_to_end(scheduler)
    assert (book.tokens, book.num_coming) == (0, 0)


def test_those_on_their_way_count_for_the_limit_of_the_queue() -> None:
    book = LoadBook()
    caps = Caps(max_num_seqs=1, max_num_batched_tokens=64, max_queue=2)
    scheduler = make_scheduler(book, caps)
    for name in "abc":
        scheduler.admit(make_request(name))
    with pytest.raises(QueueFullError, match="3 requests wait, max_queue is 2"):
        scheduler.admit(make_request("late"))
    scheduler.admit(make_request("held"), num_let_in=0)
    assert (book.tokens, book.num_coming) == (4 * 15, 4)


def test_a_request_that_could_never_run_is_not_entered() -> None:
    book = LoadBook()
    with pytest.raises(RequestError, match=r"120 prompt tokens plus max_tokens 9 .* of 128; "):
        make_scheduler(book).add(make_request("a", prompt=120, tokens=9))
    assert (book.tokens, book.num_coming) == (0, 0)


def test_sequences_stay_in_the_book_from_one_scheduler_of_a_replica_to_the_next() -> None:
    book = LoadBook()
    old, new = make_scheduler(book), make_scheduler(book)
    for name in "abc":
        old.add(make_request(name))
    assert old.schedule() is not None
    assert old.abort("c") is not None
    sequences = old.release()
    assert (book.tokens, book.num_coming) == (2 * 15, 2)
    new.adopt(sequences, is_in_book=True)
    assert (book.tokens, book.num_coming) == (2 * 15, 0)
    run_to_end(new)
    assert (book.tokens, book.num_coming) == (0, 0)


def test_one_replica_takes_the_sequences_of_another_into_its_own_book() -> None:
    theirs, ours = LoadBook(), LoadBook()
    old, new = make_scheduler(theirs), make_scheduler(ours)
    old.add(make_request("a"))
    new.adopt(old.release())
    assert (ours.tokens, ours.num_coming) == (15, 0)
    run_to_end(new)
    assert (ours.tokens, ours.num_coming) == (0, 0)

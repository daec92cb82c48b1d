"""Penalties, biases and bans on logits, slot by slot, as the sampler applies them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from engine.sampling.edits import LogitEdits, TokenCounts
from engine.spec.steps import SlotSampling
from engine.spec.token_counts import count_bytes
from tests.engine.sampling.sampler_world import (
    NUM_SLOTS,
    VOCAB,
    Ranks,
    Sequence,
    edited_by_hand,
    logits_of,
    sampled_by_hand,
    sequence_lists,
    tokens,
)


@settings(max_examples=80, deadline=None)
@given(sequences=sequence_lists, seed=st.integers(0, 10_000))
def test_edited_logits_are_those_of_the_definition(sequences: list[Sequence], seed: int) -> None:
    edits = LogitEdits(vocab_size=VOCAB, num_slots=NUM_SLOTS, device=torch.device("cpu"))
    for sequence in sequences:
        edits.start(sequence.start())
    slots = np.array([sequence.slot for sequence in sequences], dtype=np.int32)
    positions = np.array([len(sequence.output) for sequence in sequences], dtype=np.int32)
    rows = np.flatnonzero(edits.are_edited(slots, positions))
    logits = logits_of(len(sequences), seed)
    found = logits.clone()
    if len(rows):
        found[rows] = edits.edited(logits[rows], slots=slots[rows], positions=positions[rows])
    for row, sequence in enumerate(sequences):
        np.testing.assert_allclose(found[row], edited_by_hand(logits[row].numpy(), sequence))


def test_a_ban_is_not_applied_where_it_would_leave_nothing_but_nan() -> None:
    logits = torch.full((1, VOCAB), math.nan)
    logits[0, 6] = 1.0
    sampling = SlotSampling(banned_ids=(6,), min_tokens=3, temperature=1.0)
    sequence = Sequence(slot=0, sampling=sampling, prompt=[0])
    ranks = Ranks(None)
    ranks.start(sequence)
    assert ranks.sample(logits, [sequence]).ids.tolist() == [6]


@settings(max_examples=50, deadline=None)
@given(
    penalty=st.sampled_from([0.3, 1.2, 5.0]),
    prompt=st.lists(tokens, min_size=1, max_size=20),
    output=st.lists(tokens, max_size=20),
    seed=st.integers(0, 1000),
)
def test_the_repetition_penalty_is_that_of_transformers(
    penalty: float, prompt: list[int], output: list[int], seed: int
) -> None:
    edits = LogitEdits(vocab_size=VOCAB, num_slots=2, device=torch.device("cpu"))
    sequence = Sequence(
        slot=1, sampling=SlotSampling(repetition_penalty=penalty), prompt=prompt, output=output
    )
    edits.start(sequence.start())
    logits = logits_of(1, seed)
    row = np.array([1], dtype=np.int32)
    mine = edits.edited(logits, slots=row, positions=row * len(output))
    known = torch.tensor([prompt + output])
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(known, logits.clone())
    torch.testing.assert_close(mine, theirs)


PENALIZED = SlotSampling(repetition_penalty=1.4, frequency_penalty=0.9, presence_penalty=0.3)


@pytest.mark.parametrize("num_computed", [0, 2, 5])
def test_a_slot_started_again_after_preemption_goes_on_counting_where_it_was(
    num_computed: int,
) -> None:
    undisturbed = Sequence(slot=2, sampling=PENALIZED, prompt=[1, 2, 3])
    preempted = Sequence(slot=2, sampling=PENALIZED, prompt=[1, 2, 3])
    first, second = Ranks(None), Ranks(None)
    first.start(undisturbed)
    second.start(preempted)
    for step in range(12):
        if step == 6:
            other = Sequence(slot=2, sampling=PENALIZED, prompt=[9] * 5)
            second.start(other)
            second.sample(logits_of(1, 99), [other])
            preempted.slot = 7
            second.start(preempted, num_computed=num_computed)
        logits = logits_of(1, step // 4)
        for ranks, sequence in ((first, undisturbed), (second, preempted)):
            sequence.output += ranks.sample(logits, [sequence]).ids.tolist()
    assert preempted.output == undisturbed.output
    assert len(set(undisturbed.output)) > 3  # the penalties did something


def test_a_slot_forgets_everything_the_sequence_before_it_brought() -> None:
    loaded = msgspec.structs.replace(
        PENALIZED, temperature=3.0, logit_bias={4: 100.0}, banned_ids=(5,), min_tokens=9, seed=8
    )
    ranks = Ranks(None)
    old = Sequence(slot=0, sampling=loaded, prompt=[0, 1])
    ranks.start(old)
    old.output += ranks.sample(logits_of(1, 0), [old]).ids.tolist()
    plain = Sequence(slot=0, sampling=SlotSampling(), prompt=[3])
    ranks.start(plain)
    logits = logits_of(1, 1)
    assert ranks.sample(logits, [plain]).ids.tolist() == logits.argmax(-1).tolist()


def test_more_penalized_slots_than_the_first_pool_holds_keep_their_own_counts() -> None:
    ranks = Ranks(None)
    sequences = [
        Sequence(slot=slot, sampling=PENALIZED, prompt=[slot]) for slot in range(NUM_SLOTS)
    ]
    ranks.start(*sequences[:3])
    for step in range(3):
        some = sequences[: 3 + 4 * step]
        ranks.start(*some[3 + 4 * (step - 1) :] if step else [])
        logits = logits_of(len(some), 5)
        ids = ranks.sample(logits, some).ids.tolist()
        for row, sequence in enumerate(some):
            assert ids[row] == sampled_by_hand(logits[row].numpy(), sequence)
            sequence.output.append(ids[row])


def test_banned_tokens_do_not_come_before_min_tokens_and_may_come_then() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 6] = 50.0
    sampling = SlotSampling(banned_ids=(6,), min_tokens=3, temperature=1.0)
    sequence = Sequence(slot=0, sampling=sampling, prompt=[0])
    ranks = Ranks(None)
    ranks.start(sequence)
    for _ in range(5):
        sequence.output += ranks.sample(logits, [sequence]).ids.tolist()
    assert 6 not in sequence.output[:3]
    assert sequence.output[3:] == [6, 6]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_that_would_leave_no_token_at_all_is_not_applied(temperature: float) -> None:
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, 6], logits[0, 8] = 1.0, -20.0
    for banned in ((6, 8), tuple(range(VOCAB)), (6, VOCAB + 5)):
        sampling = SlotSampling(banned_ids=banned, min_tokens=3, temperature=temperature)
        sequence = Sequence(slot=0, sampling=sampling, prompt=[0])
        ranks = Ranks(None)
        ranks.start(sequence)
        answer = 8 if VOCAB + 5 in banned else 6
        assert ranks.sample(logits, [sequence]).ids.tolist() == [answer]


def test_a_bias_or_ban_outside_the_vocabulary_changes_nothing() -> None:
    sampling = SlotSampling(logit_bias={VOCAB: 100.0, -1: 100.0}, banned_ids=(VOCAB,), min_tokens=2)
    sequence = Sequence(slot=0, sampling=sampling, prompt=[0])
    ranks = Ranks(None)
    ranks.start(sequence)
    logits = logits_of(1, 3)
    assert ranks.sample(logits, [sequence]).ids.tolist() == logits.argmax(-1).tolist()


def ids_of(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


@pytest.mark.parametrize("num_slots", [1, 4, 6, 33])
def test_counts_of_all_slots_take_no_more_memory_than_was_reckoned_with(num_slots: int) -> None:
    counts = TokenCounts(vocab_size=VOCAB, num_slots=num_slots, device=torch.device("cpu"))
    grown = 0
    for slot in range(num_slots):
        before = sum(table.nbytes for table in counts.tables)
        counts.fill(slot, prompt=ids_of(1), output=ids_of(slot % VOCAB, slot % VOCAB))
        after = sum(table.nbytes for table in counts.tables)
        grown = max(grown, before + after if after != before else after)
    assert len(counts.tables[0]) == num_slots
    assert grown == count_bytes(VOCAB, num_slots)
    tables = counts.of_slots(np.arange(num_slots, dtype=np.int32))
    assert tables[0].argmax(dim=1).tolist() == [slot % VOCAB for slot in range(num_slots)]
    assert tables[1].sum(dim=1).tolist() == [1] * num_slots

"""The sampler of a stage: the full set of sampling values, alike on any number of ranks."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.parallel.mesh import solo_groups
from engine.sampling.sampler import SampledTokens, Sampler
from engine.spec.plan import ParallelPlan
from engine.spec.steps import NO_TOKEN, SlotSampling, SlotStart
from tests.engine.cuda_checks import syncs_refused
from tests.engine.sampling.sampler_world import (
    NUM_SLOTS,
    PLANS,
    VOCAB,
    Ranks,
    Sequence,
    int32_bytes,
    logits_of,
    sampled_by_hand,
    sequence_lists,
)


@settings(max_examples=80, deadline=None)
@given(
    before=sequence_lists,
    sequences=sequence_lists,
    seed=st.integers(0, 10_000),
    num_steps=st.integers(1, 4),
)
def test_sampled_tokens_are_those_of_the_definition_whatever_the_slots_held_before(
    before: list[Sequence], sequences: list[Sequence], seed: int, num_steps: int
) -> None:
    ranks = Ranks(None)
    ranks.start(*before)
    ranks.sample(logits_of(len(before), seed), before)
    ranks.start(*sequences)
    for step in range(num_steps):
        logits = logits_of(len(sequences), seed + step)
        ids = ranks.sample(logits, sequences).ids.tolist()
        for row, sequence in enumerate(sequences):
            assert ids[row] == sampled_by_hand(logits[row].numpy(), sequence)
            sequence.output.append(ids[row])


@pytest.mark.parametrize("plan", PLANS, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    sequences=sequence_lists,
    seed=st.integers(0, 10_000),
    is_narrow=st.booleans(),
    is_part=st.booleans(),
)
def test_every_number_of_ranks_samples_alike_in_both_ways(
    plan: ParallelPlan, sequences: list[Sequence], seed: int, is_narrow: bool, is_part: bool
) -> None:
    groups = [Ranks(None), Ranks(plan), Ranks(plan, is_parallel=False)]
    for ranks in groups:
        ranks.start(*sequences)
    for step in range(3):
        some = sequences[step % 2 :: 2] if is_part and len(sequences) > 1 else sequences
        # bfloat16 logits are often equal, which must not matter either.
        logits = logits_of(len(some), seed + step)
        logits = logits.bfloat16() if is_narrow else logits.float()
        answer = same_answer(groups, logits, some)
        for sequence, token in zip(some, answer.ids.tolist(), strict=True):
            sequence.output.append(token)
    for ranks in groups:
        ranks.close()


def same_answer(
    groups: list[Ranks], logits: torch.Tensor, sequences: list[Sequence]
) -> SampledTokens:
    """What all of ``groups`` answer, alike to the bit."""
    answers = [ranks.sample(logits, sequences) for ranks in groups]
    for answer in answers[1:]:
        assert torch.equal(answer.ids, answers[0].ids)
        mine, first = answer.logprobs, answers[0].logprobs
        assert (mine is None) == (first is None)
        if mine is not None and first is not None:
            for name in ("ids", "logprobs", "ranks"):
                found, wanted = getattr(mine, name), getattr(first, name)
                torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    return answers[0]


def spoiled(logits: torch.Tensor, seed: int) -> torch.Tensor:
    """``logits`` with odd numbers in none, a few or all places of a row, of one kind or several."""
    rng = np.random.default_rng(seed)
    kinds = np.array([math.nan, math.inf, -math.inf, 3.3e38, -3.3e38])
    odd = torch.from_numpy(kinds[rng.integers(0, len(kinds), logits.shape)])
    one_kind = torch.from_numpy(kinds[rng.integers(0, len(kinds), (len(logits), 1))])
    odd = torch.where(torch.from_numpy(rng.random((len(logits), 1)) < 0.5), one_kind, odd)
    share = torch.from_numpy(rng.choice([0.0, 0.02, 0.5, 1.0], (len(logits), 1)))
    return torch.where(torch.from_numpy(rng.random(logits.shape)) < share, odd.to(logits), logits)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@settings(max_examples=20, deadline=None)
@given(
    sequences=sequence_lists,
    penalty=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 10_000),
    is_narrow=st.booleans(),
)
def test_rows_of_odd_numbers_are_sampled_alike_too_and_tell_no_nan(
    plan: ParallelPlan, sequences: list[Sequence], penalty: float, seed: int, is_narrow: bool
) -> None:
    for sequence in sequences[::2]:
        sequence.sampling = msgspec.structs.replace(sequence.sampling, repetition_penalty=penalty)
    groups = [Ranks(None), Ranks(plan), Ranks(plan, is_parallel=False)]
    for ranks in groups:
        ranks.start(*sequences)
    logits = spoiled(logits_of(len(sequences), seed).float(), seed)
    answer = same_answer(groups, logits.bfloat16() if is_narrow else logits, sequences)
    has_finite = (logits.bfloat16() if is_narrow else logits).isfinite().any(dim=-1)
    assert torch.equal(answer.ids >= 0, has_finite)
    assert ((answer.ids >= NO_TOKEN) & (answer.ids < VOCAB)).all()
    for row, sequence in enumerate(sequences):
        width = sequence.sampling.num_logprobs + 1
        if width and answer.logprobs is not None:
            assert (answer.logprobs.logprobs[row, :width] <= 0).all()  # NaN is not, nor +inf
            assert 1 <= answer.logprobs.ranks[row] <= VOCAB
    for ranks in groups:
        ranks.close()


@pytest.mark.parametrize("plan", [None, *PLANS], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.001])
def test_odd_rows_follow_the_rule_and_those_without_a_finite_logit_get_no_token(
    plan: ParallelPlan | None, temperature: float
) -> None:
    logits = torch.full((6, VOCAB), math.nan)
    logits[1] = -math.inf
    logits[2, 40] = -3.0
    logits[3, 30] = math.inf
    logits[4] = 0.0
    logits[4, 1] = 1.0
    logits[4, [0, 13, 52]] = math.nan
    logits[5, 30] = math.inf
    logits[5, 2] = -7.0
    sampling = SlotSampling(temperature=temperature)
    sequences = [Sequence(slot=slot, sampling=sampling, prompt=[1]) for slot in range(6)]
    ranks = Ranks(plan)
    ranks.start(*sequences)
    assert ranks.sample(logits, sequences).ids.tolist() == [-1, -1, 40, -1, 1, 30]
    ranks.close()


@settings(max_examples=20, deadline=None)
@given(sequences=sequence_lists, seed=st.integers(0, 10_000), place=st.integers(0, 6))
def test_a_row_is_sampled_alike_alone_and_with_others(
    sequences: list[Sequence], seed: int, place: int
) -> None:
    together, alone = Ranks(None), Ranks(None)
    together.start(*sequences)
    alone.start(*sequences)
    row = place % len(sequences)
    logits = logits_of(len(sequences), seed).float()
    among = together.sample(logits, sequences)
    single = alone.sample(logits[row : row + 1], [sequences[row]])
    assert among.ids[row] == single.ids[0]
    if single.logprobs is not None and among.logprobs is not None:
        found, wanted = among.logprobs.logprobs[row], single.logprobs.logprobs[0]
        assert torch.equal(found[: len(wanted)], wanted)


@pytest.mark.parametrize("plan", [None, *PLANS], ids=str)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_log_probabilities_are_those_of_the_models_own_logits(
    plan: ParallelPlan | None, is_parallel: bool
) -> None:
    wanted = [3, -1, 0, -1, 1]
    sequences = [
        Sequence(
            slot=slot,
            sampling=SlotSampling(
                num_logprobs=number, temperature=2.0, logit_bias={7: 4.0}, seed=slot
            ),
            prompt=[1],
        )
        for slot, number in enumerate(wanted)
    ]
    ranks = Ranks(plan, is_parallel=is_parallel)
    ranks.start(*sequences)
    logits = logits_of(5, 0)
    answer = ranks.sample(logits, sequences)
    ranks.close()
    told = answer.logprobs
    assert told is not None
    assert told.num_best == 3
    own = logits.log_softmax(-1)
    for row in (0, 2, 4):
        order = logits[row].argsort(descending=True)
        ids = told.ids[row].long()
        assert ids.tolist() == [int(answer.ids[row]), *order[:3].tolist()]
        torch.testing.assert_close(told.logprobs[row], own[row, ids].float())
        assert int(order[told.ranks[row] - 1]) == int(answer.ids[row])
    for row in (1, 3):
        assert told.logprobs[row].isnan().all()
        assert told.ranks[row] == 0


def test_equal_logits_rank_by_token_id() -> None:
    sampling = SlotSampling(num_logprobs=4)
    sequence = Sequence(slot=0, sampling=sampling, prompt=[0])
    ranks = Ranks(None)
    ranks.start(sequence)
    logits = torch.zeros(1, VOCAB).bfloat16()
    logits[0, [30, 11, 50]] = 2.0
    logits[0, [4, 9]] = -0.0
    answer = ranks.sample(logits, [sequence])
    assert answer.logprobs is not None
    assert answer.logprobs.ids.tolist() == [[11, 11, 30, 50, 0]]
    assert answer.logprobs.ranks.tolist() == [1]


@pytest.mark.gpu
def test_cuda_samples_what_the_cpu_samples_and_greedy_steps_do_not_wait_for_it() -> None:
    device = torch.device("cuda")
    random = SlotSampling(temperature=0.9, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    sequences = [
        Sequence(slot=slot, sampling=msgspec.structs.replace(random, seed=slot), prompt=[slot])
        for slot in range(6)
    ]
    on_cpu = Ranks(None)
    sampler = Sampler(
        groups=solo_groups(),
        vocab_size=VOCAB,
        num_slots=NUM_SLOTS,
        is_parallel=True,
        device=device,
    )
    slots, logits = np.arange(6, dtype=np.int32), logits_of(6, 0).float()
    for numbers in (logits, spoiled(logits, 1), spoiled(logits, 2)):
        for sequence in sequences:
            sampler.start(sequence.start())
        on_cpu.start(*sequences)
        there = sampler.sample(numbers.to(device), slots=slots, positions=slots * 0)
        assert torch.equal(there.ids.cpu(), on_cpu.sample(numbers, sequences).ids)
    shard = logits.to(device)
    with syncs_refused():
        for slot in range(6):
            sampler.start(SlotStart(slot=slot, prompt_len=1, token_ids=int32_bytes([1])))
        greedy = sampler.sample(shard, slots=slots, positions=slots * 0)
    assert torch.equal(greedy.ids.cpu(), logits.argmax(-1))

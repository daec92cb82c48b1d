"""The sampler of a stage: the full set of sampling values, alike on any number of ranks."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from engine.logit_edits import LogitEdits
from engine.parallel.mesh import solo_groups
from engine.philox import DrawKeys, uniform
from engine.plan import ParallelPlan
from engine.row_sampling import RowSampler
from engine.sampler import SampledTokens, Sampler
from engine.steps import SlotSampling, SlotStart
from tests.engine.thread_ranks import ThreadWorld

VOCAB = 53  # divides by none of the group sizes
NUM_SLOTS = 12
PLANS = [
    ParallelPlan(tp=2),
    ParallelPlan(sp=3),
    ParallelPlan(sp=2, tp=2),
    ParallelPlan(tp=4),
]


def int32_bytes(ids: list[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


@dataclass
class Sequence:
    """What the reference knows of the sequence in a slot."""

    slot: int
    sampling: SlotSampling
    prompt: list[int]
    output: list[int] = field(default_factory=list)

    def start(self, num_computed: int = 0) -> SlotStart:
        known = self.prompt + self.output
        return SlotStart(
            slot=self.slot,
            prompt_len=len(self.prompt),
            token_ids=int32_bytes(known[num_computed:]),
            num_computed=num_computed,
            past_ids=int32_bytes(known[:num_computed]) if self.sampling.has_penalties else b"",
            sampling=self.sampling,
        )


class Ranks:
    """One sampler per rank of a stage, each in its own thread; feeds them their shards."""

    def __init__(self, plan: ParallelPlan | None, *, is_parallel: bool = True) -> None:
        self.size = plan.stage_size if plan else 1
        world = ThreadWorld(plan) if plan else None
        self._groups = [world.groups(rank) if world else solo_groups() for rank in range(self.size)]
        self._samplers = [
            Sampler(
                groups=groups,
                vocab_size=VOCAB,
                num_slots=NUM_SLOTS,
                is_parallel=is_parallel,
                device="cpu",
            )
            for groups in self._groups
        ]
        self._threads = ThreadPoolExecutor(self.size)

    def start(self, *sequences: Sequence, num_computed: int = 0) -> None:
        for sampler in self._samplers:
            for sequence in sequences:
                sampler.start(sequence.start(num_computed))

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> SampledTokens:
        """The answer of the group's first rank; ids are checked to be everyone's."""
        slots = np.array([sequence.slot for sequence in sequences], dtype=np.int32)
        positions = np.array([len(sequence.output) for sequence in sequences], dtype=np.int32)
        width = -(-VOCAB // self.size)
        padded = torch.full((len(logits), width * self.size), -torch.inf, dtype=logits.dtype)
        padded[:, :VOCAB] = logits

        def one(rank: int) -> SampledTokens:
            first = self._groups[rank].shift.rank * width
            shard = padded[:, first : first + width].contiguous()
            return self._samplers[rank].sample(shard, slots=slots, positions=positions)

        answers = list(self._threads.map(one, range(self.size)))
        for answer in answers:
            assert torch.equal(answer.ids, answers[0].ids)
        first = next(r for r in range(self.size) if self._groups[r].shift.rank == 0)
        return answers[first]

    def close(self) -> None:
        self._threads.shutdown()


def edited_by_hand(logits: np.ndarray, sequence: Sequence) -> np.ndarray:
    """The definition, one token at a time."""
    sampling, edited = sequence.sampling, logits.astype(np.float64)
    for token, value in sampling.logit_bias.items():
        edited[token] += value
    for token in set(sequence.prompt) | set(sequence.output):
        penalty = sampling.repetition_penalty
        edited[token] = edited[token] / penalty if edited[token] > 0 else edited[token] * penalty
    for token in set(sequence.output):
        edited[token] -= sampling.frequency_penalty * sequence.output.count(token)
        edited[token] -= sampling.presence_penalty
    if len(sequence.output) < sampling.min_tokens:
        left = edited.copy()
        left[list(sampling.banned_ids)] = -np.inf
        edited = edited if np.isneginf(left).all() else left
    return edited


def sampled_by_hand(logits: np.ndarray, sequence: Sequence) -> int:
    sampling, edited = sequence.sampling, edited_by_hand(logits, sequence)
    if sampling.temperature == 0:
        return int(edited.argmax())
    temperature = float(np.float32(sampling.temperature))
    border = RowSampler(VOCAB).border(
        edited,
        temperature=temperature,
        min_p=float(np.float32(sampling.min_p)),
        top_k=sampling.top_k,
        top_p=float(np.float32(sampling.top_p)),
    )
    keys = DrawKeys(
        seeds=np.array([sampling.seed], dtype=np.uint64),
        choices=np.array([sampling.choice], dtype=np.int32),
        positions=np.array([len(sequence.output)], dtype=np.int32),
    )
    noise = -np.log(-np.log(uniform(keys, num_lanes=VOCAB)[0] + 2.0**-33))
    return int(np.where(edited >= border, edited / temperature + noise, -np.inf).argmax())


tokens = st.integers(0, VOCAB - 1)
samplings = st.builds(
    SlotSampling,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 0, 4, 1000]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.7, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.8]),
    logit_bias=st.dictionaries(tokens, st.sampled_from([-100.0, -1.0, 3.0]), max_size=3),
    min_tokens=st.sampled_from([0, 2]),
    banned_ids=st.lists(tokens, max_size=3, unique=True).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 3),
    num_logprobs=st.sampled_from([-1, -1, -1, 0, 3]),
)
prompts = st.lists(tokens, min_size=1, max_size=6)
outputs = st.lists(st.integers(0, 4), max_size=9)  # of few tokens, so that they recur
sequence_lists = st.lists(st.tuples(samplings, prompts, outputs), min_size=1, max_size=7).map(
    lambda drawn: [
        Sequence(slot=(5 * place + 3) % NUM_SLOTS, sampling=sampling, prompt=prompt, output=output)
        for place, (sampling, prompt, output) in enumerate(drawn)
    ]
)


def logits_of(num_rows: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(
        num_rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
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


@pytest.mark.parametrize("plan", PLANS, ids=str)
@settings(max_examples=25, deadline=None)
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
        assert answer.num_logprobs == answers[0].num_logprobs
        for name in ("logprob_ids", "logprobs", "logprob_ranks"):
            mine, first = getattr(answer, name), getattr(answers[0], name)
            assert (mine is None) == (first is None)
            if first is not None:
                torch.testing.assert_close(mine, first, rtol=0, atol=0, equal_nan=True)
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
@settings(max_examples=40, deadline=None)
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
    assert ((answer.ids >= 0) & (answer.ids < VOCAB)).all()
    for row, sequence in enumerate(sequences):
        width = sequence.sampling.num_logprobs + 1
        if width and answer.logprobs is not None and answer.logprob_ranks is not None:
            assert (answer.logprobs[row, :width] <= 0).all()  # NaN is not, nor +inf
            assert 1 <= answer.logprob_ranks[row] <= VOCAB
    for ranks in groups:
        ranks.close()


@pytest.mark.parametrize("plan", [None, *PLANS], ids=str)
def test_greedy_tokens_of_odd_rows_follow_the_rule(plan: ParallelPlan | None) -> None:
    logits = torch.full((5, VOCAB), math.nan)
    logits[1] = -math.inf
    logits[2, 40] = -3.0
    logits[3, [30, 51]] = math.inf
    logits[4] = 0.0
    logits[4, [0, 13, 52]] = math.nan
    sequences = [Sequence(slot=slot, sampling=SlotSampling(), prompt=[1]) for slot in range(5)]
    ranks = Ranks(plan)
    ranks.start(*sequences)
    assert ranks.sample(logits, sequences).ids.tolist() == [0, 0, 40, 30, 1]
    ranks.close()


def test_a_ban_is_not_applied_where_it_would_leave_nothing_but_nan() -> None:
    logits = torch.full((1, VOCAB), math.nan)
    logits[0, 6] = 1.0
    sampling = SlotSampling(banned_ids=(6,), min_tokens=3, temperature=1.0)
    sequence = Sequence(slot=0, sampling=sampling, prompt=[0])
    ranks = Ranks(None)
    ranks.start(sequence)
    assert ranks.sample(logits, [sequence]).ids.tolist() == [6]


@settings(max_examples=40, deadline=None)
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
        width = single.logprobs.shape[1]
        assert torch.equal(among.logprobs[row, :width], single.logprobs[0])


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
    assert answer.num_logprobs == 3
    assert answer.logprob_ids is not None
    assert answer.logprobs is not None
    assert answer.logprob_ranks is not None
    own = logits.log_softmax(-1)
    for row in (0, 2, 4):
        order = logits[row].argsort(descending=True)
        told = answer.logprob_ids[row].long()
        assert told.tolist() == [int(answer.ids[row]), *order[:3].tolist()]
        torch.testing.assert_close(answer.logprobs[row], own[row, told].float())
        assert int(order[answer.logprob_ranks[row] - 1]) == int(answer.ids[row])
    for row in (1, 3):
        assert answer.logprobs[row].isnan().all()
        assert answer.logprob_ranks[row] == 0


def test_equal_logits_rank_by_token_id() -> None:
    sampling = SlotSampling(num_logprobs=4)
    sequence = Sequence(slot=0, sampling=sampling, prompt=[0])
    ranks = Ranks(None)
    ranks.start(sequence)
    logits = torch.zeros(1, VOCAB).bfloat16()
    logits[0, [30, 11, 50]] = 2.0
    logits[0, [4, 9]] = -0.0
    answer = ranks.sample(logits, [sequence])
    assert answer.logprob_ids is not None
    assert answer.logprob_ids.tolist() == [[11, 11, 30, 50, 0]]
    assert answer.logprob_ranks is not None
    assert answer.logprob_ranks.tolist() == [1]


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
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for slot in range(6):
            sampler.start(SlotStart(slot=slot, prompt_len=1, token_ids=int32_bytes([1])))
        greedy = sampler.sample(shard, slots=slots, positions=slots * 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(greedy.ids.cpu(), logits.argmax(-1))

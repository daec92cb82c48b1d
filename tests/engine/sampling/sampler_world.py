"""The sampler's ranks in threads, and what they should answer by its definition."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st

from engine.parallel.mesh import solo_groups
from engine.sampling.philox import DrawKeys, uniform
from engine.sampling.rules_numpy import RowSampler
from engine.sampling.sampler import SampledTokens, Sampler
from engine.spec.plan import ParallelPlan
from engine.spec.steps import SlotSampling, SlotStart
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

"""Steps drawn by seed for the sampling kernels, and what the rule in numpy answers to them.

Runs where Triton is: on CUDA, or anywhere in a process that turned its interpreter on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
import triton
import triton.language as tl

from engine.parallel.mesh import solo_groups
from engine.sampling.edits import LogitEdits
from engine.sampling.philox import DrawKeys, gumbel_lanes
from engine.sampling.rules import SamplingRows, finite_rows, sample
from engine.sampling.rules_numpy import RowSampler, ordinary_row
from engine.sampling.sampler import Sampler
from engine.sampling.triton_floor import find_borders
from engine.sampling.triton_noise import gumbel_exact, gumbel_near
from engine.sampling.triton_rows import Source, pack_rows
from engine.sampling.triton_sampler import DrawnRows, draw_on_device, launch
from engine.spec.steps import SlotSampling, SlotStart

CPU = torch.device("cpu")
VOCABULARIES = (1, 3, 50, 127, 256, 301)
CHUNKS = (64, 128, 512)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ODD_NUMBERS = (math.nan, math.inf, -math.inf, 6e4, -6e4, 1e-45, 0.0, -0.0)
# On a GPU the last bits of logarithms and exponentials differ from numpy's.
SAME_SCORE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step: its logits [R, V], and slot r's values, prompt and output for each row r."""

    logits: torch.Tensor
    samplings: list[SlotSampling]
    prompts: list[list[int]]
    outputs: list[list[int]]
    chunk: int | None

    @classmethod
    def drawn(cls, seed: int, *, num_rows: int) -> Case:
        rng = np.random.default_rng(seed)
        vocab_size = int(rng.choice(VOCABULARIES))
        logits = rng.standard_normal((num_rows, vocab_size)) * rng.choice([0.1, 1.0, 5.0])
        if rng.random() < 0.3:  # many equal ones
            logits = np.round(logits * 2) / 2
        for row in logits:
            share = rng.choice([0.0, 0.0, 0.1, 1.0])
            odd = rng.choice(ODD_NUMBERS, size=int(rng.integers(1, 4)))
            row[:] = np.where(rng.random(vocab_size) < share, rng.choice(odd, vocab_size), row)
        dtype = DTYPES[int(rng.integers(len(DTYPES)))]
        return cls(
            logits=torch.from_numpy(logits).float().to(dtype),
            samplings=[_sampling(rng, vocab_size) for _ in range(num_rows)],
            prompts=[rng.integers(0, vocab_size, 5).tolist() for _ in range(num_rows)],
            outputs=[rng.integers(0, min(4, vocab_size), 6).tolist() for _ in range(num_rows)],
            chunk=int(rng.choice(CHUNKS)),
        )

    @classmethod
    def limited(cls, seed: int, *, num_rows: int) -> Case:
        """Rows that have several limits at once, and many equal logits."""
        rng = np.random.default_rng(seed)
        size = int(rng.choice([7, 50, 301]))
        logits = np.round(rng.standard_normal((num_rows, size)) * rng.choice([1, 4, 20])) / 4
        samplings = [
            SlotSampling(
                temperature=float(rng.choice([0.3, 1.0, 2.0])),
                top_k=int(rng.choice([0, 3, 20])),
                top_p=float(rng.choice([0.3, 0.8, 0.97])),
                min_p=float(rng.choice([0.0, 0.1, 0.01])),
                logit_bias={1: 0.5} if rng.random() < 0.2 else {},
            )
            for _ in range(num_rows)
        ]
        return cls(
            logits=torch.from_numpy(logits).to(DTYPES[int(rng.integers(len(DTYPES)))]),
            samplings=samplings,
            prompts=[[0]] * num_rows,
            outputs=[[]] * num_rows,
            chunk=int(rng.choice([16, 128])),
        )

    @property
    def values(self) -> SamplingRows:
        def column(name: str, dtype: type) -> np.ndarray:
            return np.array([getattr(sampling, name) for sampling in self.samplings], dtype=dtype)

        return SamplingRows(
            temperatures=column("temperature", np.float32),
            min_ps=column("min_p", np.float32),
            top_ks=column("top_k", np.int32),
            top_ps=column("top_p", np.float32),
            keys=DrawKeys(
                seeds=column("seed", np.uint64),
                choices=column("choice", np.int32),
                positions=self.positions,
            ),
        )

    @property
    def slots(self) -> np.ndarray:
        return np.arange(len(self.samplings), dtype=np.int32)

    @property
    def positions(self) -> np.ndarray:
        return np.array([len(output) for output in self.outputs], dtype=np.int32)

    def starts(self) -> list[SlotStart]:
        return [
            SlotStart(
                slot=slot,
                prompt_len=len(prompt),
                token_ids=np.array(prompt + output, dtype=np.int32).tobytes(),
                sampling=sampling,
            )
            for slot, (sampling, prompt, output) in enumerate(
                zip(self.samplings, self.prompts, self.outputs, strict=True)
            )
        ]

    def edits(self, device: torch.device) -> LogitEdits:
        edits = LogitEdits(
            vocab_size=self.logits.shape[1], num_slots=len(self.samplings), device=device
        )
        for start in self.starts():
            edits.start(start)
        return edits

    def edited(self) -> torch.Tensor:
        """What is sampled, by torch on the CPU."""
        edits, logits = self.edits(CPU), self.logits.to(torch.float32, copy=True)
        rows = np.flatnonzero(edits.are_edited(self.slots, self.positions)).astype(np.int32)
        if len(rows):
            logits[rows] = edits.edited(
                self.logits[rows], slots=rows, positions=self.positions[rows]
            )
        return logits


def _sampling(rng: np.random.Generator, vocab_size: int) -> SlotSampling:
    def one_of(*values: float) -> float:
        return float(rng.choice(values))

    def some_ids() -> list[int]:
        return rng.permutation(vocab_size)[: int(rng.integers(0, 4))].tolist()

    limits = {
        "min_p": one_of(0.0, 0.0, 1e-45, 0.05, 1.0),
        "top_k": int(one_of(0, 0, 1, 7, 60, 5000)),
        "top_p": one_of(1.0, 1.0, 0.9, 0.5, 0.99999, 1e-45, 0.0),
    }
    edits = {
        "repetition_penalty": one_of(1.0, 1.7, 0.5),
        "presence_penalty": one_of(0.0, 1.5, -0.5),
        "frequency_penalty": one_of(0.0, 0.8),
        "logit_bias": {token: one_of(-100.0, -1.0, 3.3) for token in some_ids()},
        "min_tokens": int(one_of(0, 50)),
        "banned_ids": tuple(range(vocab_size)) if rng.random() < 0.1 else tuple(some_ids()),
    }
    return SlotSampling(
        temperature=one_of(0.0, 1e-45, 1e-30, 0.7, 0.7, 0.7, 1.0, 100.0),
        seed=int(rng.integers(0, 2**64, dtype=np.uint64)),
        choice=int(one_of(0, 3)),
        num_logprobs=int(one_of(-1, 0, 2)),
        **(limits if rng.random() < 0.6 else {}),
        **(edits if rng.random() < 0.4 else {}),
    )


def drawn(case: Case, device: torch.device) -> DrawnRows:
    """What the kernels answer on ``device``."""
    edits = case.edits(device)
    return draw_on_device(
        case.logits.to(device),
        case.values,
        edits=edits.of_rows(case.slots, case.positions),
        counts=edits.counts,
        chunk=case.chunk,
    )


def check(case: Case, device: torch.device) -> None:
    """The kernels' ids are the rule's; on a GPU a token of the same score, to 1e-9, will do."""
    edited, values = case.edited(), case.values
    wanted = sample(edited, values)
    found = drawn(case, device)
    ids = found.ids.cpu()
    assert torch.equal(found.is_finite.cpu(), finite_rows(case.logits)), case
    for row in (ids != wanted).nonzero().flatten().tolist():
        assert device.type == "cuda", (row, ids, wanted, case)
        assert shortfall(edited[row].numpy(), values, row, int(ids[row])) < SAME_SCORE, (row, case)


def check_borders(case: Case, device: torch.device) -> None:
    """The kernels keep the tokens that the rule keeps; on a GPU top-p may be off by 1e-9."""
    edits, values, edited = case.edits(device), case.values, case.edited()
    rows = pack_rows(
        values,
        edits.of_rows(case.slots, case.positions),
        vocab_size=edited.shape[1],
    )
    borders = find_borders(
        Source(
            logits=case.logits.to(device),
            words=torch.from_numpy(rows.words).to(device),
            counts=edits.counts.tables[0],
            is_in_prompt=edits.counts.tables[1],
            vocab_size=edited.shape[1],
            kinds=rows.kinds,
            chunk=case.chunk or 1024,
        )
    )
    slack = SAME_SCORE if device.type == "cuda" else 0.0
    for row in values.random_rows.tolist():
        logits = ordinary_row(edited[row].numpy())
        found = logits >= np.float32(borders.least[row].item())
        most, least = (
            logits >= border_of(logits, values, row, by=factor) for factor in (1 + slack, 1 - slack)
        )
        assert (found <= most).all(), (row, case)
        assert (found >= least).all(), (row, case)


def border_of(logits: np.ndarray, values: SamplingRows, row: int, *, by: float) -> float:
    """The rule's border of an ordinary row, its top-p taken ``by`` a factor."""
    return RowSampler(len(logits)).border(
        logits,
        temperature=float(values.temperatures[row]),
        min_p=float(values.min_ps[row]),
        top_k=int(values.top_ks[row]),
        top_p=min(1.0, float(values.top_ps[row]) * by),
    )


def check_close_calls(device: torch.device, *, num_rows: int) -> None:
    """Two tokens of a row have the same score to 1e-7, less than float32 tells apart."""
    rng, size, chunk = np.random.default_rng(5), 48, 16
    case = Case(
        logits=torch.from_numpy(rng.standard_normal((num_rows, size)).astype(np.float32)),
        samplings=[SlotSampling(temperature=1.0, seed=seed) for seed in range(num_rows)],
        prompts=[[0]] * num_rows,
        outputs=[[]] * num_rows,
        chunk=chunk,
    )
    noise = gumbel_lanes(case.values.keys, lanes=np.tile(np.arange(size), (num_rows, 1)))
    for row in range(num_rows):
        first, second = rng.permutation(size)[:2]
        case.logits[row, first] = 9.0 - noise[row, first]
        case.logits[row, second] = float(case.logits[row, first]) + float(
            noise[row, first] - noise[row, second]
        )
    check(case, device)


def shortfall(logits: np.ndarray, values: SamplingRows, row: int, token: int) -> float:
    """By how much the score of ``token`` falls short of the best that is kept, inf if it is out."""
    temperature, logits = float(values.temperatures[row]), ordinary_row(logits)
    if temperature == 0:
        return float(logits.max() - logits[token])
    border = border_of(logits, values, row, by=1 + SAME_SCORE)
    key = values.keys.take(slice(row, row + 1))
    scores = (logits.astype(np.float64) - logits.max()) / temperature
    scores += gumbel_lanes(key, lanes=np.arange(len(logits))[None])[0]
    kept = np.where(logits >= border, scores, -np.inf)
    return float(kept.max() - kept[token])


@triton.jit
def _noise_kernel(words_ptr, near_ptr, exact_ptr, count: tl.constexpr):
    at = tl.arange(0, count)
    words = tl.load(words_ptr + at).to(tl.uint32, bitcast=True)
    tl.store(near_ptr + at, gumbel_near(words))
    tl.store(exact_ptr + at, gumbel_exact(words))


def check_noise(device: torch.device) -> None:
    """Noise of words small, large and around where its formula changes is as near as it says."""
    rng = np.random.default_rng(0)
    powers = 2 ** np.arange(32, dtype=np.int64)
    change = 2**32 - 2**27 + np.arange(-200, 200)
    words = np.concatenate([powers, powers - 1, 2**32 - powers, change])
    words = np.concatenate([words, rng.integers(0, 2**32, 4096 - len(words))]).astype(np.uint32)
    near = torch.empty(4096, device=device)
    exact = torch.empty(4096, dtype=torch.float64, device=device)
    on_device = torch.from_numpy(words.view(np.int32)).to(device)
    _noise_kernel[(1,)](on_device, near, exact, count=4096)
    wanted = -np.log(-np.log((words + 0.5) * 2.0**-32))
    np.testing.assert_allclose(exact.cpu().numpy(), wanted, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(near.cpu().numpy(), wanted, rtol=0, atol=5e-6)


def sampler_of(case: Case, device: torch.device, *, has_kernels: bool = True) -> Sampler:
    """A stage of one rank whose slots hold the sequences of ``case``."""
    sampler = Sampler(
        groups=solo_groups(),
        vocab_size=case.logits.shape[1],
        num_slots=len(case.samplings),
        is_parallel=True,
        device=device,
        has_kernels=has_kernels,
    )
    for start in case.starts():
        sampler.start(start)
    return sampler


def large_case(*, num_rows: int, vocab_size: int, seed: int = 0, has_edits: bool = True) -> Case:
    """Rows of every kind over a vocabulary of a real model, their logits in bfloat16."""
    rng = np.random.default_rng(seed)
    kinds = [
        {},
        {"temperature": 0.8},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 1.2, "top_k": 2000, "top_p": 0.95, "min_p": 0.001},
        {"temperature": 1.2, "min_p": 0.02},
    ]
    if has_edits:
        kinds += [
            {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "num_logprobs": 5},
            {"temperature": 0.7, "logit_bias": {7: 4.0}, "banned_ids": (2, 3), "min_tokens": 99},
        ]
    return Case(
        logits=torch.from_numpy(3 * rng.standard_normal((num_rows, vocab_size))).bfloat16(),
        samplings=[
            SlotSampling(seed=int(rng.integers(2**63)), **kinds[row % len(kinds)])
            for row in range(num_rows)
        ],
        prompts=[rng.integers(0, vocab_size, 50).tolist() for _ in range(num_rows)],
        outputs=[rng.integers(0, vocab_size, 9).tolist() for _ in range(num_rows)],
        chunk=None,
    )


def with_chunk(case: Case, chunk: int) -> Case:
    return replace(case, chunk=chunk)


def unlimited(case: Case) -> Case:
    """The same with every token allowed to come."""
    free = {"min_p": 0.0, "top_k": 0, "top_p": 1.0, "banned_ids": ()}
    return replace(
        case,
        samplings=[msgspec.structs.replace(sampling, **free) for sampling in case.samplings],
    )


def check_sampler(device: torch.device, *, seed: int, num_rows: int, num_steps: int) -> None:
    """A whole sampler with kernels answers some steps as one without, log probabilities too."""
    case = Case.drawn(seed, num_rows=num_rows)
    samplers = [sampler_of(case, CPU, has_kernels=False), sampler_of(case, device)]
    for step in range(num_steps):
        positions = case.positions + step
        wanted, found = (
            sampler.sample(case.logits.to(place), slots=case.slots, positions=positions)
            for sampler, place in zip(samplers, (CPU, device), strict=True)
        )
        assert torch.equal(found.ids.cpu(), wanted.ids), (step, case)
        assert (found.logprobs is None) == (wanted.logprobs is None)
        if wanted.logprobs is not None and found.logprobs is not None:
            for name in ("ids", "logprobs", "ranks"):
                mine, theirs = getattr(found.logprobs, name), getattr(wanted.logprobs, name)
                torch.testing.assert_close(mine.cpu(), theirs, equal_nan=True)


def check_padding(device: torch.device) -> None:
    """Rows that only fill up a size, as graphs have them, change no answer and are answered."""
    case = large_case(num_rows=3, vocab_size=200, has_edits=False)
    rows = pack_rows(case.values, vocab_size=200, num_rows=5)
    padded = torch.cat([case.logits, torch.full((2, 200), math.nan)]).to(device)
    found = launch(padded, rows, torch.from_numpy(rows.words).to(device))
    assert found.ids[:3].tolist() == sample(case.edited(), case.values).tolist()
    assert found.ids[3:].tolist() == [0, 0]
    assert found.is_finite.tolist() == [True, True, True, False, False]


def check_all(device: torch.device, seeds: range) -> None:
    for seed in seeds:
        check(Case.drawn(seed, num_rows=1), device)
        if seed % 3 == 1:
            check_borders(Case.limited(seed, num_rows=1), device)


def compare_interpreted(first: int, end: int) -> None:
    """All checks, and the cases of these seeds; run in a process that turned the interpreter on."""
    with np.errstate(all="ignore"):  # it computes with numpy, whose warnings are of no concern
        check_noise(CPU)
        check_padding(CPU)
        check_close_calls(CPU, num_rows=4)
        check_all(CPU, range(first, end))
        check_sampler(CPU, seed=first, num_rows=2, num_steps=1)

"""Sampling: the right distribution, from the request's own numbers only."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.sampling import rules as sampling
from engine.sampling.philox import (
    DrawKeys,
    fill_gumbel,
    gumbel_at,
    gumbel_lanes,
    gumbel_rows,
    uniform,
)
from engine.sampling.rules import SamplingRows, sample
from engine.sampling.rules_numpy import RowSampler

CPU = torch.device("cpu")


def rows_of(
    count: int,
    *,
    temperature: float = 1.0,
    min_p: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    first_seed: int = 0,
    choice: int = 0,
) -> SamplingRows:
    return SamplingRows(
        temperatures=np.full(count, temperature, dtype=np.float32),
        min_ps=np.full(count, min_p, dtype=np.float32),
        top_ks=np.full(count, top_k, dtype=np.int32),
        top_ps=np.full(count, top_p, dtype=np.float32),
        keys=DrawKeys(
            seeds=np.arange(first_seed, first_seed + count, dtype=np.uint64),
            choices=np.full(count, choice, dtype=np.int32),
            positions=np.zeros(count, dtype=np.int32),
        ),
    )


def joined(parts: list[SamplingRows]) -> SamplingRows:
    def column(name: str) -> np.ndarray:
        return np.concatenate([attrgetter(name)(part) for part in parts])

    return SamplingRows(
        temperatures=column("temperatures"),
        min_ps=column("min_ps"),
        top_ks=column("top_ks"),
        top_ps=column("top_ps"),
        keys=DrawKeys(
            seeds=column("keys.seeds"),
            choices=column("keys.choices"),
            positions=column("keys.positions"),
        ),
    )


def shares_of(logits: torch.Tensor, **limits: float) -> np.ndarray:
    """How often each token comes out of 3,000 seeds: a share's spread is 0.009 at the most."""
    count = 3_000
    ids = sample(logits.expand(count, -1), rows_of(count, **limits))
    return np.bincount(ids.numpy(), minlength=len(logits)) / count


LOGITS = torch.tensor([1.0, 0.5, 3.0, -1.0, 2.0, 2.0, 0.0, -torch.inf])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    want = torch.softmax(LOGITS.double() / temperature, dim=0).numpy()
    assert abs(shares_of(LOGITS, temperature=temperature) - want).max() < 0.028


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 3}, {2, 4, 5}),
        ({"top_k": 2}, {2, 4, 5}),  # a tie at the border stays whole
        ({"top_p": 0.4}, {2}),
        ({"top_p": 0.75}, {2, 4, 5}),
        ({"top_p": 1e-6}, {2}),
        ({"top_k": 4, "top_p": 0.97}, {2, 4, 5, 0}),
        ({"top_k": 100}, {0, 1, 2, 3, 4, 5, 6}),
        ({"min_p": 0.3}, {2, 4, 5}),
        ({"min_p": 0.1, "top_p": 0.95}, {2, 4, 5, 0}),
        ({"min_p": 1.0}, {2}),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest_tokens_in_their_proportions(
    limits: dict[str, float], kept: set[int]
) -> None:
    shares = shares_of(LOGITS, **limits)
    assert set(np.flatnonzero(shares).tolist()) == kept
    want = torch.softmax(LOGITS.double(), dim=0).numpy()
    want[[token for token in range(len(want)) if token not in kept]] = 0
    assert abs(shares - want / want.sum()).max() < 0.028


def kept_by_rule(
    logits: np.ndarray, *, temperature: float, min_p: float, top_k: int, top_p: float
) -> set[int]:
    """The tokens that may come out, one limit after the other, as the definition has it."""
    order = np.argsort(-logits, kind="stable")
    scores = (logits.astype(np.float64) - logits.max()) / temperature
    shares = np.exp(scores)
    kept = [token for token in order if min_p == 0 or shares[token] >= min_p * (1 - 1e-6)]
    kept = kept[: top_k or None]
    total = sum(shares[kept])
    reached, nucleus = 0.0, []
    for token in kept:
        if top_p == 1 or reached < top_p * total or not nucleus:
            nucleus.append(token)
        reached += shares[token]
    return {token for token in range(len(logits)) if logits[token] >= logits[nucleus[-1]]}


def distinct_logits(size: int, seed: int, spread: float) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal(size) * spread
    return logits.astype(np.float32)


LIMITS = {
    "temperature": st.sampled_from([0.3, 1.0, 2.5]),
    "min_p": st.sampled_from([0.0, 0.05, 0.5]),
    "top_k": st.sampled_from([0, 1, 7, 60, 5000]),
    "top_p": st.sampled_from([1.0, 0.95, 0.6, 0.05]),
}


@settings(max_examples=150, deadline=None)
@given(
    size=st.sampled_from([40, 300, 2500]),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.05, 1.0, 6.0]),
    is_coarse=st.booleans(),
    limits=st.fixed_dictionaries(LIMITS),
)
def test_the_limits_keep_what_their_definition_says_on_every_device(
    size: int, seed: int, spread: float, is_coarse: bool, limits: dict[str, Any]
) -> None:
    logits = distinct_logits(size, seed, spread)
    if is_coarse:  # many equal ones
        logits = np.round(logits * 2) / 2
    want = kept_by_rule(logits, **limits)
    border = RowSampler(size).border(logits, **limits)
    assert set(np.flatnonzero(logits >= border).tolist()) == want
    scores = torch.from_numpy(logits).double()[None]
    scores = (scores - scores.max()) / limits["temperature"]
    kept = sampling._limited(scores, rows_of(1, **limits))[0]
    assert set(np.flatnonzero(kept.isfinite().numpy()).tolist()) == want


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), limits=st.fixed_dictionaries(LIMITS))
def test_the_limits_keep_what_transformers_keeps(seed: int, limits: dict[str, Any]) -> None:
    logits = distinct_logits(200, seed, 2.0)
    theirs = TemperatureLogitsWarper(limits["temperature"])(None, torch.from_numpy(logits)[None])
    if limits["min_p"] > 0:
        theirs = MinPLogitsWarper(limits["min_p"])(None, theirs)
    if limits["top_k"] > 0:
        theirs = TopKLogitsWarper(limits["top_k"])(None, theirs)
    if limits["top_p"] < 1:
        theirs = TopPLogitsWarper(limits["top_p"])(None, theirs)
    border = RowSampler(200).border(logits, **limits)
    assert np.array_equal(logits >= border, theirs[0].isfinite().numpy())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 9),
    size=st.sampled_from([30, 601]),
    limits=st.lists(st.fixed_dictionaries(LIMITS), min_size=4, max_size=4),
)
def test_rows_one_by_one_in_numpy_and_all_at_once_in_torch_draw_the_same(
    seed: int, size: int, limits: list[dict[str, Any]]
) -> None:
    logits = torch.from_numpy(distinct_logits(4 * size, seed % 1000, 3.0).reshape(4, size))
    values = joined([rows_of(1, first_seed=seed + i, **limits[i]) for i in range(4)])
    assert torch.equal(sample(logits, values), sampling.draw(logits, values))


def test_a_row_of_equal_logits_and_a_row_with_one_token_left_can_be_sampled() -> None:
    equal = torch.zeros(1, 50)
    lonely = torch.full((1, 50), -torch.inf)
    lonely[0, 17] = -3.0
    limits = {"min_p": 0.2, "top_k": 5, "top_p": 0.5}
    for seed in range(20):
        assert 0 <= int(sample(equal, rows_of(1, first_seed=seed, **limits))) < 50
        assert int(sample(lonely, rows_of(1, first_seed=seed, **limits))) == 17
        assert int(sample(lonely, rows_of(1, first_seed=seed, temperature=1e-30))) == 17


ODD_NUMBERS = [math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, 0.0, -1.0, 2.5]
EXTREMES = {
    "temperature": st.sampled_from([0.0, 1e-45, 1e-30, 0.7, 100.0]),
    "min_p": st.sampled_from([0.0, 1e-45, 0.1, 1.0]),
    "top_k": st.sampled_from([0, 1, 3, 2**31 - 1]),
    "top_p": st.sampled_from([1.0, 0.9, 1e-45]),
}


def possible_tokens(row: list[float]) -> set[int]:
    """What may come of a row by the rule of odd numbers, whatever the limits."""
    for kind in (lambda number: number == math.inf, math.isfinite):
        found = {token for token, number in enumerate(row) if kind(number)}
        if found:
            return found
    return {0}


@settings(max_examples=300, deadline=None)
@given(
    row=st.lists(st.sampled_from(ODD_NUMBERS), min_size=1, max_size=40),
    repeats=st.sampled_from([1, 30]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    limits=st.fixed_dictionaries(EXTREMES),
    seed=st.integers(0, 1000),
)
def test_any_row_of_numbers_whatever_has_a_token_and_the_same_one_on_every_device(
    row: list[float], repeats: int, dtype: torch.dtype, limits: dict[str, Any], seed: int
) -> None:
    logits = torch.tensor([row * repeats], dtype=dtype)
    mine = rows_of(1, first_seed=seed, **limits)
    token = int(sample(logits, mine))
    assert token in possible_tokens(logits[0].tolist())
    is_fine = any(map(math.isfinite, logits[0].tolist()))
    assert sampling.have_finite(logits, torch.tensor([token])).tolist() == [is_fine]
    assert sampling.finite_rows(logits).tolist() == [is_fine]  # what accelerators run
    if limits["temperature"] == 0:
        # What accelerators run.
        assert int(sampling.without_nan(logits).argmax(-1)) == token
    else:
        assert int(sampling.draw(logits, mine)) == token
    others = torch.cat([torch.full_like(logits, math.nan), logits, torch.zeros_like(logits)])
    plain = rows_of(1, temperature=0.6)
    assert int(sample(others, joined([plain, mine, plain]))[1]) == token


def test_of_a_row_with_infinite_logits_each_of_those_tokens_comes_equally_often() -> None:
    logits = torch.tensor([5.0, math.inf, math.nan, math.inf, -math.inf])
    shares = shares_of(logits, temperature=3.0)
    assert abs(shares - [0, 0.5, 0, 0.5, 0]).max() < 0.02


def test_a_row_without_odd_numbers_stays_as_it_is_beside_one_with() -> None:
    logits = torch.tensor([[1.0, -math.inf, 3.4e38], [math.nan, 2.0, math.nan]])
    kept = sampling.ordinary_rows(logits)
    assert kept.tolist() == [logits[0].tolist(), [-math.inf, 2.0, -math.inf]]
    assert logits[1, 0].isnan()  # the rows handed in are not written to


def test_the_choices_of_one_request_draw_their_own_numbers() -> None:
    logits = torch.zeros(40, 1000)
    firsts = [sample(logits, rows_of(40, choice=choice)) for choice in range(3)]
    assert (firsts[0] == firsts[1]).sum() <= 2
    assert (firsts[1] == firsts[2]).sum() <= 2


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.3), (0, 0.9), (0, 0.9999), (40, 0.8), (60, 0.99), (2000, 0.9)]
)
def test_borders_beyond_the_first_ranked_tokens_are_found_too(
    monkeypatch: pytest.MonkeyPatch, top_k: int, top_p: float
) -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(4))
    values = rows_of(6, top_k=top_k, top_p=top_p)
    scores = logits.double() - logits.double().amax(dim=-1, keepdim=True)
    kept = []
    for first_ranked in (50, 3000):
        monkeypatch.setattr(sampling, "FIRST_RANKED", first_ranked)
        kept.append(sampling._limited(scores, values).isfinite())
    assert torch.equal(kept[0], kept[1])
    best = logits.topk(top_k or 3000).indices
    wanted = torch.softmax(logits.double().gather(1, best), -1)
    num_kept = ((wanted.cumsum(-1) - wanted) < top_p).sum(-1)
    assert torch.equal(kept[0].sum(-1), num_kept)


def test_temperature_zero_is_the_largest_logit() -> None:
    logits = torch.randn(5, 40)
    assert torch.equal(sample(logits, rows_of(5, temperature=0.0)), logits.argmax(-1))
    narrow = logits.bfloat16()
    assert torch.equal(sample(narrow, rows_of(5, temperature=0.0)), narrow.argmax(-1))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**64 - 10),
    temperature=st.sampled_from([1e-4, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 5, 200]),
    top_p=st.sampled_from([1.0, 0.5]),
)
def test_a_row_is_answered_alike_alone_and_among_any_others(
    data: st.DataObject, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(seed % 1000))
    mine = rows_of(1, temperature=temperature, top_k=top_k, top_p=top_p, first_seed=seed)
    alone = sample(logits[:1], mine)
    others = [
        rows_of(
            1,
            temperature=data.draw(st.sampled_from([0.0, 0.7, 2.0])),
            top_k=data.draw(st.sampled_from([0, 3])),
            top_p=data.draw(st.sampled_from([1.0, 0.9])),
            first_seed=i,
        )
        for i in range(3)
    ]
    place = data.draw(st.integers(0, 3))
    order = [*range(1, place + 1), 0, *range(place + 1, 4)]
    among = sample(logits[order], joined([*others[:place], mine, *others[place:]]))
    assert among[place] == alone[0]


def test_differences_in_the_last_bits_change_almost_no_outcome() -> None:
    count, generator = 4000, torch.Generator().manual_seed(0)
    logits = torch.randn(count, 500, generator=generator)
    noisy = logits + 1e-5 * torch.randn(count, 500, generator=generator)
    changed = (sample(logits, rows_of(count)) != sample(noisy, rows_of(count))).sum()
    assert changed <= 2


def test_noise_by_lane_is_the_same_as_noise_by_row_and_agrees_with_the_uniform_numbers() -> None:
    keys = DrawKeys(
        seeds=np.array([3, 2**63 + 1], dtype=np.uint64),
        choices=np.array([0, 7], dtype=np.int32),
        positions=np.array([0, 9], dtype=np.int32),
    )
    rows = gumbel_rows(keys, num_lanes=11, device=CPU)
    lanes = torch.tensor([[10, 0, 3], [5, 5, 2]])
    assert torch.equal(gumbel_at(keys, lanes=lanes), rows.gather(1, lanes))
    in_numpy = gumbel_lanes(keys, lanes=lanes.numpy())
    np.testing.assert_allclose(in_numpy, rows.gather(1, lanes).numpy(), rtol=1e-13)
    filled, work = np.empty((3, 4)), np.empty((6, 3), dtype=np.uint64)
    for row in range(2):
        fill_gumbel(filled, keys.take(slice(row, row + 1)), work)
        np.testing.assert_allclose(filled.reshape(-1)[:11], rows[row].numpy(), rtol=1e-13)
        assert np.array_equal(filled.reshape(-1)[lanes[row]], in_numpy[row])
    draws = uniform(keys, num_lanes=11) + 2.0**-33
    torch.testing.assert_close(rows, torch.from_numpy(-np.log(-np.log(draws))))
    assert rows.isfinite().all()


def test_drawing_leaves_the_rows_it_is_given_as_they_are() -> None:
    logits = torch.tensor([[-1.0, -math.inf, 2.5, -math.inf]], dtype=torch.float64)
    kept = logits.clone()
    sampling.draw(logits, rows_of(1, temperature=100.0))
    assert torch.equal(logits, kept)

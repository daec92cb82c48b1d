"""Sampling: the right distribution, from the request's own numbers only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import sampling
from engine.philox import gumbel_at, gumbel_rows, uniform
from engine.sampling import SamplingRows, sample
from engine.steps import StepPlan, StepShape

CPU = torch.device("cpu")


def rows_of(
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    first_seed: int = 0,
) -> SamplingRows:
    return SamplingRows(
        temperatures=np.full(count, temperature, dtype=np.float32),
        top_ks=np.full(count, top_k, dtype=np.int32),
        top_ps=np.full(count, top_p, dtype=np.float32),
        seeds=np.arange(first_seed, first_seed + count, dtype=np.uint64),
        positions=np.zeros(count, dtype=np.int32),
    )


def joined(parts: list[SamplingRows]) -> SamplingRows:
    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return SamplingRows(
        temperatures=column("temperatures"),
        top_ks=column("top_ks"),
        top_ps=column("top_ps"),
        seeds=column("seeds"),
        positions=column("positions"),
    )


def shares_of(logits: torch.Tensor, **limits: float) -> np.ndarray:
    """How often each token comes out of 20,000 seeds."""
    count = 20_000
    ids = sample(logits.expand(count, -1), rows_of(count, **limits))  # type: ignore[arg-type]
    return np.bincount(ids.numpy(), minlength=len(logits)) / count


LOGITS = torch.tensor([1.0, 0.5, 3.0, -1.0, 2.0, 2.0, 0.0, -torch.inf])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    want = torch.softmax(LOGITS.double() / temperature, dim=0).numpy()
    assert abs(shares_of(LOGITS, temperature=temperature) - want).max() < 0.015


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
    ],
)
def test_top_k_and_top_p_keep_the_likeliest_tokens_in_their_proportions(
    limits: dict[str, float], kept: set[int]
) -> None:
    shares = shares_of(LOGITS, **limits)
    assert set(np.flatnonzero(shares).tolist()) == kept
    want = torch.softmax(LOGITS.double(), dim=0).numpy()
    want[[token for token in range(len(want)) if token not in kept]] = 0
    assert abs(shares - want / want.sum()).max() < 0.015


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.3), (0, 0.9), (0, 0.9999), (40, 0.8), (60, 0.99), (2000, 0.9)]
)
def test_borders_beyond_the_first_ranked_tokens_are_found_too(
    monkeypatch: pytest.MonkeyPatch, top_k: int, top_p: float
) -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(4))
    values = rows_of(6, top_k=top_k, top_p=top_p)
    kept = []
    for first_ranked in (50, 3000):
        monkeypatch.setattr(sampling, "FIRST_RANKED", first_ranked)
        kept.append(sampling._limited(logits.double(), values).isfinite())
    assert torch.equal(kept[0], kept[1])
    best = logits.topk(top_k or 3000).indices
    wanted = torch.softmax(logits.double().gather(1, best), -1)
    num_kept = ((wanted.cumsum(-1) - wanted) < top_p).sum(-1)
    assert torch.equal(kept[0].sum(-1), num_kept)


def test_temperature_zero_is_the_largest_logit() -> None:
    logits = torch.randn(5, 40)
    assert torch.equal(sample(logits, rows_of(5, temperature=0.0)), logits.argmax(-1))
    step = StepPlan(step_id=0, shape=StepShape())
    assert torch.equal(sample(logits, SamplingRows.of_step(step)), logits.argmax(-1))


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
    seeds = np.array([3, 2**63 + 1], dtype=np.uint64)
    positions = np.array([0, 9], dtype=np.int32)
    rows = gumbel_rows(seeds=seeds, positions=positions, num_lanes=11, device=CPU)
    lanes = torch.tensor([[10, 0, 3], [5, 5, 2]])
    some = gumbel_at(seeds=seeds, positions=positions, lanes=lanes)
    assert torch.equal(some, rows.gather(1, lanes))
    draws = uniform(seeds=seeds, positions=positions, num_lanes=11) + 2.0**-33
    torch.testing.assert_close(rows, torch.from_numpy(-np.log(-np.log(draws))))
    assert rows.isfinite().all()

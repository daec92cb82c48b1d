"""The sequential test: not fooled by luck, whatever the load does, and quick about an effect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.effect import BETS, effect_of, is_above, is_below, log_evidence
from policies.errors import PolicyInputError

ALPHA = 0.05
shares = st.floats(-1, 1, allow_nan=False)


def test_before_the_first_pair_nothing_is_known() -> None:
    effect = effect_of([], alpha=ALPHA)
    assert (effect.mean, effect.low, effect.high) == (None, -1.0, 1.0)


@given(st.floats(-1, 1), st.floats(0, 1e6))
def test_a_bet_on_symmetric_luck_is_fair(luck: float, bet: float) -> None:
    """The identity that everything rests on."""

    def factor(y: float) -> float:
        return float(2 * np.exp(-np.logaddexp(0.0, -2 * bet * y)))

    assert factor(luck) + factor(-luck) == pytest.approx(2.0)


@given(st.lists(shares, min_size=1, max_size=12), shares)
def test_evidence_is_the_mean_wealth_of_all_bets_at_its_most(
    differences: list[float], bound: float
) -> None:
    wealth = np.ones(len(BETS))
    most = 1.0
    for difference in differences:
        wealth = wealth * 2 / (1 + np.exp(-2 * BETS * (difference - bound)))
        most = max(most, float(wealth.mean()))
    assert log_evidence(differences, bound) == pytest.approx(math.log(most), abs=1e-9)


@settings(max_examples=25)
@given(st.lists(shares, max_size=30))
def test_bounds_are_where_the_evidence_ends_and_only_narrow(differences: list[float]) -> None:
    before = effect_of(differences[:-1], alpha=ALPHA)
    after = effect_of(differences, alpha=ALPHA)
    assert before.low <= after.low + 1e-9
    assert after.high <= before.high + 1e-9
    assert is_above(differences, after.low - 1e-6, alpha=ALPHA) or after.low == -1.0
    assert not is_above(differences, after.low + 1e-6, alpha=ALPHA)


@settings(max_examples=25)
@given(st.lists(shares, max_size=30))
def test_below_is_above_seen_from_the_other_side(differences: list[float]) -> None:
    mirrored = [-d for d in differences]
    assert is_below(differences, -0.02, alpha=ALPHA) == is_above(mirrored, 0.02, alpha=ALPHA)
    effect, other = effect_of(differences, alpha=ALPHA), effect_of(mirrored, alpha=ALPHA)
    assert effect.low == pytest.approx(-other.high)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(wrong: float) -> None:
    with pytest.raises(PolicyInputError, match="finite"):
        log_evidence([0.1, wrong], 0.0)


def _false_alarms(luck: np.ndarray, *, rng: np.random.Generator) -> float:
    """Share of rows, of luck of slices one after the other, in whose pairs something is seen."""
    pairs = luck.reshape(len(luck), -1, 2)
    signs = np.where(rng.random(pairs.shape[:2]) < 0.5, 1.0, -1.0)
    differences = signs * (pairs[:, :, 0] - pairs[:, :, 1])
    return float(np.mean([is_below(row, 0.0, alpha=ALPHA) for row in differences.tolist()]))


def test_luck_that_drifts_and_comes_in_bursts_is_seldom_taken_for_an_effect() -> None:
    """Slices one after the other are anything but independent: a drift, and hours that miss all."""
    rng = np.random.default_rng(7)
    steps = rng.normal(0, 0.05, (400, 120))
    drifting = 0.9 - np.abs(np.cumsum(steps, axis=1)) % 0.9
    bursts = np.repeat(rng.random((400, 40)) < 0.2, 3, axis=1)
    for luck in (drifting, np.where(bursts, 0.1, drifting)):
        assert _false_alarms(luck, rng=rng) <= ALPHA + 2 * math.sqrt(ALPHA / 400)


@pytest.mark.parametrize(("effect", "spread", "pairs"), [(-0.5, 0.05, 8), (-0.1, 0.03, 10)])
def test_an_effect_beyond_the_luck_is_seen_within_pairs(
    effect: float, spread: float, pairs: int
) -> None:
    rng = np.random.default_rng(3)
    seen = [
        is_below((effect + rng.normal(0, spread, pairs)).tolist(), -0.02, alpha=ALPHA)
        for _ in range(100)
    ]
    assert np.mean(seen) >= 0.9

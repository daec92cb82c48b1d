"""Forecasts: chosen on the engine's own history, with margins that hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from policies.errors import PolicyInputError
from policies.forecast import Backtest, backtest, choose, forecast
from policies.forecasters import CONSTANT, FORECASTERS, Forecaster, SeasonalNaive
from policies.load_history import SLOT_S, LoadHistory, LoadSlot

HORIZON = 5
DAY_SLOTS = 1440


def history(rates: np.ndarray) -> LoadHistory:
    return LoadHistory(rates_rps=np.asarray(rates, dtype=np.float64))


def noisy(means: np.ndarray, seed: int = 0) -> LoadHistory:
    """Poisson arrivals at these mean rates."""
    counts = np.random.default_rng(seed).poisson(np.maximum(means, 0.0) * SLOT_S)
    return history(counts / SLOT_S)


def days(count: float) -> np.ndarray:
    at = np.arange(int(count * DAY_SLOTS))
    return 10 + 8 * np.sin(2 * np.pi * at / DAY_SLOTS)


@pytest.mark.parametrize("forecaster", FORECASTERS, ids=lambda f: f.name)
def test_every_forecaster_predicts_rates(forecaster: Forecaster) -> None:
    """The protocol's suite: as many as asked, none below 0, the same for the same history."""
    for known in (noisy(days(1.2)), history(np.zeros(1500)), history(np.full(1500, 3.0))):
        assert forecaster.needs(SLOT_S) <= len(known)
        first, again = (forecaster.predict(known, HORIZON) for _ in range(2))
        assert first.shape == (HORIZON,)
        assert np.isfinite(first).all()
        assert (first >= 0).all()
        assert (first == again).all()
    assert forecaster.predict(history(np.full(1500, 3.0)), HORIZON) == pytest.approx(3.0)


def test_a_daily_load_is_forecast_by_yesterday() -> None:
    chosen, judged = choose(noisy(days(2)), HORIZON, origins=6)
    assert chosen.name == "seasonal_naive"
    assert len(judged.errors) == 6


def test_the_mean_of_three_days_errs_less_than_yesterday_alone() -> None:
    """Of one request a second a minute's count is luck by an eighth; that of three days by less."""
    forecaster, means = SeasonalNaive(), days(4) / 10
    known = noisy(means[: 3 * DAY_SLOTS + 700])
    coming = means[3 * DAY_SLOTS + 700 :][:60]

    def error(days_known: int) -> float:
        some = known.newest(days_known * DAY_SLOTS + 60)
        return float(np.mean(np.abs(forecaster.predict(some, 60) - coming)))

    assert error(3) < 0.8 * error(1)


def test_noise_around_a_level_stays_with_the_constant() -> None:
    chosen, _ = choose(noisy(np.full(60, 5.0)), HORIZON, forecasters=(CONSTANT, SeasonalNaive()))
    assert chosen is CONSTANT


@given(st.integers(0, 10_000), st.integers(20, 200))
@hypothesis_settings(max_examples=3)
def test_the_chosen_is_never_worse_than_the_constant_on_its_history(seed: int, num: int) -> None:
    walk = np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.05, num)))
    known = history(walk)
    _, judged = choose(known, HORIZON, origins=3)
    first, last = 2 * num // 3, num - HORIZON
    at = np.unique(np.linspace(first, last, min(3, last - first + 1)).astype(int)).tolist()
    assert judged.score <= backtest(CONSTANT, known, HORIZON, at).score


def test_peaks_are_held_as_often_as_asked() -> None:
    """Over two noisy days, of 300 later peaks about nine in ten lie below the one forecast."""
    known = noisy(days(3.5), seed=4)
    start = 3 * DAY_SLOTS
    chosen = choose(
        known.until(start), HORIZON, forecasters=(CONSTANT, SeasonalNaive()), origins=60
    )
    held = []
    for at in range(start, start + 300):
        found = forecast(known.until(at), HORIZON, chosen=chosen)
        assert found is not None
        held.append(known.rates_rps[at : at + HORIZON].max() <= found.peak_rps(0.9))
    assert 0.8 <= np.mean(held) <= 0.98


def test_a_young_engine_gets_a_margin_and_no_history_no_forecast() -> None:
    assert forecast(history(np.empty(0)), HORIZON) is None
    young = forecast(history(np.array([4.0])), HORIZON)
    assert young is not None
    assert young.peak_rps(0.9) == pytest.approx(5.0)


def test_what_was_never_seen_is_not_prepared_for() -> None:
    """A load that jumps between 3 and 12 does not jump to 48, though it quadruples often."""
    square = np.where(np.arange(120) // 10 % 2 == 0, 3.0, 12.0)
    found = forecast(
        history(square[:115]), HORIZON, chosen=choose(history(square), HORIZON, origins=6)
    )
    assert found is not None
    assert found.peak_rps(0.9) <= 12.0 * 1.25 + 1e-9


@given(st.lists(st.floats(-1, 1), max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_the_less_cautious_holds_no_more_and_who_is_not_at_all_the_forecast_at_most(
    errors: list[float], caution: float, more: float
) -> None:
    judged = Backtest(forecaster="constant", errors=np.array(errors))
    found = forecast(history(np.full(30, 4.0)), HORIZON, chosen=(CONSTANT, judged))
    assert found is not None
    less, whole = found.peak_rps(0.9, caution=min(caution, more)), found.peak_rps(0.9)
    assert less <= found.peak_rps(0.9, caution=max(caution, more)) + 1e-9 <= whole + 2e-9
    assert found.peak_rps(0.9, caution=0.0) <= 4.0 + 1e-9


@pytest.mark.parametrize(("chance", "caution"), [(1.0, 1.0), (0.9, 1.1), (0.9, -0.1)])
def test_a_chance_or_a_caution_that_cannot_be_is_refused(chance: float, caution: float) -> None:
    found = forecast(history(np.ones(3)), HORIZON)
    assert found is not None
    with pytest.raises(PolicyInputError, match="chance="):
        found.peak_rps(chance, caution=caution)


def slot(start_s: float, requests: float, *, seen_s: float = SLOT_S) -> LoadSlot:
    return LoadSlot(
        start_s=start_s,
        seen_s=seen_s,
        requests=requests,
        input_tokens=requests * 1000,
        output_tokens=requests * 50,
    )


def test_a_gap_in_the_history_keeps_the_rate_before_it() -> None:
    slots = [slot(180.0, 240), slot(0.0, 120), slot(60.0, 0, seen_s=0.0)]
    assert LoadHistory.of(slots).rates_rps == pytest.approx([2.0, 2.0, 2.0, 4.0])


def test_longer_requests_count_as_more_of_the_mix() -> None:
    one = slot(0.0, 60)
    assert one.rate_rps(None) == 1.0
    assert one.rate_rps((500.0, 50.0)) == 2.0  # inputs twice as long
    assert one.rate_rps((4000.0, 25.0)) == 2.0  # outputs twice as long: fewer inputs do not help


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(PolicyInputError, match="requests=-1"):
        slot(0.0, -1)


def test_what_luck_adds_to_a_peak_is_no_load() -> None:
    """The busiest of ten minutes of a steady load, and one that is busier than luck."""
    counts = np.random.default_rng(3).poisson(60, 40)
    steady = LoadHistory.of([slot(nth * SLOT_S, float(n)) for nth, n in enumerate(counts)])
    assert steady.rates_rps.max() > 1.15
    assert steady.peak_rps < 1.05
    busier = LoadHistory.of([slot(0.0, 60), slot(SLOT_S, 60), slot(2 * SLOT_S, 240)])
    assert 3.0 < busier.peak_rps <= 4.0
    assert history(counts / SLOT_S).peak_rps == counts.max() / SLOT_S  # nobody knows of luck


def test_how_long_a_load_stays_away_is_told_by_its_returns() -> None:
    waves = [6.0, 6.0, 1.0, 1.0, 1.0] * 4
    found = forecast(history(np.array(waves)), HORIZON, chosen=choose(history(np.ones(3)), 1))
    assert found is not None
    assert found.returns_s(3.0, 0.9, within_s=1800.0) == 4 * SLOT_S
    assert found.returns_s(3.0, 0.9, within_s=60.0) == 0.0
    assert found.returns_s(10.0, 0.9, within_s=1800.0) == 0.0

from __future__ import annotations

import numpy as np
import pytest

from policies.slowness import Limit, chance_within


def limit(room: float, share: float) -> Limit:
    return Limit(room=room, share=share)


def played(limits: list[Limit], correlation: float) -> float:
    """The share of a million runs that meet ``limits``."""
    rng = np.random.default_rng(0)
    prompts, other = rng.normal(size=(2, 1_000_000))
    decodes = correlation * prompts + np.sqrt(1 - correlation**2) * other
    met = np.ones(len(prompts), dtype=bool)
    for each in limits:
        met &= each.share * prompts + (1 - each.share) * decodes < each.room
    return float(met.mean())


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.6])
@pytest.mark.parametrize(
    "limits",
    [
        [limit(0.5, 1.0)],
        [limit(0.5, 0.0)],
        [limit(0.5, 0.5)],
        [limit(0.3, 1.0), limit(0.8, 0.0)],
        [limit(-0.4, 0.9), limit(0.2, 0.1)],
        [limit(0.3, 1.0), limit(1.0, 0.7), limit(0.1, 0.2)],
    ],
)
def test_a_chance_is_the_share_of_played_runs(limits: list[Limit], correlation: float) -> None:
    found = chance_within(limits, correlation)
    assert found == pytest.approx(played(limits, correlation), abs=0.01)


def test_two_causes_are_less_likely_to_spare_both_than_one_cause_is() -> None:
    both = [limit(0.0, 1.0), limit(0.0, 0.0)]
    assert chance_within(both, 1.0) == pytest.approx(0.5)
    assert chance_within(both, 0.0) == pytest.approx(0.25, abs=1e-6)


def test_what_both_causes_make_up_is_surer_than_what_one_decides() -> None:
    assert chance_within([limit(1.0, 0.5)], 0.0) > chance_within([limit(1.0, 1.0)], 0.0)


def test_less_room_is_never_likelier() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        count = int(rng.integers(1, 4))
        limits = [
            limit(float(room), float(share))
            for room, share in zip(
                rng.normal(size=count), rng.choice([0, 0.3, 0.99, 1], count), strict=True
            )
        ]
        correlation = float(rng.choice([0.0, 0.2, 0.7]))
        tighter = [limit(each.room - 0.01, each.share) for each in limits]
        assert chance_within(tighter, correlation) <= chance_within(limits, correlation)


def test_nothing_asked_is_met() -> None:
    assert chance_within([], 0.0) == 1.0

"""What is told of another model's errors is as likely as it says, however few groups tell it."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from tests.tuner.calibration.test_step_errors import groups
from tuner.calibration.spreads import NUM_SPREADS, spreads_of_another

STANDARD = NormalDist()


def chance_below(spreads: tuple[float, ...], error: float) -> float:
    return float(np.mean([STANDARD.cdf(error / spread) for spread in spreads]))


@pytest.mark.parametrize("own", [1, 2, 3])
@pytest.mark.parametrize("between", [0.03, 0.15])
def test_errors_of_new_groups_lie_where_the_spreads_say(own: int, between: float) -> None:
    """Groups of two systems, each off in a direction of its own, whose runs scatter unlike."""
    rng = np.random.default_rng(0)
    places: list[float] = []
    for _ in range(600):
        systems = []
        for count, mean in ((own + 1, 0.2), (2, -0.1)):
            offsets = mean + rng.normal(0, between, count)
            within = rng.choice((0.04, 0.08, 0.16), count)
            systems.append([o + rng.normal(0, w, 30) for o, w in zip(offsets, within, strict=True)])
        (*known, new), other = systems
        spreads = spreads_of_another(known, [other])
        middle = float(np.mean([group.mean() for group in known]))
        places += [chance_below(spreads, error - middle) for error in new[:10]]
    for share in (0.05, 0.2, 0.5, 0.8, 0.95):
        assert np.mean(np.array(places) <= share) == pytest.approx(share, abs=0.05)


def test_what_a_system_is_off_by_as_such_widens_nothing() -> None:
    """It is in the mean already."""
    known = groups(3, 40, between=0.05, within=0.1)
    off = [group + 0.3 for group in known]
    assert spreads_of_another(off, []) == pytest.approx(spreads_of_another(known, []), abs=1e-4)


def test_the_fewer_groups_the_longer_the_tail() -> None:
    many = groups(12, 40, between=0.1, within=0.05)
    few, more = spreads_of_another(many[:2], []), spreads_of_another(many, [])
    assert len(few) == len(more) == NUM_SPREADS
    assert few[-1] > 1.1 * more[-1]


def test_a_lone_group_of_alike_runs_is_no_proof_that_others_are() -> None:
    calm = groups(1, 40, between=0.0, within=0.01)
    wild = groups(3, 40, between=0.0, within=0.2, seed=1)
    assert spreads_of_another(calm, [wild])[-1] > 3 * spreads_of_another(calm, [])[-1]
    assert spreads_of_another(calm, [wild])[0] < 0.03

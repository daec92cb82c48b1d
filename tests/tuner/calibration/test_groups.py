from __future__ import annotations

import numpy as np
import pytest

from tuner.calibration.groups import AllReduceLaw, carried_over
from tuner.calibration.links import Series
from tuner.hardware.curves import IN_NODE
from tuner.work.counts import CollectiveKind

SIZES = np.array([2.0**i for i in range(8, 31)])
LAW = AllReduceLaw(
    call_s=3e-6,
    hop_s=2e-7,
    one_shot_bytes_per_s=3e11,
    two_shot_bytes_per_s=2.5e11,
    library_s=1.5e-5,
    library_bytes_per_s=3.5e11,
)


def series(ranks: int, *, has_multicast: bool) -> Series:
    return Series(
        kind=CollectiveKind.ALL_REDUCE,
        via="graph",
        topology=IN_NODE,
        ranks=ranks,
        num_bytes=SIZES,
        seconds=LAW.seconds(ranks, SIZES, has_multicast=has_multicast),
    )


@pytest.mark.parametrize("has_multicast", [False, True])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_lawful_all_reduce_is_carried_over_to_another_number_of_ranks(
    ranks: int, has_multicast: bool
) -> None:
    others = [series(other, has_multicast=has_multicast) for other in {2, 4, 8} - {ranks}]
    found = carried_over(ranks, SIZES, others, has_multicast=has_multicast)
    logs = np.log(found / LAW.seconds(ranks, SIZES, has_multicast=has_multicast))
    assert np.median(np.abs(logs)) < 0.05
    assert np.abs(logs[SIZES > 2**25]).max() < 0.1


def test_a_switch_that_multicasts_makes_eight_ranks_faster_than_four() -> None:
    large = np.array([1e9])
    four, eight = (LAW.seconds(n, large, has_multicast=True)[0] for n in (4, 8))
    assert eight < four
    assert LAW.seconds(8, large, has_multicast=False)[0] > four

"""Whether memory counts as flat."""

from __future__ import annotations

import pytest

from benchmarks.streams import Sample, growth_mib_per_min


def _samples(mib_per_s: float) -> list[Sample]:
    """A start that fills caches, then so much more each second."""
    return [
        Sample(at_s=float(s), mib=100.0 + 10 * min(s, 20) + mib_per_s * s, cpu_s=0.0)
        for s in range(1, 121)
    ]


@pytest.mark.parametrize(("mib_per_s", "per_min"), [(0.0, 0.0), (0.5, 30.0)])
def test_growth_is_that_after_the_start(mib_per_s: float, per_min: float) -> None:
    assert growth_mib_per_min(_samples(mib_per_s)) == pytest.approx(per_min, abs=1e-6)


def test_a_run_too_short_to_tell_has_not_grown() -> None:
    assert growth_mib_per_min(_samples(9.0)[:1]) == 0.0

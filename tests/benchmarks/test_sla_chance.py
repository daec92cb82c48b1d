"""How much calibration error chance makes: more pairs less, groups that are off together more."""

from __future__ import annotations

import numpy as np

from benchmarks.sla_certainty import Told
from benchmarks.sla_chance import alikeness, chance_errors, group_shift


def told(count: int, *, off: float, seed: int = 0) -> list[Told]:
    """Pairs of two groups whose chances are P, less ``off`` in one and more in the other."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        p, is_first = float(rng.uniform(0.3, 0.7)), number % 2 == 0
        met = rng.random(4) < p + (off if is_first else -off)
        found.append(
            Told(before=p, now=p, met=tuple(map(bool, met)), cpu_s=0.0, group="ab"[is_first])
        )
    return found


def test_chance_makes_less_of_an_error_with_more_pairs_and_more_where_groups_are_off() -> None:
    few, many = told(60, off=0.0), told(600, off=0.0)
    assert chance_errors(many, 0.0, 0).mean() < chance_errors(few, 0.0, 0).mean() / 2
    assert chance_errors(many, 0.5, 0).mean() > 2 * chance_errors(many, 0.0, 0).mean()


def test_runs_of_a_pair_and_groups_are_found_to_be_as_alike_as_they_are() -> None:
    assert alikeness(told(600, off=0.0)) < 0.1
    same = [Told(before=0.5, now=0.5, met=(i % 2 == 0,) * 4, cpu_s=0.0) for i in range(20)]
    assert alikeness(same) == 1.0
    assert group_shift(told(600, off=0.0)) < 0.2 < group_shift(told(600, off=0.25))

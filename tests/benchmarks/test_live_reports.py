"""What the live benchmarks call a pass, and where they see a crossover."""

from __future__ import annotations

import pytest

from benchmarks.link_crossover import LinkResult, SizeTimes, crossover
from benchmarks.simulated_vs_measured_report import Comparison
from engine.spec.modes import BASE, SHIFT, Mode

SIZES = [2**n for n in range(11)]


def times(fixed_s: float, per_token_s: float) -> list[tuple[int, dict[Mode, float]]]:
    """Base costs ``fixed_s`` more than shift, and ``per_token_s`` less for each token."""
    shift_s = {n: 0.010 + 0.0004 * n for n in SIZES}
    return [(n, {BASE: shift_s[n] + fixed_s - per_token_s * n, SHIFT: shift_s[n]}) for n in SIZES]


def result(measured: tuple[float, float], simulated: tuple[float, float]) -> LinkResult:
    sizes = [
        SizeTimes(num_tokens=n, measured=m, simulated=s)
        for (n, m), (_, s) in zip(times(*measured), times(*simulated), strict=True)
    ]
    return LinkResult(link="gbps=1", sizes=tuple(sizes), others=0.0)


def test_a_crossover_is_the_first_size_at_which_base_is_faster() -> None:
    assert crossover(times(0.004, 0.0002)) == 32  # equal at 20 tokens
    assert crossover(times(0.004, 0.00002)) == 256  # equal at 200


def test_one_slow_moment_moves_no_crossover() -> None:
    found = times(0.004, 0.0002)
    found[8][1][BASE] *= 1.1
    assert crossover(found) == 32


def test_modes_that_never_cross_cross_at_an_end() -> None:
    assert crossover(times(0.004, 0.0)) == 2 * SIZES[-1]
    assert crossover(times(-0.004, 0.0)) == 1


def test_crossovers_may_differ_by_one_size() -> None:
    assert result((0.004, 0.0002), (0.004, 0.0001)).passes
    assert not result((0.004, 0.0002), (0.004, 0.00005)).passes


@pytest.mark.parametrize(
    ("simulated", "spread", "passes"),
    [(106.0, 0.0, True), (108.0, 0.0, False), (108.0, 0.05, True), (92.0, 0.03, False)],
)
def test_a_case_passes_at_the_larger_of_target_and_twice_the_spread(
    simulated: float, spread: float, passes: bool
) -> None:
    found = Comparison(target=0.07, simulated=simulated, mean=100.0, spread=spread)
    assert found.passes is passes

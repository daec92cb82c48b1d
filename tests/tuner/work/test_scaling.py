from __future__ import annotations

import pytest

from tuner.spec.errors import TunerError
from tuner.work.scaling import (
    Amdahl,
    StepParts,
    find_optimal_degree,
    fit_amdahl,
    rule_of_thumb_degree,
)

PUBLISHED = StepParts(
    scheduling_s=4e-3, input_s=4e-3, forward_s=21e-3, sampling_s=6e-3, output_s=0.5e-3
)


def test_the_published_step_is_41_percent_non_scalable() -> None:
    assert PUBLISHED.non_scalable_share == pytest.approx(0.41, abs=0.005)


def test_more_ranks_shorten_the_forward_pass_only() -> None:
    law = Amdahl.of_step(PUBLISHED, degree=4)
    assert law.seconds(4) == pytest.approx(PUBLISHED.total_s)
    assert law.seconds(8) == pytest.approx(14.5e-3 + 10.5e-3)
    assert law.speedup(1024) < 1 / law.serial_share


def test_a_step_without_time_is_refused() -> None:
    with pytest.raises(TunerError, match="not all 0"):
        StepParts(scheduling_s=0, input_s=0, forward_s=0, sampling_s=0, output_s=0)


def test_the_fit_finds_the_law_it_was_made_from() -> None:
    law = Amdahl(serial_s=0.01, scalable_s=0.08)
    found = fit_amdahl({t: law.seconds(t) for t in (1, 2, 4, 8)})
    assert found.serial_s == pytest.approx(0.01)
    assert found.scalable_s == pytest.approx(0.08)
    assert found.serial_share == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("steps", "serial_share"),
    [({1: 1.0, 2: 0.4, 4: 0.15}, 0.0), ({1: 1.0, 2: 1.2, 4: 1.5}, 1.0)],
    ids=["faster than linear", "slower with more ranks"],
)
def test_no_part_of_the_law_is_negative(steps: dict[int, float], serial_share: float) -> None:
    assert fit_amdahl(steps).serial_share == pytest.approx(serial_share)


def test_one_degree_says_nothing_about_scaling() -> None:
    with pytest.raises(TunerError, match="two degrees"):
        fit_amdahl({4: 0.02})


@pytest.mark.parametrize(
    ("throughput", "expected"),
    [
        ({1: 100.0, 2: 190.0, 4: 350.0, 8: 600.0}, 1),
        ({1: 100.0, 2: 230.0, 4: 470.0, 8: 800.0}, 4),
        ({1: 0.0, 2: 100.0, 4: 210.0, 8: 300.0}, 4),
        ({1: 100.0, 2: 190.0, 4: 500.0, 8: 600.0}, None),
        ({1: 0.0, 2: 0.0}, None),
    ],
    ids=["never pays", "pays to 4", "does not fit one", "dips before it pays", "fits nowhere"],
)
def test_t_e_is_the_largest_degree_up_to_which_doubling_pays(
    throughput: dict[int, float], expected: int | None
) -> None:
    assert find_optimal_degree(throughput, 8) == expected


def test_t_e_is_defined_over_powers_of_two() -> None:
    with pytest.raises(TunerError, match="1, 2, 4"):
        find_optimal_degree({1: 1.0, 3: 2.0}, 8)


@pytest.mark.parametrize(
    ("weight_gb", "device_gb", "degree"), [(65, 80, 4), (16, 80, 1), (140, 80, 8), (40, 80, 2)]
)
def test_the_rule_of_thumb_rounds_up_to_a_power_of_two(
    weight_gb: float, device_gb: float, degree: int
) -> None:
    assert rule_of_thumb_degree(weight_gb * 1e9, device_gb * 1e9) == degree

from __future__ import annotations

import numpy as np
import pytest

from tuner.backends.step_errors import Phase
from tuner.calibration.served_rows import ServedRow
from tuner.calibration.step_errors import (
    MOST_LOG,
    Needed,
    correlation,
    mean_error,
    unseen_half_width,
)


def groups(
    count: int, runs: int, between: float, within: float, seed: int = 0
) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    rng = np.random.default_rng(seed)
    offsets = rng.normal(0, between, count)
    return [offset + rng.normal(0, within, runs) for offset in offsets]


def test_the_width_for_another_group_holds_what_groups_differ_by() -> None:
    found = unseen_half_width(groups(400, 50, between=0.1, within=0.05))
    assert found == pytest.approx(1.645 * np.hypot(0.1, 0.05), rel=0.1)


def test_runs_alone_decide_where_groups_are_alike() -> None:
    found = unseen_half_width(groups(3, 5000, between=0.0, within=0.1))
    assert found == pytest.approx(1.645 * 0.1, rel=0.05)


def test_few_groups_that_differ_say_little_of_the_next_one() -> None:
    """Offsets of equal size in fewer groups leave more room for a larger one."""
    many = [np.array([offset, offset + 1e-3]) for offset in [0.1, -0.1] * 10]
    assert unseen_half_width(many[:2]) > 1.5 * unseen_half_width(many)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nine_of_ten_new_groups_runs_are_within_the_width_of_few_groups(count: int) -> None:
    held = []
    for seed in range(300):
        *known, new = groups(count + 1, 40, between=0.1, within=0.08, seed=seed)
        held.append(np.mean(np.abs(new) <= unseen_half_width(known)))
    assert np.mean(held) == pytest.approx(0.9, abs=0.04)


def test_groups_of_other_systems_tell_what_one_group_cannot() -> None:
    """A group that happens to lie at 0 says nothing of what groups differ by."""
    lucky = groups(1, 40, between=0.0, within=0.05)
    others = groups(4, 40, between=0.2, within=0.05, seed=1)
    alone = unseen_half_width(lucky)
    assert unseen_half_width(lucky, others) > 2 * alone


@pytest.mark.parametrize("count", [1, 2])
def test_nine_of_ten_runs_are_within_the_width_that_other_systems_help_to_tell(count: int) -> None:
    held = []
    for seed in range(300):
        *known, new = groups(count + 4, 40, between=0.1, within=0.08, seed=seed)
        held.append(np.mean(np.abs(new) <= unseen_half_width(known[:count], known[count:])))
    assert np.mean(held) == pytest.approx(0.9, abs=0.04)


def test_one_run_alone_makes_a_width() -> None:
    assert unseen_half_width([np.array([0.1])]) > 0.1


def needed(model: str, prefill: float, decode: float) -> Needed:
    row = ServedRow(
        backend="vllm",
        version="0.12.0",
        device="h100",
        model=model,
        precision="bf16",
        input_tokens=1024,
        output_tokens=128,
        concurrency=8,
        tp=1,
        ttft_s=0.1,
        tpot_s=0.01,
    )
    return Needed(row=row, prefill=prefill, decode=decode)


def test_runs_whose_two_factors_go_apart_are_told_from_runs_whose_factors_are_one() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0, 0.1, 500)
    alike = [needed("a", value, 0.5 * value) for value in one]
    apart = [
        needed("a", value, other) for value, other in zip(one, rng.permutation(one), strict=True)
    ]
    assert correlation(alike) == pytest.approx(1.0, abs=0.01)
    assert correlation(apart) == pytest.approx(0.0, abs=0.1)
    # A run that no step times explain says nothing of them.
    assert correlation([*alike, needed("a", MOST_LOG, -0.4)]) == correlation(alike)


def test_a_group_of_many_runs_counts_no_more_than_one_of_few() -> None:
    rng = np.random.default_rng(0)
    alike = [needed("a", value, value) for value in rng.normal(0, 0.1, 20)]
    apart = [needed("b", *pair) for pair in rng.normal(0, 0.1, (2000, 2))]
    assert 0.3 < correlation([*alike, *apart]) < 0.7


def test_what_groups_are_off_by_on_average_counts_each_alike_and_never_makes_surer() -> None:
    known = [*[needed("a", 0.2, -0.1)] * 9, needed("b", 0.1, -0.1), needed("b", MOST_LOG, 0.0)]
    assert mean_error(known, Phase.PREFILL) == pytest.approx(0.15)
    assert mean_error(known, Phase.DECODE) == 0.0
    assert mean_error([needed("a", MOST_LOG, 0.0)], Phase.PREFILL) == 0.0

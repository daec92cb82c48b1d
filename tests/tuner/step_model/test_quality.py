"""A step model says whether it is good, and what to do where it is not."""

from __future__ import annotations

import pytest

from tuner.step_model.model import ErrorReport, GroupError
from tuner.step_model.quality import Quality


def report(mape: float, plan_interval: float) -> ErrorReport:
    groups = (
        GroupError(plan="tp=1", num_steps=26, mape=0.04, bias=0.01),
        GroupError(plan="pp=2", num_steps=26, mape=mape, bias=plan_interval),
    )
    return ErrorReport(
        num_pieces=52,
        num_samples=0,
        roofline_mape=mape,
        residual_mape=None,
        is_residual_active=False,
        step_interval=0.3,
        plan_interval=plan_interval,
        groups=groups,
    )


def test_a_good_model_is_called_good_and_needs_no_advice() -> None:
    quality = Quality.of(report(0.09, 0.06))
    assert quality.is_good
    assert "good: held out, steps of pp=2 are off by 9%" in quality.verdict()
    assert quality.advice(seconds=40, rounds=1) is None


@pytest.mark.parametrize(("mape", "plan_interval"), [(0.28, 0.1), (0.1, 0.28)])
def test_a_poor_model_is_called_poor_with_its_numbers_and_a_way_out(
    mape: float, plan_interval: float
) -> None:
    quality = Quality.of(report(mape, plan_interval))
    assert not quality.is_good
    assert "the cost model is poor" in quality.verdict()
    assert "28%" in quality.verdict()
    advice = quality.advice(seconds=40, rounds=1)
    assert advice is not None
    assert "--seconds 80" in advice
    assert "--rounds 4" in advice
    document = quality.to_json(seconds=40, rounds=1)
    assert (document["is_good"], document["worst_plan"]) == (False, "pp=2")
    assert document["advice"] == advice


def test_rounds_that_were_measured_already_are_doubled() -> None:
    assert "--rounds 8" in str(Quality.of(report(0.3, 0.1)).advice(seconds=160, rounds=4))

"""A step model taken further by live steps, and what its parts are off by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from msgspec import structs

from engine.spec.steps import StepSample
from tests.tuner.profiles import made_up_profile
from tests.tuner.worlds import SMALL
from tuner.drift import Direction, DriftAlarm
from tuner.profiling.profile import PieceTime, Profile
from tuner.spec.errors import TunerError
from tuner.step_model.fit import fit_step_model
from tuner.step_model.model import StepModel
from tuner.step_model.refit import Change, refit, step_seconds


@cache
def profile() -> Profile:
    return made_up_profile(plans=("tp=1", "tp=2"))


@cache
def fitted() -> StepModel:
    return fit_step_model(profile(), SMALL)


def live(
    slower: Callable[[StepSample], float], *, rounds: int = 12, seed: int = 0
) -> list[StepSample]:
    """The profile's serving run again and again, each step ``slower`` than there, with noise."""
    noise = np.random.default_rng(seed)
    found = []
    for sample in profile().samples * rounds:
        seconds = sample.step_s * slower(sample) * float(np.exp(noise.normal(0, 0.03)))
        found.append(structs.replace(sample, start_s=float(len(found)), step_s=seconds))
    return found


def drift_of(step_model: StepModel, samples: list[StepSample]) -> Direction | None:
    alarm = DriftAlarm.of(step_model.error)
    for predicted_s, measured_s in step_seconds(step_model, SMALL, samples):
        alarm = alarm.after(predicted_s, measured_s)
    return None if alarm.drift is None else alarm.drift.direction


def test_steps_that_say_nothing_new_change_nothing_and_raise_no_alarm() -> None:
    usual = live(lambda _: 1.0)
    assert drift_of(fitted(), usual) is None
    found = refit(fitted(), SMALL, usual)
    assert found.change is Change.NOTHING
    assert found.step_model is fitted()


def test_a_machine_that_became_slower_raises_the_alarm_and_a_refit_clears_it() -> None:
    slow = live(lambda _: 1.5)
    assert drift_of(fitted(), slow) is Direction.SLOWER
    found = refit(fitted(), SMALL, slow)
    assert found.change is not Change.NOTHING
    assert found.error_before > 0.25
    assert found.error_after < 0.08
    assert drift_of(found.step_model, live(lambda _: 1.5, seed=1)) is None
    assert found.step_model.id != fitted().id
    assert "before" in str(found)
    assert StepModel.from_json(found.step_model.to_json()) == found.step_model


def test_a_refit_of_a_refit_goes_on_from_it() -> None:
    once = refit(fitted(), SMALL, live(lambda _: 1.5)).step_model
    again = refit(once, SMALL, live(lambda _: 1.2))
    assert again.error_before > 0.15
    assert again.error_after < 0.08
    assert again.step_model.error.num_samples > once.error.num_samples > fitted().error.num_samples


def test_what_each_sequence_takes_more_is_no_factor_of_all_steps() -> None:
    """As where requests became dearer to sample, and the products of a step did not."""

    def slower(sample: StepSample) -> float:
        return 1 + 3e-4 * sample.shape.num_seqs / sample.step_s

    found = refit(fitted(), SMALL, live(slower))
    assert found.change is Change.COEFFICIENTS
    assert found.error_after < 0.6 * found.error_before


def test_too_few_steps_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(TunerError, match=r"20 live steps .* takes 60 or more"):
        refit(fitted(), SMALL, live(lambda _: 1.0)[:20])


# -- parts -----------------------------------------------------------------------------------------


def timed(piece: PieceTime) -> PieceTime:
    """Half a millisecond to dispatch it; of two ranks, a fifth of it is communication."""
    is_split = piece.plan != "tp=1"
    return replace(
        piece,
        step_s=piece.step_s + 5e-4,
        dispatch_s=5e-4,
        communication_s=0.2 * piece.step_s if is_split else 0.0,
    )


def test_parts_are_told_apart_for_each_plan_by_a_fit_that_never_saw_it() -> None:
    known = profile()
    samples = tuple(structs.replace(sample, sample_s=1e-4) for sample in known.samples)
    found = fit_step_model(
        replace(known, pieces=tuple(map(timed, known.pieces)), samples=samples), SMALL
    )
    parts = {group.plan: {part.part: part for part in group.parts} for group in found.error.groups}
    assert set(parts["tp=1"]) == {"host"}, "one rank has nobody to talk to"
    assert set(parts["tp=2"]) == {"communication", "host"}
    assert set(parts["serving tp=1"]) == {"sampling"}, "no other plan was served"
    host = parts["tp=2"]["host"]
    assert host.predicted_s == pytest.approx(host.measured_s, rel=0.05)
    communication = parts["tp=2"]["communication"]
    split = [timed(piece) for piece in known.pieces if piece.plan == "tp=2"]
    assert communication.measured_s == pytest.approx(
        sum(piece.communication_s for piece in split) / len(split)
    )
    assert communication.predicted_s < communication.measured_s, "operators say less"

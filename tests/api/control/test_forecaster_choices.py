"""Who forecasts an engine's load is found beside the loop, which goes on meanwhile."""

from __future__ import annotations

import numpy as np

from api.aside.process import AsideLimits
from api.control.aside_queue import AsideQueue
from api.control.forecaster_choices import CHOOSE_EVERY_S, ForecasterChoices
from api.services.forecasts import HORIZON_SLOTS, choose_cheaply
from policies.forecast import choose
from policies.forecasters import CONSTANT
from policies.load_history import LoadHistory
from store.models.base import Json
from tests.waiting import wait_until


def ramp(minutes: int) -> LoadHistory:
    """A load that a trend forecasts and a constant does not."""
    return LoadHistory(rates_rps=np.linspace(1.0, 40.0, minutes))


def test_the_choice_is_that_of_all_forecasters_and_a_cheap_one_until_then() -> None:
    choices, history = ForecasterChoices(), ramp(48)
    at_once = choices.of("eng_a", history, 0.0)
    assert at_once[0] is choose_cheaply(history)[0]
    best, judged = choose(history, HORIZON_SLOTS)
    assert best is not at_once[0], "the load must tell them apart"
    wait_until(lambda: choices.of("eng_a", history, 1.0)[0] is best)
    chosen = choices.of("eng_a", history, 2.0)
    np.testing.assert_allclose(chosen[1].errors, judged.errors)
    assert choices.of("eng_a", history, CHOOSE_EVERY_S / 2)[0] is best


def test_a_forecaster_that_is_pinned_forecasts_however_much_it_errs() -> None:
    choices, history = ForecasterChoices("constant"), ramp(48)
    assert choices.of("eng_a", history, 0.0)[0] is CONSTANT
    choices = ForecasterChoices("exponential_smoothing")
    assert choices.of("eng_b", history, 0.0)[0] is CONSTANT, "until it is known how it errs"
    wait_until(lambda: choices.of("eng_b", history, 1.0)[0].name == "exponential_smoothing")
    assert len(choices.of("eng_b", history, 2.0)[1].errors) > 0


def test_questions_are_answered_one_after_the_other_and_failures_are_told() -> None:
    queue = AsideQueue("choose_forecaster", AsideLimits(seconds=60.0, memory_mib=1024))
    queue.ask("good", {**ramp(3).to_json(), "horizon": 5, "pinned": None})
    queue.ask("bad", {"horizon": 5})
    assert not queue.can_ask("good")
    assert not queue.can_ask("bad")
    answers: dict[str, Json] = {}

    def take() -> bool:
        for name in ("good", "bad"):
            answer = queue.take(name)
            if answer is not None:
                answers[name] = answer
        return len(answers) == 2

    wait_until(take)
    assert answers["good"] == {"forecaster": "constant", "errors": []}
    assert set(answers["bad"]) == {"error"}
    assert queue.can_ask("good")

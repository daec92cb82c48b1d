"""What the controller sees: windows that cannot have happened are refused whole."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest

from engine.spec.measurement import Fidelity, RequestTiming
from policies.decision import LoadWindow, SmoothedLoad
from policies.errors import PolicyInputError
from policies.observation import Observation, TrafficWindow, join_windows
from policies.sla import Sla
from tests.policies.runs import timing

GOOD = TrafficWindow(window_s=2.0, num_arrived=10, timings=(timing(), timing()))


def odd(**changes: object) -> RequestTiming:
    return replace(timing(), **changes)


BAD = {
    "endless": TrafficWindow(window_s=math.inf, num_arrived=1, timings=()),
    "no number": TrafficWindow(window_s=math.nan, num_arrived=1, timings=()),
    "no time": TrafficWindow(window_s=1e-308, num_arrived=1, timings=()),
    "countless": TrafficWindow(window_s=1.0, num_arrived=2**70, timings=()),
    "negative": TrafficWindow(window_s=1.0, num_arrived=-1, timings=()),
    "infinite token": TrafficWindow(
        window_s=1.0, num_arrived=1, timings=(odd(token_s=(math.inf,)),)
    ),
    "no schedule": TrafficWindow(window_s=1.0, num_arrived=1, timings=(odd(scheduled_s=math.nan),)),
    "falling": TrafficWindow(window_s=1.0, num_arrived=1, timings=(odd(token_s=(2.0, 1.0)),)),
    "before": TrafficWindow(window_s=1.0, num_arrived=1, timings=(odd(token_s=(-2.0,)),)),
    "huge prompt": TrafficWindow(
        window_s=1.0, num_arrived=1, timings=(timing(), odd(prompt_tokens=2**70))
    ),
}


def join(*windows: TrafficWindow) -> Observation | None:
    sla = Sla.parse("p95_ttft_ms<=500")
    return join_windows(windows, sla, age_s=0.5, fidelity=Fidelity.MEASURED)


@pytest.mark.parametrize("name", BAD)
def test_a_window_that_cannot_have_happened_changes_no_average(name: str) -> None:
    plain = join(GOOD, GOOD)
    mixed = join(GOOD, BAD[name], GOOD)
    assert plain is not None
    assert mixed is not None
    assert mixed.load == plain.load
    assert mixed.metrics == plain.metrics


@pytest.mark.parametrize("name", BAD)
def test_nothing_but_bad_windows_is_no_data(name: str) -> None:
    assert join(BAD[name]) is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_load_that_is_not_finite_cannot_be_made(value: float) -> None:
    fine = {"rate_rps": 1.0, "mean_input_tokens": None, "mean_output_tokens": 2.0}
    window = partial(LoadWindow, window_s=15.0)
    for name in fine:
        for kind in (window, SmoothedLoad):
            with pytest.raises(PolicyInputError, match=f"{name}=.* must be finite"):
                kind(**{**fine, name: value})

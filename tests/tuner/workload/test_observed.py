"""Minutes that are kept of an engine's load, as requests again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from policies.load_history import SLOT_S, LoadSlot
from tuner.spec.errors import WorkloadError
from tuner.workload.observed import draw_minutes, newest


def minute(nth: int, requests: float, *, seen_s: float = SLOT_S) -> LoadSlot:
    return LoadSlot(
        start_s=7_200 + nth * SLOT_S,
        seen_s=seen_s,
        requests=requests,
        input_tokens=requests * 800,
        output_tokens=requests * 40,
    )


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 99))
@hypothesis_settings(max_examples=30)
def test_every_minute_has_the_requests_that_it_had(counts: list[int], seed: int) -> None:
    slots = [minute(nth, count) for nth, count in enumerate(counts)]
    if not sum(counts):
        with pytest.raises(WorkloadError, match="no request came"):
            draw_minutes(slots, seed)
        return
    load = draw_minutes(slots, seed)
    assert (np.diff(load.arrival_s) >= 0).all()
    inside = np.bincount((load.arrival_s // SLOT_S).astype(int), minlength=len(counts))
    assert inside.tolist() == counts
    assert load.arrivals == draw_minutes(slots, seed).arrivals


def test_lengths_are_those_of_requests_that_were_served_stretched_to_the_minutes_mean() -> None:
    """Short prompts with long answers and the other way round stay together."""
    load = draw_minutes([minute(0, 5000)], 0, lengths=[(100, 70), (1500, 10)])
    assert set(zip(load.input_tokens.tolist(), load.output_tokens.tolist(), strict=True)) == {
        (100, 70),
        (1500, 10),
    }
    longer = draw_minutes([minute(0, 5000)], 0, lengths=[(50, 35), (750, 5)])
    assert longer.input_tokens.mean() == pytest.approx(800, rel=0.05)


def test_a_minute_seen_in_part_counts_as_if_the_rest_had_been_like_it() -> None:
    assert len(draw_minutes([minute(0, 10, seen_s=15.0)], 0)) == 40


def test_the_newest_minutes_are_kept_where_there_are_too_many_requests() -> None:
    slots = [minute(nth, 40) for nth in range(10)]
    assert newest(slots[::-1], 100) == slots[-2:]
    assert newest(slots, 10) == slots[-1:]

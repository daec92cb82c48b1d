"""What a replica keeps of ended requests until somebody asks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.replica.telemetry import KeptTimings
from engine.spec.measurement import RequestTiming


def _timing(number: int, num_tokens: int) -> RequestTiming:
    return RequestTiming(
        scheduled_s=float(number), sent_s=0.0, token_s=(1.0,) * num_tokens, prompt_tokens=1
    )


@given(lengths=st.lists(st.integers(0, 30)), max_stamps=st.integers(30, 60))
def test_the_newest_timings_are_kept_that_are_within_the_bound(
    lengths: list[int], max_stamps: int
) -> None:
    kept = KeptTimings(max_stamps)
    timings = [_timing(number, length) for number, length in enumerate(lengths)]
    for timing in timings:
        kept.add(timing)
    found = kept.drain()
    assert found == timings[len(timings) - len(found) :]
    assert sum(max(1, it.output_tokens) for it in found) <= max_stamps
    if len(found) < len(timings):
        older = timings[len(timings) - len(found) - 1]
        total = sum(max(1, it.output_tokens) for it in [older, *found])
        assert total > max_stamps
    assert kept.drain() == []

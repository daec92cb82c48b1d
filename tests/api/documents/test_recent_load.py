"""What an engine was asked for lately, from heartbeats and minutes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from api.documents.recent_load import recent_requests
from store.models import EngineLoad, Heartbeat

START_S = 1_800_000_000


def beat(at_s: float, *ages_s: float, input_tokens: int = 100, output_tokens: int = 4) -> Heartbeat:
    requests: list[dict[str, Any]] = [
        {
            "age_ms": age_s * 1e3,
            "token_ms": [float(n) for n in range(1, output_tokens + 1)],
            "input_tokens": input_tokens,
            "outcome": "completed",
        }
        for age_s in ages_s
    ]
    return Heartbeat(
        received_at=datetime.fromtimestamp(START_S + at_s, UTC),
        window_s=1.0,
        arrived=len(requests),
        requests=requests,
    )


def minute(at_s: int, requests: float, input_tokens: float, output_tokens: float) -> EngineLoad:
    return EngineLoad(
        start_s=START_S + at_s,
        seen_s=60.0,
        requests=requests,
        input_tokens=requests * input_tokens,
        output_tokens=requests * output_tokens,
    )


def test_requests_of_heartbeats_come_in_the_order_of_their_arrival() -> None:
    found = recent_requests([beat(10, 1.0), beat(11, 5.0, 0.5, input_tokens=7)], [], most=10)
    assert found == [(0.0, 7, 4), (3.0, 100, 4), (4.5, 7, 4)]


def test_minutes_before_them_are_filled_with_requests_as_long_as_they_were() -> None:
    minutes = [minute(-120, 30, 200, 8), minute(-60, 0, 0, 0), minute(0, 50, 1, 1)]
    found = recent_requests([beat(10, 1.0)], minutes, most=100)
    assert len(found) == 31, "of the minute that heartbeats tell of, only these"
    assert all(row[1:] == (200, 8) for row in found[:30])
    assert all(at_s < 60.0 for at_s, _, _ in found[:30])
    assert 68 < found[-1][0] <= 129


def test_the_newest_are_kept_and_nothing_is_nothing() -> None:
    found = recent_requests([beat(10, *range(5))], [minute(-120, 9, 10, 10)], most=2)
    assert found == [(0.0, 100, 4), (1.0, 100, 4)]
    assert recent_requests([], [minute(-120, 9, 10, 10)], most=2) == []

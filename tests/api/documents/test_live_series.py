from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from api.documents.live_series import BIN_S, MOST_BINS, LiveSeries
from policies.sla import Sla
from store.models import Heartbeat

BEGIN = datetime(2026, 11, 29, 12, tzinfo=UTC)
SLA = Sla.parse("p95_ttft_ms<=100")


def beat(number: int, at_s: float, *, ttft_ms: float = 40.0, **changes: Any) -> Heartbeat:
    request = {
        "age_ms": 900.0,
        "token_ms": [ttft_ms, ttft_ms + 20],
        "input_tokens": 64,
        "outcome": "completed",
    }
    step = {"mode": "shift", "tokens_up_to": 64, "steps": 10, "seconds": 0.1, "tokens": 300}
    fields = {
        "window_s": 1.0,
        "arrived": 2,
        "stats": {"running": number, "waiting": 0, "kv_usage": 0.5},
        "requests": [request],
        "steps": [step],
        **changes,
    }
    return Heartbeat(id=number, received_at=BEGIN + timedelta(seconds=at_s), **fields)


def test_bins_hold_what_came_in_their_seconds() -> None:
    series = LiveSeries()
    series.feed([beat(1, 0.5), beat(2, 1.5, ttft_ms=60), beat(3, BIN_S + 0.5, ttft_ms=500)], SLA)
    first, second = series.bins()
    assert (first.begin, second.begin) == (BEGIN, BEGIN + timedelta(seconds=BIN_S))
    assert first.metrics["p50_ttft_ms"] == pytest.approx(50)
    assert (first.attainment, second.attainment) == (1.0, 0.0)
    assert (first.rate_rps, first.running, first.kv_usage) == (2.0, 2, 0.5)


def test_a_heartbeat_counts_once_however_often_it_is_read() -> None:
    series = LiveSeries()
    series.feed([beat(1, 0.5)], None)
    series.feed([beat(1, 0.5), beat(2, 1.0)], None)
    assert series.step_ms() == {"shift": [(64, pytest.approx(10.0))]}
    assert series.since == BEGIN + timedelta(seconds=0.5)
    assert [b.running for b in series.bins()] == [2]


def test_missing_seconds_are_left_out_and_old_ones_dropped() -> None:
    series = LiveSeries()
    series.feed([beat(n + 1, 2.0 * BIN_S * n) for n in range(2 * MOST_BINS)], None)
    bins = series.bins()
    assert len(bins) == MOST_BINS + 1
    assert all(b.begin - a.begin == timedelta(seconds=2 * BIN_S) for a, b in pairwise(bins))


def test_requests_that_have_not_come_are_no_numbers() -> None:
    series = LiveSeries()
    series.feed([beat(1, 0.5, requests=[], steps=[])], SLA)
    (only,) = series.bins()
    assert only.attainment is None
    assert "p95_ttft_ms" not in only.metrics
    assert series.step_ms() == {}

"""What callers are told when the engine fails."""

from __future__ import annotations

import logging
import math

import pytest

from engine.server.errors import from_engine_error
from engine.spec.errors import OverloadError, RankError


def test_the_words_of_a_rank_go_to_the_log_and_not_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = 'rank 3: Traceback\n  File "/srv/engine/worker.py", line 9'
    with caplog.at_level(logging.ERROR):
        error = from_engine_error(RankError(words))
    assert (error.status, error.code) == (503, "engine_failed")
    assert "/srv" not in error.message
    assert words in caplog.text


def test_whoever_is_let_in_by_hardly_any_rate_is_told_to_come_back_in_a_day() -> None:
    error = from_engine_error(OverloadError("more come than 1e-320 a second", retry_s=math.inf))
    assert (error.status, error.headers) == (429, {"Retry-After": "86400"})

"""Waiting for what comes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

MOST_PAUSE_S = 0.02


def wait_until(is_true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Look until it is so. The limit is far above what anything here takes: it decides no test that
    passes, however busy the machine is."""
    end_s, pause_s = time.monotonic() + timeout_s, 0.001
    while not is_true():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, MOST_PAUSE_S)

"""How long steps are expected to take, and when one is taken for hung."""

from __future__ import annotations

from engine.modes.pace import StepPace
from engine.spec.modes import BASE


def test_a_slow_prompt_after_thousands_of_quick_decodes_is_not_taken_for_hung() -> None:
    pace = StepPace()
    for _ in range(4):
        pace.observe(BASE, 2000, 20.0)
    for _ in range(5000):
        pace.observe(BASE, 4, 0.01)
    slow_s = pace.slowest_seconds(BASE, 2047)
    assert slow_s is not None
    assert slow_s >= 20.0
    unseen_s = pace.slowest_seconds(BASE, 8000)
    assert unseen_s is not None
    assert unseen_s >= 60.0
    decode_s = pace.slowest_seconds(BASE, 5)
    assert decode_s is not None
    assert decode_s < 1.0

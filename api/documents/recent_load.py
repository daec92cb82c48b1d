"""What an engine was asked for lately: when requests came and how long they were, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from api.documents.control_state import slot_of, timings_of
from policies.load_history import SLOT_S
from store.models import EngineLoad, Heartbeat
from tuner.workload.observed import draw_minute

# Second, input tokens, output tokens.
Row = tuple[float, int, int]


def recent_requests(
    beats: Iterable[Heartbeat], minutes: Sequence[EngineLoad], *, most: int
) -> list[Row]:
    """The newest ``most`` requests, from second 0 on.

    Those of heartbeats are exact. Before the first of them only counts and mean lengths of minutes
    are kept: there arrivals are spread over their minute, and lengths are drawn from the exact ones
    and stretched to the minute's mean.
    """
    exact = sorted(
        (timing.scheduled_s, timing.prompt_tokens, max(1, timing.output_tokens))
        for beat in beats
        for timing in timings_of(beat)
        if timing.prompt_tokens > 0
    )
    if not exact:
        return []
    found = [*_earlier(exact, minutes, np.random.default_rng(0)), *exact][-most:]
    start_s = found[0][0]
    return [(round(at_s - start_s, 4), inputs, outputs) for at_s, inputs, outputs in found]


def _earlier(
    exact: Sequence[Row], minutes: Sequence[EngineLoad], rng: np.random.Generator
) -> list[Row]:
    sample = np.array([lengths for _, *lengths in exact], dtype=np.float64)
    return [
        (arrival.arrival_s, arrival.input_tokens, arrival.output_tokens)
        for minute in minutes
        if minute.start_s + SLOT_S <= exact[0][0]
        for arrival in draw_minute(slot_of(minute), minute.start_s, sample, rng)
    ]

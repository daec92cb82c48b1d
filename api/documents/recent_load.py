"""What an engine was asked for lately: when requests came and how long they were, nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from api.documents.control_state import timings_of
from policies.load_history import SLOT_S
from store.models import EngineLoad, Heartbeat

# Second, input tokens, output tokens.
Row = tuple[float, int, int]


def recent_requests(
    beats: Iterable[Heartbeat], minutes: Sequence[EngineLoad], *, most: int, seed: int = 0
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
    found = [*_earlier(exact, minutes, random.Random(seed)), *exact][-most:]  # nosec B311
    start_s = found[0][0]
    return [(round(at_s - start_s, 4), inputs, outputs) for at_s, inputs, outputs in found]


def _earlier(exact: Sequence[Row], minutes: Sequence[EngineLoad], rng: random.Random) -> list[Row]:
    mean_input = sum(inputs for _, inputs, _ in exact) / len(exact)
    mean_output = sum(outputs for _, _, outputs in exact) / len(exact)
    found: list[Row] = []
    for minute in minutes:
        if minute.start_s + SLOT_S > exact[0][0] or minute.requests < 1:
            continue
        longer = minute.input_tokens / minute.requests / mean_input
        more = minute.output_tokens / minute.requests / mean_output
        starts = sorted(rng.uniform(0, SLOT_S) for _ in range(round(minute.requests)))
        for start in starts:
            _, inputs, outputs = rng.choice(exact)
            found.append(
                (
                    minute.start_s + start,
                    max(1, round(inputs * longer)),
                    max(1, round(outputs * more)),
                )
            )
    return found

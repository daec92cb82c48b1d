"""Loads drawn by seed: waves, steps and ramps together, in other proportions each time.

Nobody chose them, so rules that were made for the named loads have no part in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.capacity_loads import Load, rate_table
from policies.load_history import SLOT_S

Rates = npt.NDArray[np.float64]

# Of each kind at most so many, of the load's own length at least and at most so much.
MOST_WAVES, MOST_STEPS, MOST_RAMPS = 3, 3, 2
STEP_SHARES = (0.05, 0.5)
RAMP_SHARES = (0.1, 0.5)
# The quietest and the busiest minute bring these shares of the top.
QUIETEST = (0.08, 0.4)
BUSIEST = (0.6, 1.0)


def list_mixes(folder: Path, seeds: Iterable[int], *, day_s: float, top_rps: float) -> list[Load]:
    """One load a seed, ``day_s`` long; ``top_rps`` is the most that the busiest minute brings."""
    return [
        Load(
            name=f"mix {seed}",
            spec=f"servegen:{rate_table(folder, f'mix-{seed}', rates)}",
            seed=seed,
            kind="drawn",
        )
        for seed in seeds
        if len(rates := top_rps * mix_rates(seed, round(day_s / SLOT_S)))
    ]


def mix_rates(seed: int, num_slots: int) -> Rates:
    """Rates f8[num_slots] by the minute, as shares of the top."""
    rng = np.random.default_rng(seed)
    at = np.arange(num_slots) / num_slots
    rates = np.zeros(num_slots)
    for waves in rng.permutation(MOST_WAVES)[: rng.integers(0, MOST_WAVES + 1)] + 1:
        rates += rng.uniform(0.1, 0.5) * np.cos(2 * np.pi * (waves * at + rng.uniform()))
    for _ in range(rng.integers(0, MOST_STEPS + 1)):
        begin, length = rng.uniform(0, 0.95), rng.uniform(*STEP_SHARES)
        rates += rng.uniform(-0.8, 0.8) * ((at >= begin) & (at < begin + length))
    for _ in range(rng.integers(0, MOST_RAMPS + 1)):
        begin, length = rng.uniform(0, 0.9), rng.uniform(*RAMP_SHARES)
        rates += rng.uniform(-0.8, 0.8) * np.clip((at - begin) / length, 0, 1)
    low, high = rng.uniform(*QUIETEST), rng.uniform(*BUSIEST)
    span = float(np.ptp(rates))
    if not span:
        return np.full(num_slots, high)
    return np.asarray(low + (high - low) * (rates - rates.min()) / span)

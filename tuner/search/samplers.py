"""The seam to Optuna's samplers, and the one a search uses (docs/search.md says why)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True)
class SamplerChoice:
    """A sampler and how it is asked.

    ``make`` makes one from a seed. ``is_conditional``: knobs that mean nothing beside others are
    left out instead of standing at a fixed value.
    """

    make: Callable[[int], BaseSampler]
    is_conditional: bool = False


# Observations before a model takes over from random draws; those of the prior count, too.
NUM_STARTUP = 6


def tpe(seed: int) -> BaseSampler:
    """All knobs modelled together."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=NUM_STARTUP, multivariate=True)


DEFAULT = SamplerChoice(make=tpe)

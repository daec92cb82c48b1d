"""How far step times may be off, by phase, load and tensor-parallel degree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

# Step times of what was never measured are off by this much more.
OUTSIDE_FACTOR = 1.5


class Phase(StrEnum):
    """What a step mostly does."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class StepErrorBand:
    """The 90 % half width of log(true / simulated) step times of ``phase``, from ``rows`` held-out
    runs with so many clients a replica and such a degree; both ends belong to it. ``unexplained``
    is the share of runs beside them whose error no step times explain. ``spreads`` are standard
    deviations of what step times explain, about the system's mean: each as likely as the others."""

    phase: Phase
    min_clients: int
    max_clients: int
    min_tp: int
    max_tp: int
    rows: int
    half_width: float
    unexplained: float = 0.0
    spreads: tuple[float, ...] = ()

    def holds(self, clients: float, tp: int) -> bool:
        """Whether a replica with this many requests at once and this degree is in it."""
        return self.min_clients <= clients <= self.max_clients and self.min_tp <= tp <= self.max_tp


@dataclass(frozen=True, kw_only=True)
class ServedGroup:
    """A model on a device whose runs were compared; ``model`` is its name."""

    device: str
    model: str


@dataclass(frozen=True, kw_only=True)
class StepErrors:
    """``bands``, the narrowest first, and what their runs span: a question outside is off by more
    than they say.

    ``groups`` are the models that were served, each with its device. ``unseen`` are bands for any
    other model: they hold how far groups differ from each other, too, as the ``compared`` of all
    systems showed it (one that two systems served counts twice). ``correlation`` is that of the
    errors of steps with prompts and of decodes in one run; ``prefill_mean`` and ``decode_mean``
    what they are on average, as logs: what is off in a system as such is off in one direction.
    """

    bands: tuple[StepErrorBand, ...]
    devices: tuple[str, ...]
    tp: tuple[int, ...]
    max_clients: int
    max_input_tokens: int
    groups: tuple[ServedGroup, ...] = ()
    unseen: tuple[StepErrorBand, ...] = ()
    compared: tuple[ServedGroup, ...] = ()
    correlation: float = 1.0
    prefill_mean: float = 0.0
    decode_mean: float = 0.0

    def band(self, phase: Phase, clients: float, tp: int) -> StepErrorBand:
        """The first band that holds the question, else the one of all runs."""
        return _first(self.bands, phase, clients, tp)

    def unseen_band(self, phase: Phase, clients: float, tp: int) -> StepErrorBand:
        """The same of a model that was never served: at least as wide. Its spreads are by load
        alone."""
        own = self.band(phase, clients, tp)
        if not self.unseen:
            return own
        found = _first(self.unseen, phase, clients, tp)
        wider = found if found.half_width > own.half_width else own
        return replace(wider, spreads=found.spreads)


def _first(bands: Sequence[StepErrorBand], phase: Phase, clients: float, tp: int) -> StepErrorBand:
    mine = [band for band in bands if band.phase is phase]
    held = (band for band in mine if band.holds(max(1.0, clients), tp))
    return next(held, mine[-1])

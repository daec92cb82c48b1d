"""Training rows of the step model: terms and seconds of profiled pieces and of served steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.spec.config import LinkEmulation
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import parse_plan
from engine.spec.steps import StepSample, StepShape
from tuner.profiling.profile import Profile
from tuner.step_model.operator_fit import FloatArray
from tuner.step_model.operators import OperatorTable
from tuner.step_model.residual import residual_row
from tuner.step_model.terms import TERM_NAMES, TermCounter

MAX_SAMPLES = 600
SERVING = "serving"


@dataclass(frozen=True, kw_only=True)
class TimedParts:
    """Seconds of a step's parts where they were timed apart, None where not. ``host_s`` is what the
    ranks waited for the host, or what of a lone step lay outside them."""

    communication_s: float | None = None
    sampling_s: float | None = None
    host_s: float | None = None

    def without_link(self, link_s: float) -> TimedParts:
        """The same without the declared delay of an emulated link, which is not fitted."""
        if self.communication_s is None:
            return self
        return replace(self, communication_s=max(0.0, self.communication_s - link_s))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Training rows: terms f8[rows, terms], seconds without link delay, features, group name, and
    the parts that were timed."""

    terms: FloatArray
    seconds: FloatArray
    features: list[tuple[float, ...]]
    groups: list[str]
    parts: list[TimedParts]

    def __len__(self) -> int:
        return len(self.seconds)

    def where(self, keep: list[bool]) -> Rows:
        """The rows marked True."""
        mask = np.array(keep)
        return Rows(
            terms=self.terms[mask],
            seconds=self.seconds[mask],
            features=[f for f, is_kept in zip(self.features, keep, strict=True) if is_kept],
            groups=[g for g, is_kept in zip(self.groups, keep, strict=True) if is_kept],
            parts=[p for p, is_kept in zip(self.parts, keep, strict=True) if is_kept],
        )


def piece_rows(profile: Profile, model: ModelConfig, table: OperatorTable) -> Rows:
    """Rows of the profile's pieces, grouped by plan."""
    builder = RowBuilder(DType(profile.dtype), profile_link(profile), model, table)
    for piece in profile.pieces:
        # What lay outside the ranks hides behind the step before when steps follow one another.
        on_ranks_s = piece.step_s - piece.dispatch_s
        timed = TimedParts(communication_s=piece.communication_s, host_s=piece.dispatch_s)
        builder.add(piece.plan, piece.num_layers, piece.shape, on_ranks_s, piece.plan, timed)
    return builder.rows()


def sample_rows(builder: RowBuilder, model: ModelConfig, samples: Sequence[StepSample]) -> Rows:
    """Rows of live steps, grouped apart from the pieces of the same plan."""
    for sample in samples:
        timed = TimedParts(
            communication_s=sample.communication_s,
            sampling_s=sample.sample_s,
            host_s=sample.bubble_s,
        )
        group = f"{SERVING} {sample.plan}"
        builder.add(sample.plan, model.num_layers, sample.shape, sample.step_s, group, timed)
    return builder.rows()


def profile_link(profile: Profile) -> LinkEmulation | None:
    """The link that was emulated while the profile was taken."""
    return LinkEmulation(**profile.link) if profile.link else None


class RowBuilder:
    """Collects rows; one term counter per (plan, layers)."""

    def __init__(
        self, dtype: DType, link: LinkEmulation | None, model: ModelConfig, table: OperatorTable
    ) -> None:
        self._dtype = dtype
        self._link = link
        self._model = model
        self._table = table
        self._counters: dict[tuple[str, int], TermCounter] = {}
        self._terms: list[tuple[float, ...]] = []
        self._seconds: list[float] = []
        self._features: list[tuple[float, ...]] = []
        self._groups: list[str] = []
        self._parts: list[TimedParts] = []

    def add(
        self,
        plan: str,
        num_layers: int,
        shape: StepShape,
        seconds: float,
        group: str,
        parts: TimedParts,
    ) -> None:
        """Add a step of ``plan`` on the model cut to ``num_layers``."""
        terms = self._counter(plan, num_layers).step(shape)
        left = seconds - terms.link_s
        if left <= 0:
            return
        self._terms.append(terms.row())
        self._seconds.append(left)
        self._features.append(residual_row(shape, parse_plan(plan).plan, num_layers, 1.0))
        self._groups.append(group)
        self._parts.append(parts.without_link(terms.link_s))

    def rows(self) -> Rows:
        return Rows(
            terms=np.array(self._terms, dtype=np.float64).reshape(-1, len(TERM_NAMES)),
            seconds=np.array(self._seconds, dtype=np.float64),
            features=self._features,
            groups=self._groups,
            parts=self._parts,
        )

    def _counter(self, text: str, num_layers: int) -> TermCounter:
        key = (text, num_layers)
        if key not in self._counters:
            plan = parse_plan(text).plan
            # A step that passes the stages alone keeps one stage's ranks at work at a time.
            self._counters[key] = TermCounter(
                self._table,
                model=replace(self._model, num_layers=num_layers),
                plan=plan,
                dtype=self._dtype,
                active_ranks=plan.stage_size,
                link=self._link,
            )
        return self._counters[key]


def usable(samples: Sequence[StepSample]) -> list[StepSample]:
    """Samples of one-stage plans (in a pipeline a step's span includes waiting), thinned out."""
    fitting = [s for s in samples if parse_plan(s.plan).plan.pp == 1 and s.shape.num_tokens]
    step = max(1, len(fitting) // MAX_SAMPLES)
    return fitting[::step]


def joined(a: Rows, b: Rows) -> Rows:
    """Both, one after the other."""
    return Rows(
        terms=np.vstack([a.terms, b.terms]),
        seconds=np.concatenate([a.seconds, b.seconds]),
        features=a.features + b.features,
        groups=a.groups + b.groups,
        parts=a.parts + b.parts,
    )

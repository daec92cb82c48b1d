"""Step timers over a fitted model: fast, deterministic, free of torch and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

from engine.config import DType, LinkEmulation, ModelConfig
from engine.executors.protocol import StepTimer
from engine.plan import ParallelPlan
from engine.steps import StepShape
from tuner.operators import OperatorTable
from tuner.residual import Residual, residual_row
from tuner.terms import TERM_NAMES, StepTerms, TermCounter


class StepModelTimer:
    """A :class:`engine.executors.protocol.StepTimer` of one replica of ``plan``."""

    def __init__(
        self,
        *,
        operators: OperatorTable,
        coefficients: dict[str, float],
        factor: float,
        residual: Residual | None,
        host: Callable[[StepShape], float],
        model: ModelConfig,
        plan: ParallelPlan,
        dtype: DType,
        link: LinkEmulation | None,
    ) -> None:
        self._terms = TermCounter(
            operators,
            model=model,
            plan=plan,
            dtype=dtype,
            active_ranks=plan.world_size,
            link=link,
        )
        self._coefficients = tuple(coefficients[name] for name in TERM_NAMES)
        self._factor = factor
        self._residual = residual
        self._host = host
        self._plan = plan.replica
        self._num_layers = model.num_layers

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        stages = [self._terms.stage(shape, stage) for stage in range(self._plan.pp)]
        rooflines = [self._roofline_s(terms) for terms in stages]
        factor = self._factor * self._residual_factor(shape, sum(rooflines))
        return tuple(
            factor * roofline + terms.link_s
            for roofline, terms in zip(rooflines, stages, strict=True)
        )

    def host_seconds(self, shape: StepShape) -> float:
        return self._host(shape)

    def _roofline_s(self, terms: StepTerms) -> float:
        return sum(c * x for c, x in zip(self._coefficients, terms.row(), strict=True))

    def _residual_factor(self, shape: StepShape, roofline_s: float) -> float:
        if self._residual is None or roofline_s <= 0:
            return 1.0
        return self._residual.factor(residual_row(shape, self._plan, self._num_layers, roofline_s))


class ScaledTimer:
    """Another timer with its step times multiplied: the ends of a prediction interval."""

    def __init__(self, inner: StepTimer, factor: float) -> None:
        self._inner = inner
        self._factor = factor

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return tuple(self._factor * s for s in self._inner.stage_seconds(shape))

    def host_seconds(self, shape: StepShape) -> float:
        return self._factor * self._inner.host_seconds(shape)

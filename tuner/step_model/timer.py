"""Step timers over a fitted model: fast, deterministic, free of torch and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from msgspec import structs

from engine.executors.protocol import StepTimer
from engine.spec.config import LinkEmulation
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.backends import ServedSeconds
from tuner.step_model.operators import OperatorTable
from tuner.step_model.residual import Residual, residual_row
from tuner.step_model.terms import TERM_NAMES, StepTerms, TermCounter


@dataclass(frozen=True, kw_only=True)
class _StagePart:
    """A stage's time without attention; and what is exact or added: link delay, serving."""

    roofline_s: float
    added_s: float


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
        added: Callable[[StepShape], tuple[float, ...]],
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
        self._prefill = coefficients["prefill_attention_s"]
        self._decode = coefficients["decode_attention_s"]
        self._seen: dict[tuple[Mode, int, int, int], tuple[_StagePart, ...]] = {}
        self._factor = factor
        self._residual = residual
        self._host = host
        self._added = added
        self._plan = plan.replica
        self._num_layers = model.num_layers

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        key = (shape.mode, shape.num_tokens, shape.num_seqs, shape.num_sampled)
        fixed = self._seen.get(key)
        if fixed is None:
            fixed = self._seen[key] = self._without_attention(shape)
        attention = self._terms.attention(shape)
        per_layer = self._prefill * attention.prefill_s + self._decode * attention.decode_s
        rooflines = [
            part.roofline_s + layers * per_layer
            for part, layers in zip(fixed, self._terms.layers_of_stage, strict=True)
        ]
        factor = self._factor * self._residual_factor(shape, sum(rooflines))
        return tuple(
            factor * roofline + part.added_s
            for roofline, part in zip(rooflines, fixed, strict=True)
        )

    def _without_attention(self, shape: StepShape) -> tuple[_StagePart, ...]:
        """What depends on sizes and mode only; asked anew for every new size."""
        alike = self._terms.alike
        terms = {stage: self._terms.stage(shape, stage) for stage in dict.fromkeys(alike)}
        roofline_s = {
            stage: self._roofline_s(replace(term, prefill_attention_s=0.0, decode_attention_s=0.0))
            for stage, term in terms.items()
        }
        return tuple(
            _StagePart(roofline_s=roofline_s[stage], added_s=terms[stage].link_s + added_s)
            for stage, added_s in zip(alike, self._added(shape), strict=True)
        )

    def host_seconds(self, shape: StepShape) -> float:
        return self._host(shape)

    def breakdown(self, shape: StepShape) -> ServedSeconds:
        """Where the time of one step goes, all stages added up. What the fit adds per layer, per
        sequence and per step counts as launching; the host's work is not told apart."""
        terms = self._terms.step(shape)
        spent = dict(
            zip(
                TERM_NAMES,
                (c * x for c, x in zip(self._coefficients, terms.row(), strict=True)),
                strict=True,
            )
        )
        factor = self._factor * self._residual_factor(shape, sum(spent.values()))
        host_s = self._host(shape)
        overheads_s = factor * (spent["layers"] + spent["seqs"] + spent["steps"])
        return ServedSeconds(
            gemm_s=factor * spent["gemm_s"],
            attention_s=factor * (spent["prefill_attention_s"] + spent["decode_attention_s"]),
            elementwise_s=factor * spent["elementwise_s"],
            head_s=factor * (spent["head_s"] + spent["sampled"]),
            communication_s=factor * (spent["communication_s"] + spent["collectives"])
            + terms.link_s,
            launch_s=overheads_s + sum(self._added(shape)),
            schedule_s=host_s,
            input_s=0.0,
            sample_s=0.0,
            output_s=0.0,
            exposed_s=host_s,
        )

    def _roofline_s(self, terms: StepTerms) -> float:
        return sum(c * x for c, x in zip(self._coefficients, terms.row(), strict=True))

    def _residual_factor(self, shape: StepShape, roofline_s: float) -> float:
        if self._residual is None or roofline_s <= 0:
            return 1.0
        return self._residual.factor(residual_row(shape, self._plan, self._num_layers, roofline_s))


@dataclass(frozen=True, kw_only=True)
class StepScale:
    """What step times are multiplied by: one of prompts, and one of decodes alone."""

    prefill: float = 1.0
    decode: float = 1.0

    @property
    def is_one(self) -> bool:
        return self.prefill == 1 and self.decode == 1

    def times(self, factor: float) -> StepScale:
        """Both, ``factor`` times as much."""
        return StepScale(prefill=self.prefill * factor, decode=self.decode * factor)

    def of(self, shape: StepShape) -> float:
        """A mixed step's factor lies between, by the share of its tokens that are of prompts."""
        if self.prefill == self.decode or shape.num_prefill_tokens == 0:
            return self.decode
        share = shape.num_prefill_tokens / shape.num_tokens
        return self.decode + (self.prefill - self.decode) * share


class ScaledTimer:
    """Another timer with its step times multiplied: the ends of a prediction interval."""

    def __init__(self, inner: StepTimer, factor: float | StepScale) -> None:
        self.inner = inner
        if not isinstance(factor, StepScale):
            factor = StepScale(prefill=factor, decode=factor)
        self.scale = factor

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        factor = self.scale.of(shape)
        return tuple(factor * s for s in self.inner.stage_seconds(shape))

    def host_seconds(self, shape: StepShape) -> float:
        return self.scale.of(shape) * self.inner.host_seconds(shape)


class FastestTimer:
    """Every step as quick as in its fastest mode, whatever its own: the per-step oracle.

    It looks at one step at a time, so another order of steps might be quicker still.
    """

    def __init__(self, inner: StepTimer, modes: tuple[Mode, ...]) -> None:
        self._inner = inner
        self._modes = modes

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return self._inner.stage_seconds(self._fastest(shape))

    def host_seconds(self, shape: StepShape) -> float:
        return self._inner.host_seconds(self._fastest(shape))

    def _fastest(self, shape: StepShape) -> StepShape:
        shapes = [structs.replace(shape, mode=mode) for mode in self._modes]
        return min(shapes, key=lambda own: sum(self._inner.stage_seconds(own)))

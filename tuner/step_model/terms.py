"""The terms of a step's time: operator seconds from the table, and counts of fixed costs."""

from __future__ import annotations

from dataclasses import dataclass, fields

from engine.spec.config import LinkEmulation
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.step_model.operators import CollectiveLaw, Curve, OperatorTable
from tuner.work.counts import Collective, CollectiveKind, StageWork, WorkCounter


@dataclass(frozen=True, kw_only=True)
class StepTerms:
    """What the fitted coefficients multiply, for one stage. ``*_s`` are operator seconds.

    ``link_s`` is the declared delay of an emulated link: exact, so never fitted.
    """

    gemm_s: float
    head_s: float
    prefill_attention_s: float
    decode_attention_s: float
    elementwise_s: float
    communication_s: float
    layers: float
    collectives: float
    seqs: float
    sampled: float
    steps: float
    link_s: float = 0.0

    def row(self) -> tuple[float, ...]:
        """The fitted terms in the order of :data:`TERM_NAMES`."""
        return tuple(getattr(self, name) for name in TERM_NAMES)

    def __add__(self, other: StepTerms) -> StepTerms:
        return StepTerms(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


TERM_NAMES = tuple(f.name for f in fields(StepTerms) if f.name != "link_s")
OPERATOR_TERMS = tuple(name for name in TERM_NAMES if name.endswith("_s"))


@dataclass(frozen=True, kw_only=True)
class AttentionSeconds:
    """One layer's attention, by kind of row."""

    prefill_s: float
    decode_s: float


class TermCounter:
    """Terms of the steps of one model under one plan, with ``active_ranks`` ranks at work."""

    def __init__(
        self,
        table: OperatorTable,
        *,
        model: ModelConfig,
        plan: ParallelPlan,
        dtype: DType,
        active_ranks: int,
        link: LinkEmulation | None = None,
    ) -> None:
        self._plan = plan.replica
        self._work = WorkCounter(model, self._plan, dtype, ends_early=True)
        self._hidden = model.hidden_size
        self._link = link
        self._table = table
        self._prefill = table.prefill_law(active_ranks)
        self._decode = table.decode_law(active_ranks)
        self._elementwise = table.elementwise_law(active_ranks)
        self._laws: dict[tuple[CollectiveKind, int], CollectiveLaw] = {}
        self._active_ranks = active_ranks
        self._layer_curves: dict[Mode, tuple[Curve, ...]] = {}
        head = self._work.head
        self._head_curve = table.gemm_curve(head, active_ranks)

    @property
    def alike(self) -> tuple[int, ...]:
        """For each stage the first one that does equal work."""
        return self._work.alike

    def step(self, shape: StepShape) -> StepTerms:
        """Terms of a step that passes all stages one after the other."""
        terms = self.stage(shape, 0)
        for stage in range(1, self._plan.pp):
            terms = terms + self.stage(shape, stage)
        return terms

    def stage(self, shape: StepShape, stage: int) -> StepTerms:
        """Terms of one pipeline stage."""
        work = self._work.stage(shape, stage)
        layers = work.layers
        attention = self.attention(shape)
        is_first = stage == 0
        return StepTerms(
            gemm_s=self._gemm_s(work, shape.mode),
            head_s=self._head_curve.at(work.sampled) if work.sampled else 0.0,
            prefill_attention_s=layers * attention.prefill_s,
            decode_attention_s=layers * attention.decode_s,
            elementwise_s=self._elementwise_s(work),
            communication_s=sum(self._law(c).seconds(c) for c in work.collectives),
            layers=layers,
            collectives=sum(c.count for c in work.collectives),
            seqs=shape.num_seqs if is_first else 0.0,
            sampled=work.sampled,
            steps=float(is_first),
            link_s=sum(self._link_s(c) for c in work.collectives) if self._link else 0.0,
        )

    def attention(self, shape: StepShape) -> AttentionSeconds:
        """Attention of one layer: the only terms that change while a batch only decodes."""
        width = self._work.attention_width
        num_prefills = shape.num_seqs - shape.num_decode_tokens
        return AttentionSeconds(
            prefill_s=self._prefill.seconds(num_prefills, shape.prefill_attention_pairs, width),
            decode_s=self._decode.seconds(
                shape.num_decode_tokens, shape.decode_context_tokens, width
            ),
        )

    @property
    def layers_of_stage(self) -> tuple[int, ...]:
        return self._work.layers_of_stage

    def _curves(self, mode: Mode) -> tuple[Curve, ...]:
        """Seconds of the products of a layer in ``mode``, over rows."""
        curves = self._layer_curves.get(mode)
        if curves is None:
            gemms = self._work.layer(mode).all
            curves = tuple(self._table.gemm_curve(gemm, self._active_ranks) for gemm in gemms)
            self._layer_curves[mode] = curves
        return curves

    def _gemm_s(self, work: StageWork, mode: Mode) -> float:
        """The last layer of all multiplies most rows for their keys and values only."""
        qkv, *others = self._curves(mode)
        whole_s = work.layers * qkv.at(work.rows)
        whole_s += (work.layers - 1) * sum(curve.at(work.rows) for curve in others)
        finished = work.finished_rows
        return whole_s + (sum(curve.at(finished) for curve in others) if finished else 0.0)

    def _elementwise_s(self, work: StageWork) -> float:
        law = self._elementwise
        gated = (work.layers - 1) * work.rows + work.finished_rows
        channels = work.layers * work.rows * self._hidden + gated * work.layer.down.k
        return work.layers * law.per_call_s + law.per_channel_s * channels

    def _law(self, collective: Collective) -> CollectiveLaw:
        key = (collective.kind, collective.ranks)
        law = self._laws.get(key)
        if law is None:
            law = self._laws[key] = self._table.collective_law(*key)
        return law

    def _link_s(self, collective: Collective) -> float:
        assert self._link is not None, "asked for the delay of no link"
        return collective.count * self._link.delay_s(sent_bytes(collective))


def sent_bytes(collective: Collective) -> int:
    """Bytes one rank sends over its link, as the usual algorithms move them."""
    ranks, num_bytes = collective.ranks, collective.num_bytes
    match collective.kind:
        case CollectiveKind.ALL_REDUCE:
            return int(2 * num_bytes * (ranks - 1) / ranks)
        case CollectiveKind.ALL_TO_ALL:
            return int(num_bytes * (ranks - 1) / ranks)
        case CollectiveKind.ALL_GATHER:
            return int(num_bytes * (ranks - 1))
        case CollectiveKind.SEND:
            return int(num_bytes)

"""Fitting of the step model: non-negative roofline first, then a residual only if it helps.

1. Coefficients of the terms on the profile's pieces (non-negative, relative error, pulled
   towards "operators add up": 1 for operator seconds, 0 for fixed costs).
2. One serving factor from the one-rank serving run: what a live step costs over the same step
   in the profile (cold caches, the loop's own thread). It is applied to every plan.
3. A monotone boosted residual in log space, active only where it beats step 1 and 2 on plans
   that neither has seen.
4. Split-conformal intervals from the same out-of-fold errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from engine.config import DType, LinkEmulation, ModelConfig
from engine.plan import parse_plan
from engine.steps import StepSample, StepShape
from tuner.boosting import boosted, export_trees
from tuner.cost_model import ErrorReport, GroupError, HostCost, StepModel
from tuner.errors import TunerError
from tuner.operator_fit import FloatArray, non_negative_fit, operator_table
from tuner.operators import OperatorTable
from tuner.profile import Profile
from tuner.residual import MONOTONE, Residual, residual_row
from tuner.terms import OPERATOR_TERMS, TERM_NAMES, TermCounter

PRIOR_WEIGHT = 0.02
MAX_SAMPLES = 600
COVERAGE = 0.9
SERVING = "serving"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Training rows: terms f8[rows, terms], seconds without link delay, features, group name."""

    terms: FloatArray
    seconds: FloatArray
    features: list[tuple[float, ...]]
    groups: list[str]

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
        )


def fit_step_model(
    profile: Profile,
    model: ModelConfig,
    *,
    samples: tuple[StepSample, ...] | None = None,
    seed: int = 0,
) -> StepModel:
    """The step model of a profile of ``model``; ``samples`` (default: the profile's own) are
    step samples of live serving runs, of any plans.

    Raises:
        TunerError: the profile holds too little to fit.
    """
    table = operator_table(profile)
    served = _usable(profile.samples if samples is None else samples)
    pieces = _piece_rows(profile, model, table)
    serving = _sample_rows(profile, model, table, served)
    base = pieces if len(pieces) else serving
    if not len(base):
        raise TunerError("the profile holds neither pieces nor samples: nothing to fit")
    coefficients = _fit_coefficients(base)
    factor = _serving_factor(serving, coefficients) if len(pieces) else 1.0
    everything = _joined(pieces, serving)
    report, residual = _fit_residual(everything, coefficients, factor, seed)
    return StepModel(
        machine=profile.fingerprint,
        model=profile.model,
        dtype=DType(profile.dtype),
        operators=table,
        coefficients=dict(zip(TERM_NAMES, map(float, coefficients), strict=True)),
        serving_factor=factor,
        host=_fit_host(served),
        residual=residual,
        error=replace(report, num_pieces=len(pieces), num_samples=len(serving)),
        link=LinkEmulation(**profile.link) if profile.link else None,
        fitted_plans=tuple(sorted({piece.plan for piece in profile.pieces})),
        served_plans=tuple(sorted({sample.plan for sample in served})),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


# -- rows ----------------------------------------------------------------------------------------


def _piece_rows(profile: Profile, model: ModelConfig, table: OperatorTable) -> Rows:
    builder = _RowBuilder(profile, model, table)
    for piece in profile.pieces:
        builder.add(piece.plan, piece.num_layers, piece.shape, piece.step_s, group=piece.plan)
    return builder.rows()


def _sample_rows(
    profile: Profile, model: ModelConfig, table: OperatorTable, samples: list[StepSample]
) -> Rows:
    builder = _RowBuilder(profile, model, table)
    for sample in samples:
        group = f"{SERVING} {sample.plan}"
        builder.add(sample.plan, model.num_layers, sample.shape, sample.step_s, group=group)
    return builder.rows()


class _RowBuilder:
    """Collects rows; one term counter per (plan, layers)."""

    def __init__(self, profile: Profile, model: ModelConfig, table: OperatorTable) -> None:
        self._dtype = DType(profile.dtype)
        self._link = LinkEmulation(**profile.link) if profile.link else None
        self._model = model
        self._table = table
        self._counters: dict[tuple[str, int], TermCounter] = {}
        self._terms: list[tuple[float, ...]] = []
        self._seconds: list[float] = []
        self._features: list[tuple[float, ...]] = []
        self._groups: list[str] = []

    def add(
        self, plan: str, num_layers: int, shape: StepShape, seconds: float, *, group: str
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

    def rows(self) -> Rows:
        return Rows(
            terms=np.array(self._terms, dtype=np.float64).reshape(-1, len(TERM_NAMES)),
            seconds=np.array(self._seconds, dtype=np.float64),
            features=self._features,
            groups=self._groups,
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


def _usable(samples: tuple[StepSample, ...]) -> list[StepSample]:
    """Samples of one-stage plans (in a pipeline a step's span includes waiting), thinned out."""
    fitting = [s for s in samples if parse_plan(s.plan).plan.pp == 1 and s.shape.num_tokens]
    step = max(1, len(fitting) // MAX_SAMPLES)
    return fitting[::step]


def _joined(a: Rows, b: Rows) -> Rows:
    return Rows(
        terms=np.vstack([a.terms, b.terms]),
        seconds=np.concatenate([a.seconds, b.seconds]),
        features=a.features + b.features,
        groups=a.groups + b.groups,
    )


# -- roofline ------------------------------------------------------------------------------------


def _fit_coefficients(rows: Rows) -> FloatArray:
    prior = np.array([float(name in OPERATOR_TERMS) for name in TERM_NAMES])
    return non_negative_fit(rows.terms, rows.seconds, prior=prior, prior_weight=PRIOR_WEIGHT)


def _serving_factor(serving: Rows, coefficients: FloatArray) -> float:
    """Total live seconds over total predicted ones, without the slowest and fastest percent."""
    if not len(serving):
        return 1.0
    predicted = serving.terms @ coefficients
    ratio = serving.seconds / predicted
    low, high = np.percentile(ratio, (1, 99))
    kept = (ratio >= low) & (ratio <= high)
    return float(serving.seconds[kept].sum() / predicted[kept].sum())


def _fit_host(samples: list[StepSample]) -> HostCost:
    """Seconds between the end of a step and the submission of the next, by sequences in it."""
    rows = [(s.shape.num_seqs, s.schedule_s + s.output_s) for s in samples]
    if not rows:
        return HostCost(per_step_s=0.0, per_seq_s=0.0)
    x = np.array([[1.0, n] for n, _ in rows], dtype=np.float64)
    per_step, per_seq = non_negative_fit(x, np.array([max(s, 1e-7) for _, s in rows]))
    return HostCost(per_step_s=float(per_step), per_seq_s=float(per_seq))


# -- residual and errors -------------------------------------------------------------------------


def _fit_residual(
    rows: Rows, coefficients: FloatArray, factor: float, seed: int
) -> tuple[ErrorReport, Residual | None]:
    """Judge roofline and residual on plans left out, keep the residual if it is the better."""
    roofline_error = np.zeros(len(rows))
    residual_error = np.zeros(len(rows))
    plans = sorted({_plan_of(group) for group in rows.groups})
    for plan in plans:
        is_held = np.array([_plan_of(g) == plan for g in rows.groups])
        train = rows.where((~is_held).tolist()) if len(plans) > 1 else rows
        piece_rows = train.where([not g.startswith(SERVING) for g in train.groups])
        fold = _fit_coefficients(piece_rows) if len(piece_rows) and len(plans) > 1 else coefficients
        roofline_error[is_held] = _log_error(rows, fold, factor)[is_held]
        trees = _boost(train, fold, factor, seed)
        held = rows.where(is_held.tolist())
        residual_error[is_held] = roofline_error[is_held] - [
            trees.factor_log(row) for row in _features(held, fold)
        ]
    roofline_mape, residual_mape = _mape(roofline_error), _mape(residual_error)
    is_active = len(plans) > 1 and residual_mape < roofline_mape
    error = residual_error if is_active else roofline_error
    report = ErrorReport(
        num_pieces=0,
        num_samples=0,
        roofline_mape=roofline_mape,
        residual_mape=residual_mape,
        is_residual_active=is_active,
        step_interval=conformal(np.abs(error)),
        plan_interval=_plan_interval(rows, error),
        groups=_group_errors(rows, error),
    )
    return report, _boost(rows, coefficients, factor, seed) if is_active else None


def _log_error(rows: Rows, coefficients: FloatArray, factor: float) -> FloatArray:
    """log(measured / predicted); the serving factor belongs to serving rows only."""
    is_live = np.array([g.startswith(SERVING) for g in rows.groups])
    predicted = (rows.terms @ coefficients) * np.where(is_live, factor, 1.0)
    return np.asarray(np.log(rows.seconds / np.maximum(predicted, 1e-12)))


def _features(rows: Rows, coefficients: FloatArray) -> list[tuple[float, ...]]:
    """Residual features with the roofline's own prediction filled in."""
    rooflines = np.log(np.maximum(rows.terms @ coefficients, 1e-12))
    return [(*f[:4], float(r), *f[5:]) for f, r in zip(rows.features, rooflines, strict=True)]


def _boost(rows: Rows, coefficients: FloatArray, factor: float, seed: int) -> Residual:
    features = np.array(_features(rows, coefficients))
    target = _log_error(rows, coefficients, factor)
    fitted = boosted(monotone=MONOTONE, seed=seed).fit(features, target)
    return Residual(
        trees=export_trees(fitted),
        low=tuple(map(float, features.min(axis=0))),
        high=tuple(map(float, features.max(axis=0))),
    )


def _plan_of(group: str) -> str:
    return group.removeprefix(f"{SERVING} ")


def _mape(log_errors: FloatArray) -> float:
    """Mean absolute error relative to the measured value."""
    return float(np.abs(1.0 - np.exp(-log_errors)).mean())


def conformal(scores: FloatArray, coverage: float = COVERAGE) -> float:
    """The split-conformal quantile of absolute scores (finite-sample corrected)."""
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def _group_errors(rows: Rows, error: FloatArray) -> tuple[GroupError, ...]:
    groups = []
    for name in sorted(set(rows.groups)):
        mask = np.array([g == name for g in rows.groups])
        measured = rows.seconds[mask]
        predicted = measured * np.exp(-error[mask])
        groups.append(
            GroupError(
                plan=name,
                num_steps=int(mask.sum()),
                mape=_mape(error[mask]),
                bias=float(np.log(measured.sum() / predicted.sum())),
            )
        )
    return tuple(groups)


def _plan_interval(rows: Rows, error: FloatArray) -> float:
    return max(abs(group.bias) for group in _group_errors(rows, error))

"""Fitting of the step model: non-negative roofline first, then a residual only if it helps.

1. Coefficients of the terms on the profile's pieces (non-negative, relative error, pulled
   towards "operators add up": 1 for operator seconds, 0 for fixed costs).
2. One serving factor from the one-rank serving run: what a live step costs over the same step
   in the profile (cold caches, the loop's own thread). It is applied to every plan. The same run
   gives the costs beside the steps: inputs on the rank, CPU time of engine and messages.
3. A monotone boosted residual in log space, active only where it beats step 1 and 2 on plans
   that neither has seen.
4. Split-conformal intervals from the same out-of-fold errors.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from engine.spec.model import DType, ModelConfig
from engine.spec.steps import StepSample
from tuner.profiling.profile import Profile
from tuner.spec.errors import TunerError
from tuner.step_model.boosting import boosted, export_trees, one_thread
from tuner.step_model.model import (
    NO_COST,
    ErrorReport,
    GroupError,
    HostCost,
    ServingCost,
    StepModel,
)
from tuner.step_model.operator_fit import FloatArray, non_negative_fit, operator_table
from tuner.step_model.part_errors import plan_of, with_parts
from tuner.step_model.residual import MONOTONE, Residual
from tuner.step_model.terms import OPERATOR_TERMS, TERM_NAMES
from tuner.step_model.training_rows import (
    SERVING,
    RowBuilder,
    Rows,
    joined,
    piece_rows,
    profile_link,
    sample_rows,
    usable,
)

PRIOR_WEIGHT = 0.02
COVERAGE = 0.9


def fit_step_model(profile: Profile, model: ModelConfig, *, seed: int = 0) -> StepModel:
    """The step model of a profile of ``model``, and of the steps of live runs that it holds.

    Raises:
        TunerError: the profile holds too little to fit.
    """
    table = operator_table(profile)
    served = usable(profile.samples)
    pieces = piece_rows(profile, model, table)
    builder = RowBuilder(DType(profile.dtype), profile_link(profile), model, table)
    serving = sample_rows(builder, model, served)
    base = pieces if len(pieces) else serving
    if not len(base):
        raise TunerError("the profile holds neither pieces nor samples: nothing to fit")
    coefficients = _fit_coefficients(base)
    factor = _serving_factor(serving, coefficients) if len(pieces) else 1.0
    everything = joined(pieces, serving)
    report, residual = _fit_residual(everything, coefficients, factor, seed)
    report = with_parts(report, everything, _fit_coefficients, coefficients, factor)
    return StepModel(
        machine=profile.fingerprint,
        model=profile.model,
        dtype=DType(profile.dtype),
        operators=table,
        coefficients=dict(zip(TERM_NAMES, map(float, coefficients), strict=True)),
        serving_factor=factor,
        host=_fit_host(served),
        serving=_fit_serving(profile, served),
        residual=residual,
        error=replace(report, num_pieces=len(pieces), num_samples=len(serving)),
        link=profile_link(profile),
        fitted_plans=tuple(sorted({piece.plan for piece in profile.pieces})),
        served_plans=tuple(sorted({sample.plan for sample in served})),
        weights=profile.weights,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
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
    """Seconds that ranks wait for the host before a step, by sequences in it. Work that the engine
    hides behind the step before costs nothing.
    """
    return _fit_cost([(1, s.shape.num_seqs, s.bubble_s) for s in samples])


def _fit_serving(profile: Profile, samples: list[StepSample]) -> ServingCost:
    """From the one-rank run come inputs (by the rank's clock) and CPU time (by CPU clocks); from
    the pieces comes what a step alone took outside the ranks.
    """
    work = [w for w in profile.host_work if w.num_steps]
    dispatch = _fit_cost([(1, p.shape.num_seqs, p.dispatch_s) for p in profile.pieces])
    return ServingCost(
        prepare=_fit_cost([(1, s.shape.num_seqs, s.input_exposed_s) for s in samples]),
        host_cpu=_fit_cost([(w.num_steps, w.num_rows, w.host_s) for w in work]),
        message_cpu=_fit_cost([(w.num_steps, w.num_rows, w.rank_s) for w in work]),
        launch=dispatch + _fit_cost([(1, s.shape.num_seqs, s.schedule_s) for s in samples]),
    )


def _fit_cost(rows: list[tuple[int, int, float]]) -> HostCost:
    """Seconds per step and per sequence, from (steps, sequences in them, seconds)."""
    if not rows:
        return NO_COST
    x = np.array([[steps, seqs] for steps, seqs, _ in rows], dtype=np.float64)
    per_step, per_seq = non_negative_fit(x, np.array([max(s, 1e-7) for _, _, s in rows]))
    return HostCost(per_step_s=float(per_step), per_seq_s=float(per_seq))


# -- residual and errors -------------------------------------------------------------------------


def _fit_residual(
    rows: Rows, coefficients: FloatArray, factor: float, seed: int
) -> tuple[ErrorReport, Residual | None]:
    """Judge roofline and residual on plans left out, keep the residual if it is the better."""
    roofline_error = np.zeros(len(rows))
    residual_error = np.zeros(len(rows))
    plans = sorted({plan_of(group) for group in rows.groups})
    for plan in plans:
        is_held = np.array([plan_of(g) == plan for g in rows.groups])
        train = rows.where((~is_held).tolist()) if len(plans) > 1 else rows
        cut = train.where([not g.startswith(SERVING) for g in train.groups])
        fold = _fit_coefficients(cut) if len(cut) and len(plans) > 1 else coefficients
        roofline_error[is_held] = _log_error(rows, fold, factor)[is_held]
        trees = _boost(train, fold, factor, seed)
        held = rows.where(is_held.tolist())
        residual_error[is_held] = roofline_error[is_held] - [
            trees.factor_log(row) for row in _features(held, fold)
        ]
    roofline_mape, residual_mape = mape(roofline_error), mape(residual_error)
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
        groups=group_errors(rows, error),
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
    with one_thread():
        fitted = boosted(monotone=MONOTONE, seed=seed).fit(features, target)
    return Residual(
        trees=export_trees(fitted),
        low=tuple(map(float, features.min(axis=0))),
        high=tuple(map(float, features.max(axis=0))),
    )


def mape(log_errors: FloatArray) -> float:
    """Mean absolute error relative to the measured value."""
    return float(np.abs(1.0 - np.exp(-log_errors)).mean())


def conformal(scores: FloatArray) -> float:
    """The split-conformal quantile of absolute scores that covers ``COVERAGE`` of them
    (finite-sample corrected)."""
    rank = int(np.ceil((len(scores) + 1) * COVERAGE))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def group_errors(rows: Rows, error: FloatArray) -> tuple[GroupError, ...]:
    """Each group's errors, by name; ``error`` f8[rows] is log(measured / predicted)."""
    groups = []
    for name in sorted(set(rows.groups)):
        mask = np.array([g == name for g in rows.groups])
        measured = rows.seconds[mask]
        predicted = measured * np.exp(-error[mask])
        groups.append(
            GroupError(
                plan=name,
                num_steps=int(mask.sum()),
                mape=mape(error[mask]),
                bias=float(np.log(measured.sum() / predicted.sum())),
            )
        )
    return tuple(groups)


def _plan_interval(rows: Rows, error: FloatArray) -> float:
    return max(abs(group.bias) for group in group_errors(rows, error))

"""From profile rows to an operator table: curves where measured, laws for what lies between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tuner.profiling.profile import AttentionTime, ElementwiseTime, GemmTime, Profile
from tuner.spec.errors import TunerError
from tuner.step_model.operators import (
    AttentionLaw,
    CollectiveCurve,
    Curve,
    ElementwiseLaw,
    GemmCurve,
    GemmLaw,
    OperatorTable,
)

FloatArray = npt.NDArray[np.float64]
RowT = TypeVar("RowT", GemmTime, AttentionTime, ElementwiseTime)


def non_negative_fit(
    x: FloatArray, y: FloatArray, *, prior: FloatArray | None = None, prior_weight: float = 0.0
) -> FloatArray:
    """Non-negative coefficients with the least squared *relative* error of ``x @ c`` against y.

    ``x`` f8[rows, terms], ``y`` f8[rows] > 0. ``prior`` f8[terms] pulls each coefficient, as if
    ``prior_weight`` of the rows said so.
    """
    from sklearn.linear_model import LinearRegression

    design, target = x / y[:, None], np.ones(len(y))
    if prior is not None:
        scale = np.abs(design).mean(axis=0) * np.sqrt(prior_weight * len(y))
        design = np.vstack([design, np.diag(scale)])
        target = np.concatenate([target, scale * prior])
    # Columns of very different size would stop the solver early.
    norms = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    fit = LinearRegression(positive=True, fit_intercept=False).fit(design / norms, target)
    coefficients: FloatArray = fit.coef_ / norms
    return coefficients


def operator_table(profile: Profile) -> OperatorTable:
    """The table of everything the profile measured.

    Raises:
        TunerError: a kind of operator is missing altogether.
    """
    for name in ("gemms", "attentions", "elementwise"):
        if not getattr(profile, name):
            raise TunerError(f"the profile holds no {name}; measure it again with this version")
    decodes = [row for row in profile.attentions if row.query == 1]
    prefills = [row for row in profile.attentions if row.query > 1]
    return OperatorTable(
        gemms=_gemm_curves(profile.gemms),
        gemm_laws=tuple(_gemm_law(a, rows) for a, rows in _by_active(profile.gemms)),
        prefill_laws=tuple(_attention_law(a, rows) for a, rows in _by_active(prefills)),
        decode_laws=tuple(_attention_law(a, rows) for a, rows in _by_active(decodes)),
        elementwise_laws=tuple(
            _elementwise_law(a, rows) for a, rows in _by_active(profile.elementwise)
        ),
        collectives=_collective_curves(profile),
    )


def _by_active(rows: Iterable[RowT]) -> list[tuple[int, list[RowT]]]:
    groups: dict[int, list[RowT]] = defaultdict(list)
    for row in rows:
        groups[row.active_ranks].append(row)
    return sorted(groups.items())


def _gemm_curves(rows: Iterable[GemmTime]) -> tuple[GemmCurve, ...]:
    groups: dict[tuple[int, int, int], list[GemmTime]] = defaultdict(list)
    for row in rows:
        groups[row.n, row.k, row.active_ranks].append(row)
    return tuple(
        GemmCurve(n=n, k=k, active_ranks=active, curve=_curve([(r.m, r.seconds) for r in group]))
        for (n, k, active), group in sorted(groups.items())
    )


def _gemm_law(active_ranks: int, rows: Sequence[GemmTime]) -> GemmLaw:
    x = np.array(
        [[1.0, 2.0 * r.m * r.n * r.k, r.n * r.k, r.m * (r.n + r.k)] for r in rows], dtype=np.float64
    )
    call, flop, weight, activation = non_negative_fit(x, np.array([r.seconds for r in rows]))
    return GemmLaw(
        active_ranks=active_ranks,
        per_call_s=float(call),
        per_flop_s=float(flop),
        per_weight_s=float(weight),
        per_activation_s=float(activation),
    )


def _attention_law(active_ranks: int, rows: Sequence[AttentionTime]) -> AttentionLaw:
    x = np.array([[1.0, r.num_seqs, pairs(r) * r.width] for r in rows], dtype=np.float64)
    call, seq, channel = non_negative_fit(x, np.array([r.seconds for r in rows]))
    return AttentionLaw(
        active_ranks=active_ranks,
        per_call_s=float(call),
        per_seq_s=float(seq),
        per_pair_channel_s=float(channel),
    )


def pairs(row: AttentionTime) -> float:
    """Query-key pairs of a measured attention."""
    one = row.query * row.context + row.query * (row.query + 1) / 2
    return row.num_seqs * one


def _elementwise_law(active_ranks: int, rows: Sequence[ElementwiseTime]) -> ElementwiseLaw:
    x = np.array([[1.0, r.tokens * r.width] for r in rows], dtype=np.float64)
    call, channel = non_negative_fit(x, np.array([r.seconds for r in rows]))
    return ElementwiseLaw(
        active_ranks=active_ranks, per_call_s=float(call), per_channel_s=float(channel)
    )


def _collective_curves(profile: Profile) -> tuple[CollectiveCurve, ...]:
    groups: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in profile.collectives:
        groups[row.kind, row.ranks].append((row.num_bytes, row.seconds))
    kinds = {row.kind.value: row.kind for row in profile.collectives}
    return tuple(
        CollectiveCurve(kind=kinds[kind], ranks=ranks, curve=_curve(points))
        for (kind, ranks), points in sorted(groups.items())
    )


def _curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Points in order of x; what was measured several times is averaged."""
    at: dict[float, list[float]] = defaultdict(list)
    for x, y in points:
        at[float(x)].append(y)
    ordered = sorted(at)
    return Curve(x=tuple(ordered), y=tuple(float(np.mean(at[x])) for x in ordered))

"""How wrong a step model is about the parts of a step, each plan predicted by a fit without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from tuner.step_model.model import ErrorReport, PartError
from tuner.step_model.operator_fit import FloatArray, non_negative_fit
from tuner.step_model.terms import TERM_NAMES
from tuner.step_model.training_rows import SERVING, Rows

COMMUNICATION_TERMS = ("communication_s", "collectives")
SAMPLING_TERMS = ("sampled",)
HOST_TERMS = ("steps", "seqs")
# No host time is fitted to fewer steps of other plans.
LEAST_STEPS = 5
# A shorter part was not there, as the communication of a single rank.
LEAST_S = 1e-9

FitCoefficients = Callable[[Rows], FloatArray]


def plan_of(group: str) -> str:
    """The plan whose steps a group holds."""
    return group.removeprefix(f"{SERVING} ")


def with_parts(
    report: ErrorReport,
    rows: Rows,
    fit: FitCoefficients,
    coefficients: FloatArray,
    factor: float,
) -> ErrorReport:
    """``report`` with the parts of each group of ``rows``.

    ``fit`` gives coefficients from rows of pieces; ``coefficients`` are those of all rows, used
    where there is only one plan. Live steps take ``factor`` times as long as pieces.
    """
    plans = {plan_of(group) for group in rows.groups}
    folds = {}
    for plan in plans:
        others = rows.where([plan_of(g) != plan and not g.startswith(SERVING) for g in rows.groups])
        folds[plan] = fit(others) if len(others) else coefficients
    return replace(
        report,
        groups=tuple(
            replace(
                group, parts=tuple(_parts(rows, group.plan, folds[plan_of(group.plan)], factor))
            )
            for group in report.groups
        ),
    )


def _parts(rows: Rows, group: str, fold: FloatArray, factor: float) -> Iterator[PartError]:
    held = rows.where([g == group for g in rows.groups])
    scale = factor if group.startswith(SERVING) else 1.0
    for part, names in (("communication", COMMUNICATION_TERMS), ("sampling", SAMPLING_TERMS)):
        timed = [getattr(parts, f"{part}_s") for parts in held.parts]
        columns = [TERM_NAMES.index(name) for name in names]
        found = _part(part, timed, scale * (held.terms[:, columns] @ fold[columns]))
        if found is not None:
            yield found
    if (host := _host(rows, held, group)) is not None:
        yield host


def _host(rows: Rows, held: Rows, group: str) -> PartError | None:
    """Host seconds by those of other plans, timed in the same way."""
    is_live = group.startswith(SERVING)
    others = rows.where(
        [plan_of(g) != plan_of(group) and g.startswith(SERVING) == is_live for g in rows.groups]
    )
    known = [parts.host_s for parts in others.parts]
    seconds = np.array([s for s in known if s is not None])
    if len(seconds) < LEAST_STEPS or seconds.max() < LEAST_S:
        return None
    columns = [TERM_NAMES.index(name) for name in HOST_TERMS]
    terms = others.where([s is not None for s in known]).terms[:, columns]
    per = non_negative_fit(terms, np.maximum(seconds, LEAST_S))
    return _part("host", [parts.host_s for parts in held.parts], held.terms[:, columns] @ per)


def _part(part: str, timed: Sequence[float | None], predicted_s: FloatArray) -> PartError | None:
    """None where the part was not timed, or took nothing."""
    pairs = [(m, p) for m, p in zip(timed, predicted_s, strict=True) if m is not None]
    if not pairs or (measured_s := float(np.mean([m for m, _ in pairs]))) < LEAST_S:
        return None
    return PartError(
        part=part,
        num_steps=len(pairs),
        measured_s=measured_s,
        predicted_s=float(np.mean([p for _, p in pairs])),
    )

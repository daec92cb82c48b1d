"""Figures of serving systems fitted on published closed-loop runs.

Every row is simulated at the start values and with each parameter moved a little; the parameters
then follow from weighted least squares on logs. The less the runs say about a parameter, the closer
it stays to its start value. Each fold leaves one group out; all folds share those simulations. Only
a fold's held-out group is simulated anew, with the fold's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from tuner.backends import Backend
from tuner.calibration.served_rows import NOT_SERVED, RowSimulator, ServedRow, Simulated

FloatArray = npt.NDArray[np.float64]
# Errors beyond this weigh less, the larger they are: a few rows are not what they claim to be.
ROBUST_LOG = 0.1
# Errors of one group are alike: it counts as at most this many independent rows.
ROWS_OF_GROUP = 30
# Queueing decides the TTFT more than the fitted times do.
TTFT_WEIGHT = 0.5
ROUNDS_OF_WEIGHTS = 20
# About this many rows of each group enter the fit; all rows are judged.
FITTED_ROWS = 45
CHUNK = 8

# Called with the number of simulations done and their total.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One fitted figure of a profile: a field of ``part`` of :class:`Backend`.

    ``start`` is what other sources say, ``spread`` how far it may be off (one standard
    deviation), ``lowest`` the least it can be.
    """

    part: str
    name: str
    start: float
    spread: float
    lowest: float = 0.0

    def __str__(self) -> str:
        return f"{self.part}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Parameters fitted without ``group`` (None: on all), and its rows simulated with them."""

    group: str | None
    values: tuple[float, ...]
    rows: tuple[ServedRow, ...] = ()
    simulated: tuple[Simulated, ...] = ()


def with_values(
    backend: Backend, parameters: Sequence[Parameter], values: Sequence[float]
) -> Backend:
    """The profile with these figures."""
    for part in {parameter.part for parameter in parameters}:
        changed = {
            parameter.name: value
            for parameter, value in zip(parameters, values, strict=True)
            if parameter.part == part
        }
        known = {f.name for f in fields(getattr(backend, part))}
        assert changed.keys() <= known, f"{part} has {sorted(known)}"
        backend = replace(backend, **{part: replace(getattr(backend, part), **changed)})
    return backend


def simulate_rows(
    rows: Sequence[ServedRow],
    backend: Backend,
    *,
    processes: int,
    seed: int = 0,
) -> list[Simulated]:
    """Every row served by ``backend``, in the order of ``rows``."""
    # Rows of one plan share its tables: they go to the same process.
    order = sorted(range(len(rows)), key=lambda i: _plan_of(rows[i]))
    # Each chunk makes its plans' tables anew.
    size = CHUNK if processes > 1 else max(1, len(order))
    chunks = [[rows[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    jobs = [(backend, chunk, seed) for chunk in chunks]
    if processes == 1:
        parts = [_simulate_chunk(job) for job in jobs]
    else:
        with ProcessPoolExecutor(processes) as pool:
            parts = list(pool.map(_simulate_chunk, jobs))
    done = [simulated for part in parts for simulated in part]
    found = [NOT_SERVED] * len(rows)
    for i, simulated in zip(order, done, strict=True):
        found[i] = simulated
    return found


def fit_folds(
    rows: Sequence[ServedRow],
    backend: Backend,
    parameters: Sequence[Parameter],
    *,
    processes: int,
    on_progress: OnProgress,
) -> list[Fold]:
    """The fit on all rows, then each group's fold with its rows simulated."""
    groups = sorted({row.group for row in rows})
    total = len(parameters) + 1 + len(groups)
    fitted = _thinned(rows)
    start = np.array([parameter.start for parameter in parameters])
    columns = []
    for number in range(len(parameters) + 1):
        moved = start.copy()
        if number:
            moved[number - 1] += parameters[number - 1].spread / 2
        tried = with_values(backend, parameters, moved.tolist())
        columns.append(_logs(simulate_rows(fitted, tried, processes=processes)))
        on_progress(number + 1, total)
    steps = np.array([parameter.spread / 2 for parameter in parameters])
    problem = _Problem(
        rows=tuple(fitted),
        parameters=tuple(parameters),
        errors=_measured_logs(fitted) - columns[0],
        slopes=np.stack([(column - columns[0]) for column in columns[1:]], axis=-1) / steps,
    )
    folds = [Fold(group=None, values=problem.solve(None))]
    for number, group in enumerate(groups):
        values = problem.solve(group)
        held_out = tuple(row for row in rows if row.group == group)
        served = simulate_rows(
            held_out, with_values(backend, parameters, values), processes=processes
        )
        folds.append(Fold(group=group, values=values, rows=held_out, simulated=tuple(served)))
        on_progress(len(parameters) + 2 + number, total)
    return folds


def _thinned(rows: Sequence[ServedRow]) -> list[ServedRow]:
    """Every second or third row (and so on) of large groups: they change little from one to the
    next, and a fit simulates each a dozen times."""
    kept: list[ServedRow] = []
    for group in sorted({row.group for row in rows}):
        members = [row for row in rows if row.group == group]
        kept += members[:: max(1, round(len(members) / FITTED_ROWS))]
    return kept


def relative_errors(rows: Sequence[ServedRow], simulated: Sequence[Simulated]) -> FloatArray:
    """f8[rows, 2] of (simulated - measured) / measured, TTFT and TPOT; NaN where not served."""
    return np.exp(_logs(simulated) - _measured_logs(rows)) - 1.0


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """``errors`` f8[rows, 2] of log TTFT and TPOT at the start, ``slopes`` f8[rows, 2, P]."""

    rows: tuple[ServedRow, ...]
    parameters: tuple[Parameter, ...]
    errors: FloatArray
    slopes: FloatArray

    def solve(self, held_out: str | None) -> tuple[float, ...]:
        """Parameters that fit all groups but ``held_out``."""
        weights = np.array([self._row_weight(row, held_out) for row in self.rows])
        is_known = np.isfinite(self.errors).all(axis=1) & np.isfinite(self.slopes).all(axis=(1, 2))
        weights = np.where(is_known, weights, 0.0)
        wide = np.stack([TTFT_WEIGHT * weights, weights], axis=1).ravel()
        count = len(self.parameters)
        errors = np.nan_to_num(self.errors).ravel()
        slopes = np.nan_to_num(self.slopes).reshape(-1, count)
        spread = np.array([p.spread for p in self.parameters])
        lowest = np.array([p.lowest - p.start for p in self.parameters])
        moved = np.zeros(count)
        for _ in range(ROUNDS_OF_WEIGHTS):
            left = errors - slopes @ moved
            row_weights = wide / (1.0 + (left / ROBUST_LOG) ** 2) / ROBUST_LOG**2
            normal = (slopes.T * row_weights) @ slopes + np.diag(spread**-2.0)
            moved = _solve_above(normal, (slopes.T * row_weights) @ errors, lowest)
        return tuple(float(p.start + m) for p, m in zip(self.parameters, moved, strict=True))

    def _row_weight(self, row: ServedRow, held_out: str | None) -> float:
        if row.group == held_out:
            return 0.0
        return min(1.0, ROWS_OF_GROUP / sum(other.group == row.group for other in self.rows))


def _solve_above(normal: FloatArray, right: FloatArray, lowest: FloatArray) -> FloatArray:
    """The least squares solution with every value at least ``lowest``. Values that would go below
    are set there, and the others are solved for again.
    """
    is_free = np.ones(len(right), dtype=np.bool_)
    while True:
        moved = lowest.copy()
        fixed = right - normal[:, ~is_free] @ lowest[~is_free]
        moved[is_free] = np.linalg.solve(normal[np.ix_(is_free, is_free)], fixed[is_free])
        is_low = is_free & (moved < lowest)
        if not is_low.any():
            return moved
        is_free &= ~is_low


def _simulate_chunk(job: tuple[Backend, list[ServedRow], int]) -> list[Simulated]:
    backend, rows, seed = job
    simulator = RowSimulator({backend.name: backend})
    return [simulator.simulate(row, seed=seed) for row in rows]


def _plan_of(row: ServedRow) -> tuple[str, str, str, int]:
    return row.device, row.model, row.precision, row.tp


def _logs(simulated: Sequence[Simulated]) -> FloatArray:
    return np.asarray(np.log(np.array([(s.ttft_s, s.tpot_s) for s in simulated])))


def _measured_logs(rows: Sequence[ServedRow]) -> FloatArray:
    return np.asarray(np.log(np.array([(row.ttft_s, row.tpot_s) for row in rows])))

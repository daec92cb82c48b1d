"""How far step times of a served run may be off, from runs that the profile's fit never saw.

Of each published run it finds the log factor on all step times with which simulation would have
told its TTFT, and the one with which it would have told its TPOT. Unlike the errors of TTFT and
TPOT themselves, these do not grow where requests queue: queueing is simulated. The first is what a
step with prompts is taken to be off by, the second a step of decodes alone.

    python -m tuner.calibration.step_errors --data ../shared/silicon --processes 2

writes the widths into the profiles: the split-conformal 90 % quantile of their sizes, apart for
runs of few and of many requests and by tensor-parallel degree where these have enough runs. Runs
that no step times explain are left out, and their share is told. (For a model that was never served
they count, with the most that is told: it may be another such.)

Runs of a group (a model on a device) are off alike, so a model of none of them may be off by more:
by what groups differ, and what runs of a group do. Groups are few; the width for such a model is
the predictive one of a random-effects model with Student's t (Searle, Casella and McCulloch,
Variance Components, 1992), its degrees of freedom by Satterthwaite. What groups differ by is taken
from all systems together: one group of a system tells nothing of it, and most of what is not known
of a model, its operators' times, is the same under each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from policies.points import INTERVAL_Z
from tuner.backends import Backend, load_profile
from tuner.backends.backend import BACKENDS
from tuner.backends.step_errors import Phase, ServedGroup, StepErrorBand, StepErrors
from tuner.calibration.served import SOURCES, parameters_of
from tuner.calibration.served_fit import CHUNK, with_values
from tuner.calibration.served_rows import RowSimulator, ServedRow, read_served_rows
from tuner.calibration.spreads import spreads_of_another
from tuner.step_model.fit import conformal

FloatArray = npt.NDArray[np.float64]
# Log factors on step times at which every run is simulated; a run's own is interpolated.
SCALES = (-0.25, 0.0, 0.25)
# A run that needs more than that was not slowed by its steps: something else is not simulated.
MOST_LOG = 0.5
# A band of fewer runs is joined with the others.
LEAST_ROWS = 30
# Few and many requests at once, tensor-parallel degrees: the bands that are tried.
CLIENTS = ((1, 16), (17, 128))
DEGREES = ((1, 1), (2, 2), (4, 4), (8, 8))


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The log factors on step times that ``row`` needed: for its TTFT, and for its TPOT."""

    row: ServedRow
    prefill: float
    decode: float

    def of(self, phase: Phase) -> float:
        """The one of ``phase``."""
        return self.prefill if phase is Phase.PREFILL else self.decode


def needed_factors(
    rows: Sequence[ServedRow], profile: Backend, data: Path, *, processes: int = 1
) -> list[Needed]:
    """Of every row that ``profile`` serves, with the figures of the fold that never saw its group;
    of a group that no fold knows with the shipped ones, which never saw it either."""
    parameters = parameters_of(profile.name, data)
    folds = profile.fitted.held_out if profile.fitted else ()
    values = {fold.group: fold.values for fold in folds}
    jobs: list[tuple[Backend, list[ServedRow]]] = []
    for group in sorted({row.group for row in rows if row.backend == profile.name}):
        known = values.get(group)
        served = with_values(profile, parameters, known) if known else profile
        mine = sorted(
            (row for row in rows if row.group == group), key=lambda r: (r.tp, r.precision)
        )
        size = CHUNK if processes > 1 else len(mine)
        jobs += [(served, mine[at : at + size]) for at in range(0, len(mine), size)]
    if processes == 1:
        parts = [_needed_of(job) for job in jobs]
    else:
        with ProcessPoolExecutor(processes) as pool:
            parts = list(pool.map(_needed_of, jobs))
    return [each for part in parts for each in part]


def of_system(needed: Sequence[Needed], name: str) -> tuple[list[Needed], list[Needed]]:
    """The runs of the system ``name``, and those of all others."""
    own = [each for each in needed if each.row.backend == name]
    return own, [each for each in needed if each.row.backend != name]


def step_errors(needed: Sequence[Needed], beside: Sequence[Needed] = ()) -> StepErrors:
    """The widths by phase, load and degree, and what the rows of one system span; those of other
    systems, ``beside`` it, help to tell what groups differ by."""
    rows = [each.row for each in needed]
    groups = sorted({(row.device, row.model) for row in rows})
    # Those that two systems served stand twice.
    compared = sorted({(e.row.group, e.row.device, e.row.model) for e in (*needed, *beside)})
    return StepErrors(
        bands=tuple(
            band for phase in Phase for band in _bands(needed, phase, mean_error(needed, phase))
        ),
        groups=tuple(ServedGroup(device=device, model=model) for device, model in groups),
        unseen=tuple(band for phase in Phase for band in _unseen_bands(needed, beside, phase)),
        devices=tuple(sorted({row.device for row in rows})),
        tp=tuple(sorted({row.tp for row in rows})),
        max_clients=max(row.concurrency for row in rows),
        max_input_tokens=max(row.input_tokens for row in rows),
        compared=tuple(ServedGroup(device=device, model=model) for _, device, model in compared),
        correlation=correlation([*needed, *beside]),
        prefill_mean=mean_error(needed, Phase.PREFILL),
        decode_mean=mean_error(needed, Phase.DECODE),
    )


def mean_error(needed: Sequence[Needed], phase: Phase) -> float:
    """The mean over groups, all alike, of the means of their runs that step times explain; at
    least 0: that steps came out quicker makes no answer surer."""
    groups = _by_group(_both_explained(needed), phase)
    return round(max(0.0, float(np.mean([g.mean() for g in groups]))), 3) if groups else 0.0


def correlation(needed: Sequence[Needed]) -> float:
    """Of what one run needs for its TTFT and for its TPOT, about the means of its system, every
    group counting alike; at least 0: nothing known makes a kind of steps quicker where the other is
    slower. Of all systems together, of the runs that step times explain."""
    moments = []
    for name in sorted({each.row.backend for each in needed}):
        own = [each for each in needed if each.row.backend == name]
        means = [mean_error(own, phase) for phase in Phase]
        groups = (_by_group(_both_explained(own), phase) for phase in Phase)
        for errors in zip(*groups, strict=True):
            off = np.array(errors).T - means
            moments.append(off.T @ off / len(off))
    if not moments:
        return 1.0
    both = np.mean(moments, axis=0)
    scale = math.sqrt(both[0, 0] * both[1, 1])
    return round(max(0.0, float(both[0, 1] / scale)), 3) if scale else 1.0


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The share of a group's runs whose TTFT (or TPOT) an interval holds that was made from the
    other groups of the same system."""

    group: str
    rows: int
    ttft: float
    tpot: float


def coverages(needed: Sequence[Needed], beside: Sequence[Needed] = ()) -> list[Coverage]:
    """Of each group by the widths of the others; a system's only group has none. ``beside``: see
    :func:`step_errors`."""
    found = []
    for group in sorted({each.row.group for each in needed}):
        mine = [each for each in needed if each.row.group == group]
        others = [each for each in needed if each.row.group != group]
        if not others:
            continue
        known = step_errors(others, beside)
        shares = {
            phase: np.mean(
                [
                    abs(each.of(phase))
                    <= known.unseen_band(phase, each.row.concurrency, each.row.tp).half_width
                    for each in mine
                ]
            )
            for phase in Phase
        }
        found.append(
            Coverage(
                group=group,
                rows=len(mine),
                ttft=float(shares[Phase.PREFILL]),
                tpot=float(shares[Phase.DECODE]),
            )
        )
    return found


def _bands(needed: Sequence[Needed], phase: Phase, mean: float) -> Iterator[StepErrorBand]:
    """The narrowest first: whoever asks takes the first that holds them."""
    every = (1, max(each.row.concurrency for each in needed))
    all_tp = (1, max(each.row.tp for each in needed))
    narrow = [
        *((clients, tp) for tp in DEGREES for clients in CLIENTS),
        *((clients, all_tp) for clients in CLIENTS),
    ]
    bands = [_band(needed, phase, clients, tp, mean) for clients, tp in narrow]
    yield from (band for band in bands if band is not None and band.rows >= LEAST_ROWS)
    widest = _band(needed, phase, every, all_tp, mean)
    assert widest is not None, "it holds every run"
    yield widest


def _unseen_bands(
    needed: Sequence[Needed], beside: Sequence[Needed], phase: Phase
) -> Iterator[StepErrorBand]:
    """By load alone: groups are too few to tell what they differ by at each degree."""
    every = (1, max(each.row.concurrency for each in needed))
    all_tp = (1, max(each.row.tp for each in needed))
    for clients in (*CLIENTS, every):
        band = _band(needed, phase, clients, all_tp)
        if band is None:
            continue
        # Of another model nobody knows beforehand whether its runs will be explained: those that no
        # step times explain count with the most that is told.
        own, others = (
            _by_group(_within(runs, clients, all_tp), phase) for runs in (needed, beside)
        )
        mine, apart = (_both_explained(_within(runs, clients, all_tp)) for runs in (needed, beside))
        spreads = _unseen_spreads(mine, apart, phase)
        half_width = round(unseen_half_width(own, others), 3)
        yield replace(band, half_width=half_width, spreads=spreads)


def _unseen_spreads(
    needed: Sequence[Needed], beside: Sequence[Needed], phase: Phase
) -> tuple[float, ...]:
    """Of runs that step times explain, as P of a model that was served is of such; see
    :mod:`tuner.calibration.spreads`."""
    own = _by_group(needed, phase)
    others = sorted({each.row.backend for each in beside})
    apart = [_by_group(of_system(beside, name)[0], phase) for name in others]
    return spreads_of_another(own, apart) if own else ()


def _by_group(needed: Sequence[Needed], phase: Phase) -> list[FloatArray]:
    """The errors of each group's runs, f8[runs] each."""
    groups = sorted({each.row.group for each in needed})
    return [np.array([e.of(phase) for e in needed if e.row.group == group]) for group in groups]


def unseen_half_width(own: Sequence[FloatArray], others: Sequence[FloatArray] = ()) -> float:
    """The 90 % half width of another group's runs, from the errors f8[runs] of each group of the
    same system, ``own``; ``others`` are groups of other systems.

    Every error is one of a fit that never saw its group, so groups scatter around 0: there is no
    mean to be estimated.
    """
    run = float(np.mean([_variance(group) for group in own]))
    every = [*own, *others]
    between = max(0.0, float(np.mean([g.mean() ** 2 - _variance(g) / len(g) for g in every])))
    total = between + run
    if total == 0.0:
        return 0.0
    # How much is known of each part follows from how many groups, and runs, it was taken from.
    runs = max(1, sum(map(len, own)) - len(own))
    freedom = total**2 / (between**2 / len(every) + run**2 / runs)
    return float(stdtrit(freedom, 0.95)) * math.sqrt(total)


def _variance(group: FloatArray) -> float:
    return float(group.var(ddof=1)) if len(group) > 1 else 0.0


def _within(
    needed: Sequence[Needed], clients: tuple[int, int], tp: tuple[int, int]
) -> list[Needed]:
    return [
        each
        for each in needed
        if clients[0] <= each.row.concurrency <= clients[1] and tp[0] <= each.row.tp <= tp[1]
    ]


def _explained(needed: Sequence[Needed], phase: Phase) -> list[Needed]:
    return [each for each in needed if abs(each.of(phase)) < MOST_LOG]


def _both_explained(needed: Sequence[Needed]) -> list[Needed]:
    return _explained(_explained(needed, Phase.PREFILL), Phase.DECODE)


def _band(
    needed: Sequence[Needed],
    phase: Phase,
    clients: tuple[int, int],
    tp: tuple[int, int],
    mean: float = 0.0,
) -> StepErrorBand | None:
    every = _within(needed, clients, tp)
    logs = np.array([each.of(phase) for each in _explained(every, phase)])
    if not len(logs):
        return None
    return StepErrorBand(
        phase=phase,
        min_clients=clients[0],
        max_clients=clients[1],
        min_tp=tp[0],
        max_tp=tp[1],
        rows=len(logs),
        half_width=round(conformal(np.abs(logs)), 3),
        unexplained=round(1 - len(logs) / len(every), 3),
        spreads=(round(conformal(np.abs(logs - mean)) / INTERVAL_Z, 4),),
    )


def _needed_of(job: tuple[Backend, list[ServedRow]]) -> list[Needed]:
    profile, rows = job
    simulator = RowSimulator({profile.name: profile})
    found = []
    for row in rows:
        runs = [simulator.simulate(row, step_scale=math.exp(scale)) for scale in SCALES]
        if any(math.isnan(run.ttft_s) for run in runs):
            continue
        found.append(
            Needed(
                row=row,
                prefill=_crossing([run.ttft_s for run in runs], row.ttft_s),
                decode=_crossing([run.tpot_s for run in runs], row.tpot_s),
            )
        )
    return found


def _crossing(simulated: Sequence[float], measured: float) -> float:
    """The log factor at which simulation says ``measured``, on with the last slopes."""
    logs = np.maximum.accumulate(np.log(simulated))
    wanted = math.log(measured)
    piece = 0 if wanted < logs[1] else 1
    rise = max(float(logs[piece + 1] - logs[piece]), 1e-3)
    width = SCALES[piece + 1] - SCALES[piece]
    return float(
        np.clip(SCALES[piece] + (wanted - logs[piece]) / rise * width, -MOST_LOG, MOST_LOG)
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the widths into the profiles of all fitted backends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    rows = read_served_rows(options.data)
    every = [
        each
        for name in SOURCES
        for each in needed_factors(
            rows, load_profile(name), options.data, processes=options.processes
        )
    ]
    for name in SOURCES:
        own, beside = of_system(every, name)
        path = BACKENDS.get_path(name)
        raw = json.loads(path.read_text())
        raw["step_errors"] = asdict(step_errors(own, beside))
        path.write_text(json.dumps(raw, indent=2) + "\n")
        print(path)
        for held in coverages(own, beside):
            print(
                f"  {held.group}: widths of the others hold {held.ttft:.0%} of TTFT, "
                f"{held.tpot:.0%} of TPOT"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

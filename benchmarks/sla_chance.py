"""Question: how much of the calibration error of P(SLA met) is chance?

    python -m benchmarks.sla_chance FILE... --out FILE.md

Each FILE is what ``benchmarks.sla_certainty --kept FILE`` wrote for one seed. A P that is right
shows an error, too, since each bin holds few pairs. How large it is is simulated, the pairs and
their P as they are, in two ways: the judging runs of one pair as alike as they were (*chance*); and
besides, as far as groups of runs differ, each group's runs off together (*and of five groups*).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from benchmarks.sla_certainty import BINS, Told, calibration_error, reliability

FloatArray = npt.NDArray[np.float64]
PART = "Held out"
DRAWS = 2000
# P is never surer than that here: a normal quantile must be finite.
SUREST = 0.999


def read_told(path: Path) -> list[Told]:
    """The held-out pairs of one seed."""
    raw = json.loads(path.read_text())[PART]
    return [Told(**(each | {"met": tuple(each["met"])})) for each in raw]


def rows_of(told: Sequence[Told]) -> list[tuple[float, float]]:
    """P and the share of runs that met, of each pair."""
    return [(each.now, float(np.mean(each.met))) for each in told]


def alikeness(told: Sequence[Told]) -> float:
    """The correlation of two judging runs of one pair, about their P; 0 to 1."""
    pairs, spreads = 0.0, 0.0
    for each in told:
        off = np.array(each.met, dtype=np.float64) - each.now
        count = len(off)
        pairs += (off.sum() ** 2 - (off**2).sum()) / (count * (count - 1))
        spreads += each.now * (1 - each.now)
    return float(np.clip(pairs / spreads, 0.0, 1.0)) if spreads else 0.0


def chance_errors(told: Sequence[Told], shift: float, seed: int) -> FloatArray:
    """f8[``DRAWS``] calibration errors of a P that is right: on average over groups, each of which
    is off by a normal draw of ``shift`` standard deviations."""
    rng = np.random.default_rng(seed)
    p = np.clip([each.now for each in told], 1 - SUREST, SUREST)
    runs = len(told[0].met)
    alike = alikeness(told)
    groups, index = np.unique([each.group for each in told], return_inverse=True)
    bins = np.digitize(p, BINS[1:-1])
    # Spread out by the shift of groups, P is what it was on average.
    middle = ndtri(p) * np.sqrt(1 + shift**2)
    found = []
    for _ in range(DRAWS):
        chance = ndtr(middle + shift * rng.normal(size=len(groups))[index])
        together = rng.random(len(p)) < chance
        apart = rng.binomial(runs, chance) / runs
        met = np.where(rng.random(len(p)) < alike, together, apart)
        found.append(np.abs(np.bincount(bins, weights=p - met)).sum() / len(p))
    return np.array(found)


def group_shift(told: Sequence[Told]) -> float:
    """By how many standard deviations of P groups are off: what their mean errors scatter by, less
    what chance makes of it."""
    alike = alikeness(told)
    squares = []
    for group in _groups(told):
        p = np.clip([each.now for each in group], 1 - SUREST, SUREST)
        met = np.array([np.mean(each.met) for each in group])
        runs = len(group[0].met)
        # How much a small shift of all runs changes the share of them that meet.
        slope = float((np.exp(-(ndtri(p) ** 2) / 2) / np.sqrt(2 * np.pi)).sum())
        chance = float((p * (1 - p)).sum()) * (1 + (runs - 1) * alike) / runs
        squares.append(((met - p).sum() ** 2 - chance) / slope**2)
    return float(np.sqrt(max(0.0, float(np.mean(squares)))))


def _groups(told: Sequence[Told]) -> list[list[Told]]:
    names = sorted({each.group for each in told})
    return [[each for each in told if each.group == name] for name in names]


def report_lines(seeds: dict[str, list[Told]]) -> Iterator[str]:
    """The report as Markdown."""
    every = [each for told in seeds.values() for each in told]
    shift = group_shift(every)
    yield f"# How much of P's calibration error is chance ({datetime.now():%Y-%m-%d})\n"
    yield f"Judging runs of one pair have a correlation of {alikeness(every):.2f} about their P;"
    yield f"groups are off by {shift:.2f} standard deviations of P.\n"
    yield "| seed | pairs | error | of a right P: mean | 95 % | and of five groups: mean | 95 % |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, told in seeds.items():
        yield _line(name, told, shift)
    yield _line("all", every, shift)
    yield "\n| P | pairs | mean P | met |"
    yield "|---|---:|---:|---:|"
    for (low, high), (count, p, met) in zip(
        pairwise(BINS), reliability(rows_of(every)), strict=True
    ):
        yield f"| {low:g} to {high:g} | {count} | " + (
            f"{p:.2f} | {met:.2f} |" if count else "- | - |"
        )
    yield "\n| judged by runs of | pairs | mean P | met | error |"
    yield "|---|---:|---:|---:|---:|"
    for group in _groups(every):
        rows = rows_of(group)
        p, met = np.mean(rows, axis=0)
        error = calibration_error(rows)
        yield f"| {group[0].group} | {len(group)} | {p:.2f} | {met:.2f} | {error:.3f} |"


def _line(name: str, told: Sequence[Told], shift: float) -> str:
    cells = []
    for each in (0.0, shift):
        errors = chance_errors(told, each, seed=0)
        cells += [f"{errors.mean():.3f}", f"{np.quantile(errors, 0.95):.3f}"]
    error = calibration_error(rows_of(told))
    return f"| {name} | {len(told)} | {error:.3f} | " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Read, simulate and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sla_chance")
    parser.add_argument("files", type=Path, nargs="+", help="one of each seed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    text = "\n".join(report_lines({path.stem: read_told(path) for path in options.files})) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

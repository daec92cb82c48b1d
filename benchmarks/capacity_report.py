"""How the slow loop did against replicas that hold still and against an oracle, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.capacity_causes import CAUSES, Paths, hours_by_cause
from benchmarks.capacity_loads import Load
from policies.capacity_table import CapacityTable
from policies.load_history import SLOT_S

LOOP = "slow loop"
LOOP_AFTER = "slow loop after a load like it"
ORACLE = "oracle"
# At equal attainment the loop may take this share of device hours more than the oracle.
MOST_MORE = 0.05
# Shares of attainment closer than this are equal.
EQUAL = 0.005


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, judged. ``device_h`` up to the last arrival; ``sizes``: replicas it had, one after
    the other; ``paths``: those over time (``benchmarks.capacity_causes.Paths``)."""

    load: str
    served_by: str
    attainment: float
    device_h: float
    ttft_p95_ms: float
    sizes: tuple[int, ...]
    paths: dict[str, Any] | None = None

    @property
    def changes(self) -> int:
        return len(self.sizes) - 1

    @property
    def turns(self) -> int:
        """How often it went up after down or down after up."""
        steps = [b - a for a, b in pairwise(self.sizes) if a != b]
        return sum((a > 0) != (b > 0) for a, b in pairwise(steps))

    @property
    def told(self) -> str:
        return f"{self.attainment:.1%} in {self.device_h:.2f} h"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The slow loop beside the best still of equal hours, and the cheapest oracle that attains as
    much (the best one, where none does)."""

    load: Load
    loop: Row
    still: Row
    oracle: Row

    @property
    def is_no_lower(self) -> bool:
        return self.loop.attainment >= self.still.attainment - EQUAL

    @property
    def more(self) -> float:
        """The share of device hours that it takes more than the oracle."""
        return self.loop.device_h / self.oracle.device_h - 1


def verdict_of(load: Load, rows: Sequence[Row], served_by: str) -> Verdict | None:
    """None where only the loop ran."""
    own = [row for row in rows if row.load == load.name]
    loop = next(row for row in own if row.served_by == served_by)
    still = [row for row in own if row.served_by.isdigit()]
    oracles = [row for row in own if row.served_by.startswith(ORACLE)]
    if not still or not oracles:
        return None
    one_h = min(row.device_h / int(row.served_by) for row in still)
    equal = [row for row in still if row.device_h <= loop.device_h + one_h / 2]
    as_good = [row for row in oracles if row.attainment >= loop.attainment - EQUAL]
    return Verdict(
        load=load,
        loop=loop,
        still=max(equal, key=lambda row: row.attainment, default=still[0]),
        oracle=min(as_good, key=lambda row: row.device_h)
        if as_good
        else max(oracles, key=lambda row: row.attainment),
    )


def report(
    loads: Sequence[Load],
    rows: Sequence[Row],
    rates: Mapping[str, Sequence[float]],
    tables: Mapping[str, CapacityTable],
) -> list[str]:
    """The comparison first, then where hours go, then every run; ``rates`` of each load by the
    minute."""
    lines = []
    for served_by in (LOOP, LOOP_AFTER):
        if not any(row.served_by == served_by for row in rows):
            continue
        found = [v for load in loads if (v := verdict_of(load, rows, served_by)) is not None]
        lines += [f"## {served_by[0].upper()}{served_by[1:]}", "", *_verdicts(found)]
        if served_by == LOOP:
            lines += _causes(found, rates, tables)
    for load in loads:
        lines += [
            f"## {load.name}",
            "",
            f"`{load.spec.rsplit('/', 1)[-1]}`, seed {load.seed}",
            "",
            "| served by | attainment | device hours | TTFT p95 ms | changes | turns |",
            "|---|---:|---:|---:|---:|---:|",
            *(
                f"| {row.served_by} | {row.attainment:.1%} | {row.device_h:.2f} "
                f"| {row.ttft_p95_ms:,.0f} | {row.changes} | {row.turns} |"
                for row in rows
                if row.load == load.name
            ),
            "",
        ]
    return lines


def _verdicts(found: Sequence[Verdict]) -> list[str]:
    no_lower = [v for v in found if v.is_no_lower]
    near = [v for v in found if v.more <= MOST_MORE]
    if not found:
        return []
    lines = [
        "Against holding still with as many device hours, and against the oracle. *Best still* is "
        "the best number of replicas that took no more device hours than the slow loop (rounded to "
        "whole replicas). *Oracle* is the one with fewest device hours of those that attain as "
        f"much as the slow loop (less {100 * EQUAL:g} point; else the one that attains most).",
        "",
        "| load | slow loop | best still of equal hours | oracle | hours more than the oracle "
        "| changes, turns |",
        "|---|---|---|---|---:|---:|",
    ]
    lines += [
        f"| {v.load.name} | {v.loop.told} | {v.still.told} ({v.still.served_by}) "
        f"| {v.oracle.told} ({v.oracle.served_by.removeprefix(ORACLE).strip()}) | {v.more:+.0%} "
        f"| {v.loop.changes}, {v.loop.turns} |"
        for v in found
    ]
    return [
        *lines,
        "",
        f"* Attainment no lower than the best still of equal hours: {len(no_lower)} of "
        f"{len(found)} loads.",
        f"* At most {MOST_MORE:.0%} more device hours than the oracle at equal attainment: "
        f"{len(near)} of {len(found)}; more by {fmean(v.more for v in found):+.0%} at the mean, "
        f"{median(v.more for v in found):+.0%} at the median.",
        "",
    ]


def _causes(
    found: Sequence[Verdict],
    rates: Mapping[str, Sequence[float]],
    tables: Mapping[str, CapacityTable],
) -> list[str]:
    """Device hours beyond the oracle's of equal attainment, by cause."""
    lines = [
        "Device hours beyond those of the oracle of equal attainment, by cause:",
        "",
        f"| load | hours | {' | '.join(CAUSES)} |",
        f"|---|---:|{'---:|' * len(CAUSES)}",
    ]
    for verdict in found:
        if verdict.loop.paths is None or verdict.oracle.paths is None:
            continue
        name = verdict.load.name
        hours = hours_by_cause(
            Paths.from_json(verdict.loop.paths),
            Paths.from_json(verdict.oracle.paths),
            np.array(rates[name]),
            tables[name],
            len(rates[name]) * SLOT_S,
        )
        more_h = verdict.loop.device_h - verdict.oracle.device_h
        cells = (f"{hours[cause]:+.2f}" for cause in CAUSES)
        lines.append(f"| {name} | {more_h:+.2f} | {' | '.join(cells)} |")
    return [*lines, "", *(f"* *{cause}*: {told}." for cause, told in CAUSES.items()), ""]

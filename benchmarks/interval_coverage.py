"""Question: what do 90 % intervals of TTFT leave out that is known of servers, beside step times?

Each published run is judged by an interval from other groups of runs (``tuner.calibration.
step_errors``). A run above its high end is simulated again, its steps as slow as that end has them:
with the process that sends tokens at the slow end of its published range, and with one seat less
than clients, too. Beside it stands what the widest interval could hold: of step times, and of TTFT
itself, as wide as the worst of all other groups was off at that load.

    python -m benchmarks.interval_coverage --data ../shared/silicon --out FILE.md
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import end_to_end
from benchmarks.reporting import publish
from benchmarks.sla_certainty import kept_factors
from engine.spec.settings import Caps
from policies.points import INTERVAL_Z
from tuner.backends import Backend, load_profile
from tuner.backends.step_errors import Phase, StepErrors
from tuner.calibration.served import SOURCES, parameters_of
from tuner.calibration.served_fit import with_values
from tuner.calibration.served_rows import RowSimulator, ServedRow, read_served_rows
from tuner.calibration.step_errors import CLIENTS as LOADS
from tuner.calibration.step_errors import MOST_LOG, Needed, of_system, step_errors
from tuner.step_model.fit import conformal
from tuner.step_model.timer import StepScale

FloatArray = npt.NDArray[np.float64]
CLIENTS = (4, 8, 16, 32, 64, 128)
# The group whose requests wait as if its servers had a seat less.
SEATED = "h100 llama-3.1-8b trtllm"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Whether the interval of ``row`` holds its TTFT: by step times alone, with the sending process
    slow, and with a seat less, too."""

    row: ServedRow
    by_steps: bool
    by_sender: bool
    by_seat: bool


@dataclass(frozen=True, kw_only=True)
class Seated(ServedRow):
    """The same run on a server with one seat less than clients."""

    @property
    def caps(self) -> Caps:
        return replace(super().caps, max_num_seqs=self.concurrency - 1)


def judge(needed: Sequence[Needed], data: Path) -> list[Judged]:
    """Every run, its interval from the other groups."""
    found = []
    for name in SOURCES:
        own, beside = of_system(needed, name)
        profile = load_profile(name)
        assert profile.fitted is not None, f"{name} is a fitted profile"
        values = {fold.group: fold.values for fold in profile.fitted.held_out}
        for group in sorted({each.row.group for each in own}):
            errors = step_errors([e for e in own if e.row.group != group], beside)
            served = with_values(profile, parameters_of(name, data), values[group])
            mine = [each for each in own if each.row.group == group]
            found += [_judge(each, errors, served, _slow_sender(served, data)) for each in mine]
    return found


def _slow_sender(served: Backend, data: Path) -> Backend:
    """``served`` with the process that sends tokens at the slow end of what is published of it."""
    spread = sum(p.spread for p in parameters_of(served.name, data) if p.name == "token_s")
    front_end = served.front_end
    slow = replace(front_end, token_s=front_end.token_s + INTERVAL_Z * spread)
    return replace(served, front_end=slow)


def _judge(each: Needed, errors: StepErrors, served: Backend, slow: Backend) -> Judged:
    row = each.row
    widths = {p: errors.unseen_band(p, row.concurrency, row.tp).half_width for p in Phase}
    holds = abs(each.prefill) <= widths[Phase.PREFILL]
    if holds or each.prefill < 0:
        return Judged(row=row, by_steps=holds, by_sender=holds, by_seat=holds)
    scale = StepScale(
        prefill=math.exp(widths[Phase.PREFILL]), decode=math.exp(widths[Phase.DECODE])
    )
    seated = Seated(**{f.name: getattr(row, f.name) for f in fields(row)})
    simulator = RowSimulator({served.name: slow})
    by_sender, by_seat = (
        row.ttft_s <= simulator.simulate(like, step_scale=scale).ttft_s for like in (row, seated)
    )
    return Judged(row=row, by_steps=False, by_sender=by_sender, by_seat=by_sender or by_seat)


def report_lines(judged: Sequence[Judged]) -> Iterator[str]:
    """The report as Markdown."""
    yield f"# What 90 % intervals of TTFT leave out ({datetime.now():%Y-%m-%d})\n"
    yield "    python -m benchmarks.interval_coverage --data ../shared/silicon --out FILE.md\n"
    yield "Share of runs within an interval that was made from the other groups:\n"
    yield "| runs | number | steps may be slow | and the process that sends | and a seat less |"
    yield "|---|---:|---:|---:|---:|"
    for group in sorted({each.row.group for each in judged}):
        yield _line(group, [each for each in judged if each.row.group == group])
    for clients in CLIENTS:
        of_clients = [each for each in judged if each.row.concurrency == clients]
        yield _line(f"{clients} clients", of_clients)
    others = [each for each in judged if each.row.group != SEATED]
    yield _line("all but the 8B on TensorRT-LLM", others)
    yield _line("all", judged)


def widest_lines(needed: Sequence[Needed], data: Path) -> Iterator[str]:
    """What no width of step times can do better than, and what widths of TTFT itself do."""
    rows = read_served_rows(data)
    profiles = [load_profile(name) for name in SOURCES]
    held_out = end_to_end.judge(rows, profiles, data, processes=1)
    logs = np.log1p(held_out.errors[:, 0])
    groups = np.array([row.group for row in held_out.rows])
    is_few = np.array([row.concurrency <= LOADS[0][1] for row in held_out.rows])
    yield "\n## The widest intervals\n"
    yield "| group | number | step times explain | TTFT within | half width (log): few | many |"
    yield "|---|---:|---:|---:|---:|---:|"
    explained, within = [], []
    for group in sorted(set(groups)):
        mine = groups == group
        factors = [abs(e.prefill) < MOST_LOG for e in needed if e.row.group == group]
        few, many = (_worst(logs, groups, load & ~mine) for load in (is_few, ~is_few))
        holds = np.abs(logs[mine]) <= np.where(is_few[mine], few, many)
        explained += factors
        within += holds.tolist()
        yield (
            f"| {group} | {mine.sum()} | {np.mean(factors):.0%} | {holds.mean():.0%} | "
            f"{few:.2f} | {many:.2f} |"
        )
    yield f"| all | {len(within)} | {np.mean(explained):.0%} | {np.mean(within):.0%} | | |"


def _worst(logs: FloatArray, groups: npt.NDArray[np.str_], kept: npt.NDArray[np.bool_]) -> float:
    """The widest of each kept group's own 90 % half width."""
    sizes = np.abs(logs)
    return max(conformal(sizes[kept & (groups == group)]) for group in set(groups[kept]))


def _line(name: str, judged: Sequence[Judged]) -> str:
    shares = np.mean([(e.by_steps, e.by_sender, e.by_seat) for e in judged], axis=0)
    return f"| {name} | {len(judged)} | " + " | ".join(f"{share:.0%}" for share in shares) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Judge and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interval_coverage")
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--factors", type=Path, help="keeps the runs' factors from call to call")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    needed = kept_factors(options.data, options.factors, 1)
    lines = [*report_lines(judge(needed, options.data)), *widest_lines(needed, options.data)]
    text = "\n".join(lines) + "\n"
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

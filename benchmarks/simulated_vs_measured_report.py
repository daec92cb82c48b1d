"""The report of ``benchmarks.simulated_vs_measured``: values, verdicts, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from statistics import fmean

from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from tuner.step_model.model import HostCost, StepModel

METRICS = ("output tokens/s", "TTFT p50 ms", "TPOT p50 ms")
TARGETS = (0.07, 0.15, 0.10)
# A run during which other programs took more of the cores than this is discarded and repeated.
MAX_OTHERS = 0.04
MAX_TRIES = 6


@dataclass(frozen=True, kw_only=True)
class Run:
    """One live run: its numbers, the share of the cores other programs took, runs discarded.

    ``step_error`` compares what the timer says of the run's own steps with what they took on the
    ranks; ``host_share`` is how long ranks waited for the host, over the time they worked.
    """

    numbers: tuple[float, ...]
    others: float
    discarded: int
    step_error: float
    host_share: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of one row. ``spread`` is (largest - smallest) / mean of the repeats, ``error``
    the simulated value against that mean."""

    target: float
    simulated: float
    mean: float
    spread: float

    @property
    def error(self) -> float:
        return self.simulated / self.mean - 1

    @property
    def passes(self) -> bool:
        """Within the target, or within twice what repeats of the same run differ by."""
        return abs(self.error) <= max(self.target, 2 * self.spread)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan under one workload: the simulated numbers and those of each live repeat."""

    workload: str
    settings: Settings
    simulated: tuple[float, ...]
    measured: tuple[Run, ...]

    @property
    def plan(self) -> str:
        plan = self.settings.plan
        return f"`{plan}={self.settings.threshold_tokens}`" if plan.shift else f"`{plan}`"

    def compare(self) -> list[Comparison]:
        """Every metric."""
        found = []
        for nth, target in enumerate(TARGETS):
            values = [run.numbers[nth] for run in self.measured]
            found.append(
                Comparison(
                    target=target,
                    simulated=self.simulated[nth],
                    mean=fmean(values),
                    spread=(max(values) - min(values)) / fmean(values),
                )
            )
        return found


def report(rows: Sequence[Row], step_model: StepModel, setup: Sequence[str]) -> str:
    """The dated report: the question, the tables, the fit, and how to repeat it."""
    lines = [
        f"# Simulated against measured, {date.today()}",
        "",
        "Each plan was simulated with a step model and run live "
        f"{len(rows[0].measured)} times, plans interleaved, a part of the profile before each "
        "time. The model was fitted on that profile alone (operators, "
        "collectives, passes of the model cut to a few layers under "
        f"{'; '.join(step_model.fitted_plans)}) and on a short serving run of other lengths on "
        f"{', '.join(step_model.served_plans)}. No serving run of two ranks was used.",
        "",
        "`measured` is the mean of the repeats, `spread` (largest - smallest) / mean, `error` "
        "simulated against that mean. A case passes at the larger of its target (throughput "
        f"{TARGETS[0]:.0%}, TTFT p50 {TARGETS[1]:.0%}, TPOT p50 {TARGETS[2]:.0%}) and twice the "
        "spread of its repeats.",
    ]
    for workload in dict.fromkeys(row.workload for row in rows):
        lines += ["", f"## `{workload}`", "", *_table([r for r in rows if r.workload == workload])]
    lines += ["", "## Summary", "", *_summary(rows), "", *_quietness(rows)]
    lines += ["", "## Parts of the error", "", *_error_parts(rows)]
    lines += ["", "## Fit", "", *_fit(step_model)]
    return "\n".join([*lines, "", "## How to repeat", "", *setup, ""])


def _table(rows: Sequence[Row]) -> list[str]:
    head = ["plan"]
    for name in METRICS:
        head += [f"{name}: simulated", "measured", "spread", "error", "verdict"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row.plan]
        for found in row.compare():
            cells += [f"{found.simulated:.1f}", f"{found.mean:.1f}", f"{found.spread:.0%}"]
            cells += [f"{found.error:+.1%}", "pass" if found.passes else "**fail**"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _summary(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| metric | target | passed | within the target itself | mean absolute error | worst "
        "| mean error | mean spread |",
        "|" + " --- |" * 8,
    ]
    for nth, name in enumerate(METRICS):
        found = [row.compare()[nth] for row in rows]
        errors = [c.error for c in found]
        cells = [
            name,
            f"{TARGETS[nth]:.0%}",
            f"{sum(c.passes for c in found)} of {len(found)}",
            f"{sum(abs(c.error) <= c.target for c in found)}",
            f"{fmean(map(abs, errors)):.1%}",
            f"{max(map(abs, errors)):.1%}",
            f"{fmean(errors):+.1%}",
            f"{fmean(c.spread for c in found):.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _error_parts(rows: Sequence[Row]) -> list[str]:
    """Where errors come from: steps alone, and ranks that wait for the host."""
    lines = [
        "`steps`: what the step model says of the very steps that the live runs took, over what "
        "they took on the ranks (of a pipeline: on its last stage), less 1. `host`: how long "
        "ranks waited for the host, over the time they worked. What is left of a run's error "
        "comes from when steps were scheduled.",
        "",
        "| plan | workload | steps | host |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        steps = fmean(run.step_error for run in row.measured)
        host = fmean(run.host_share for run in row.measured)
        kind = row.workload.partition(":")[0]
        lines.append(f"| {row.plan} | {kind} | {steps:+.1%} | {host:.1%} |")
    return lines


def _quietness(rows: Sequence[Row]) -> list[str]:
    runs = [run for row in rows for run in row.measured]
    loud = sum(run.others > MAX_OTHERS for run in runs)
    return [
        f"{len(runs)} runs. Other programs took {fmean(r.others for r in runs):.1%} of the cores "
        f"on average and {max(r.others for r in runs):.1%} at most. "
        f"{sum(run.discarded for run in runs)} more runs were discarded because they took more "
        f"than {MAX_OTHERS:.0%}; {loud} kept ones are above it, after {MAX_TRIES} tries or for "
        "want of time."
    ]


def _fit(step_model: StepModel) -> list[str]:
    error, serving = step_model.error, step_model.serving
    with_residual = "none" if error.residual_mape is None else f"{error.residual_mape:.1%}"
    used = "is active" if error.is_residual_active else "is not active"
    return [
        f"{error.num_pieces} pieces, {error.num_samples} one-rank steps; serving factor "
        f"{step_model.serving_factor:.3f}. Mean absolute error on steps of a plan left out of the "
        f"fit: {error.roofline_mape:.1%} by the roofline part, {with_residual} with the boosted "
        f"residual, which {used}.",
        "",
        "In service a decode step of 8 sequences takes, beside the pass: "
        f"{_at_eight(serving.host_cpu):.2f} ms of CPU in the engine's process and "
        f"{_at_eight(serving.message_cpu):.2f} ms for messages on a rank (exposed where ranks "
        f"have every core), {_at_eight(serving.prepare):.2f} ms of inputs on every stage, and "
        f"{_at_eight(serving.launch):.2f} ms to launch it where nothing ran ahead of it.",
        "",
        "| left out | steps | mean absolute error | bias |",
        "| --- | --- | --- | --- |",
        *(f"| {g.plan} | {g.num_steps} | {g.mape:.1%} | {g.bias:+.1%} |" for g in error.groups),
    ]


def _at_eight(cost: HostCost) -> float:
    """Milliseconds of a step of 8 sequences."""
    return 1e3 * cost.seconds(StepShape(num_seqs=8))

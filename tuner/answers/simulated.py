"""``simulate``: what a plan would do under a load, without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.spec.modes import AUTO
from engine.spec.settings import Settings
from policies.attainment import judge
from policies.numbers import short
from policies.points import Estimate
from policies.report import LATENCIES
from policies.sla import Sla
from tuner.answers.answer import Answer
from tuner.answers.asked import ThisMachine
from tuner.answers.cases import Case, Question, described, on_this_machine
from tuner.answers.words import question_of
from tuner.described.document import simulation_json, with_interval
from tuner.described.title import Title
from tuner.simulation.simulate import OnProgress, SimulationResult, no_progress
from tuner.workload.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

    from tuner.pictures.picture import Picture

# Gives, for the name of a stage ("simulate", "interval"), the progress that the stage reports to.
OnStage = Callable[[str], AbstractContextManager[OnProgress]]


@contextmanager
def quietly(_: str) -> Iterator[OnProgress]:
    """Nobody watches."""
    yield no_progress


@dataclass(frozen=True, kw_only=True, repr=False)
class Simulated(Answer):
    """One simulated run. ``intervals`` None: not asked for."""

    question: Question
    case: Case
    result: SimulationResult
    intervals: Mapping[str, Estimate] | None

    @property
    def settings(self) -> Settings:
        """What ran: the plan with its threshold and caps."""
        return self.case.settings

    @property
    def title(self) -> Title:
        return self.case.title

    @property
    def headline(self) -> str:
        sla, measured = self.question.sla, self.result.measurement
        if sla is not None:
            return f"{self.settings}: SLA {judge(sla, measured).verdict}"
        ttft, tpot = measured.ttft_ms.p95, measured.tpot_ms.p95
        known = [f"p95 {n} {short(v)} ms" for n, v in (("TTFT", ttft), ("TPOT", tpot)) if v]
        return f"{self.settings}: {', '.join(known) or 'no request completed'}"

    @cached_property
    def document(self) -> dict[str, Any]:
        question, case = self.question, self.case
        return simulation_json(
            self.result,
            sla=question.sla,
            settings=case.settings,
            workload=question.workload,
            seed=question.seed,
            origin=case.origin,
            intervals=self.intervals,
            energy=case.energy(self.result) if case.energy is not None else None,
            has_prefix_cache=case.keeps_prefixes,
            warnings=case.warnings,
            title=str(case.title),
        )

    def summary(self) -> pd.DataFrame:
        """Mean and percentiles of each latency in ms, and the 90 % interval of its p95."""
        import pandas as pd

        intervals = self.document["intervals"] or {}
        rows = {}
        for name in LATENCIES:
            ends = intervals.get(f"p95_{name}", {})
            rows[name] = {
                **self.document["metrics"][name],
                "p95_low": ends.get("low"),
                "p95_high": ends.get("high"),
            }
        return pd.DataFrame.from_dict(rows, orient="index").astype(float)

    def to_frame(self) -> pd.DataFrame:
        """One row per request, in the order of arrival: seconds of the run, lengths in tokens,
        latencies in ms (NaN where a request had none), and how it ended."""
        import pandas as pd

        timings = self.result.measurement.timings
        return pd.DataFrame(
            {
                "arrival_s": [t.scheduled_s for t in timings],
                "input_tokens": [t.prompt_tokens for t in timings],
                "output_tokens": [t.output_tokens for t in timings],
                "ttft_ms": pd.array([t.ttft_ms for t in timings], dtype="Float64"),
                "tpot_ms": pd.array([t.tpot_ms for t in timings], dtype="Float64"),
                "e2e_ms": pd.array([t.e2e_ms for t in timings], dtype="Float64"),
                "outcome": [t.outcome.value for t in timings],
            }
        )

    def picture(self) -> Picture:
        from tuner.pictures.runs import simulated_picture

        return simulated_picture(
            self.result,
            title=self.case.title,
            settings=self.settings,
            intervals=self.document["intervals"],
        )


def run_case(question: Question, case: Case, *, on_stage: OnStage = quietly) -> Simulated:
    """Run the case, and twice more for its interval if it has one."""
    with on_stage("simulate") as show:
        result = case.run(1.0, show)
    intervals = None
    if case.interval is not None:
        with on_stage("interval") as show:
            intervals = with_interval(
                result, case.run, question.sla, interval=case.interval, on_progress=show
            )
    return Simulated(question=question, case=case, result=result, intervals=intervals)


def simulate(
    model: str,
    *,
    workload: str | Workload,
    plan: str = "tp=1",
    sla: str | Sla | None = None,
    hardware: str | None = None,
    seed: int = 0,
    backend: str | None = None,
    backend_set: Sequence[str] = (),
    dtype: str = "auto",
    mode: str = AUTO,
    rungs: Sequence[str] | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_step_ms: float | None = None,
    admit_rps: float | None = None,
    max_model_len: int | None = None,
    block_size: int = 16,
    prefix_cache: bool | None = None,
    machine: ThisMachine | None = None,
    intervals: bool = True,
) -> Simulated:
    """Simulate a plan under a workload with the engine's own scheduler, as ``gearshift simulate``.

    ``hardware`` as in ``8xh200``; None: this machine, as its cost model knows it (``machine``).
    ``intervals``: also run with steps slower and faster by what they may be off. Parameters mean
    what the options of their names mean.

    Raises:
        TunerError: an unknown model, hardware, backend or workload, or one that does not fit.
        PlanError, PolicyInputError: a plan or an SLA that cannot be read or run.
    """
    question = question_of(
        model,
        plan=plan,
        workload=workload,
        sla=sla,
        seed=seed,
        backend=backend,
        backend_set=backend_set,
        dtype=dtype,
        mode=mode,
        rungs=rungs,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_step_ms=max_step_ms,
        max_model_len=max_model_len,
        block_size=block_size,
        prefix_cache=prefix_cache,
    )
    question = replace(question, admit_rps=admit_rps)
    return run_case(question, case_of(question, hardware, machine, has_intervals=intervals))


def case_of(
    question: Question,
    hardware: str | None,
    machine: ThisMachine | None,
    *,
    has_intervals: bool = True,
) -> Case:
    """The question on ``hardware``, or on this machine where None is named."""
    if hardware is not None:
        return described(question, hardware, has_intervals=has_intervals)
    return on_this_machine(question, machine or ThisMachine(), has_intervals=has_intervals)

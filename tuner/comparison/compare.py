"""Every kind of plan on one load: each case's runs on the same draws of it.

Cases are chosen (which hybrids, which base of Shift, which threshold) on a draw of their own, so
that the draws they are judged by are not those they were chosen on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from engine.spec.errors import EngineError
from engine.spec.modes import AUTO, ENDS, TABLE, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import judge
from policies.report import flat_metrics
from policies.sla import Sla
from tuner.comparison.engines import Compared
from tuner.comparison.metrics import score
from tuner.planner.pool import Jobs, Workers
from tuner.search.design import ruled_settings
from tuner.spec.errors import TunerError
from tuner.spec.space import THRESHOLDS, build_space
from tuner.workload.judged import check_judged
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload

# The threshold that the published plug-in takes unless somebody names one.
PUBLISHED_THRESHOLD = 512
MOST_HYBRIDS = 3
# Fewer say nothing of noise.
LEAST_DRAWS = 2


class Kind(StrEnum):
    """A case is a plan of one mode, one that shifts, or a bound that nothing can be set to."""

    STATIC = "static"
    SHIFT = "shift"
    BOUND = "bound"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. ``reason``: why it cannot run (then there are no settings)."""

    name: str
    kind: Kind
    settings: Settings | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Runs:
    """A case's numbers, one set a draw; ``num_met`` draws meet the SLA."""

    case: Case
    draws: tuple[dict[str, float], ...]
    num_met: int = 0


@dataclass(frozen=True, kw_only=True)
class ComparisonQuestion:
    """What is compared: on ``num_devices``, under ``caps``, by ``num_draws`` draws of ``load``."""

    engine: Compared
    load: Workload
    sla: Sla | None
    caps: Caps
    num_devices: int
    num_draws: int

    @property
    def choosing_draw(self) -> int:
        """The draw that cases are chosen on; 0 is the load as it is."""
        return self.num_draws


OnComparing = Callable[[str, int, int], None]
Task = tuple[Settings, bool, int]
Found = tuple[dict[str, float], bool]


class ComparisonStopped(KeyboardInterrupt):
    """Ctrl-C while cases were judged: ``runs`` are of the ``num_draws`` draws (at least
    ``LEAST_DRAWS``) that every case had run by then."""

    def __init__(self, runs: tuple[Runs, ...], num_draws: int) -> None:
        super().__init__()
        self.runs = runs
        self.num_draws = num_draws


def compare(
    question: ComparisonQuestion, *, jobs: Jobs = 1, on_progress: OnComparing = lambda *_: None
) -> tuple[Runs, ...]:
    """The runs of every case, those that cannot run included.

    Raises:
        TunerError: no plan on that many devices can run the model; or a bound of the SLA says
            nothing of this load.
        ComparisonStopped: Ctrl-C, when some draws were whole; before that KeyboardInterrupt.
    """
    if question.sla is not None:
        check_judged(question.load, question.sla)
    with Workers(jobs) as workers:
        runner = _Runner(question=question, workers=workers, on_progress=on_progress)
        cases = [*_static_cases(runner), *_shift_cases(runner)]
        return runner.all_draws(cases)


@dataclass(frozen=True, kw_only=True)
class _Runner:
    question: ComparisonQuestion
    workers: Workers
    on_progress: OnComparing

    def all_draws(self, cases: Sequence[Case]) -> tuple[Runs, ...]:
        draws = range(self.question.num_draws)
        # Draw by draw: whoever stops in the middle has whole ones to compare.
        by_draw = {draw: _tasks(cases, draw) for draw in draws}
        found: dict[Task, Found] = {}
        try:
            self.run("draws", [task for tasks in by_draw.values() for task in tasks], found)
        except KeyboardInterrupt as stopped:
            whole = [draw for draw, tasks in by_draw.items() if found.keys() >= set(tasks)]
            if len(whole) < LEAST_DRAWS:
                raise
            raise ComparisonStopped(_runs(cases, whole, found), len(whole)) from stopped
        return _runs(cases, draws, found)

    def best_first(self, stage: str, settings: Iterable[Settings]) -> list[Settings]:
        """``settings`` as the draw that cases are chosen on ranks them."""
        every = list(dict.fromkeys(settings))
        tasks = [(each, False, self.question.choosing_draw) for each in every]
        sla = self.question.sla
        found: dict[Task, Found] = {}
        self.run(stage, tasks, found)
        scores = [score(found[task][0], sla) for task in tasks]
        order = sorted(range(len(every)), key=lambda i: scores[i])
        return [every[i] for i in order]

    def run(self, stage: str, tasks: Sequence[Task], found: dict[Task, Found]) -> None:
        """Run the tasks; ``found`` gets what comes of each as it is there."""
        wanted = list(dict.fromkeys(tasks))

        def keep(task: Task, answer: Found) -> None:
            found[task] = answer
            self.on_progress(stage, len(found), len(wanted))

        self.workers.map(partial(_run, self.question), wanted, keep)

    def reason(self, plan: ParallelPlan) -> str | None:
        """Why ``plan`` cannot run; None where it can."""
        try:
            self.question.engine.timer(plan)
            self.question.engine.check(plan, self.question.caps)
        except (EngineError, TunerError) as error:
            return str(error)
        return None


def _tasks(cases: Sequence[Case], draw: int) -> list[Task]:
    """A run of every case that can run."""
    return [
        (case.settings, case.kind is Kind.BOUND, draw)
        for case in cases
        if case.settings is not None
    ]


def _runs(
    cases: Sequence[Case], draws: Sequence[int], found: dict[Task, Found]
) -> tuple[Runs, ...]:
    """What came of the cases in these draws."""
    runs = []
    for case in cases:
        own = [found[task] for draw in draws for task in _tasks([case], draw)]
        runs.append(
            Runs(
                case=case,
                draws=tuple(flat for flat, _ in own),
                num_met=sum(is_met for _, is_met in own),
            )
        )
    return tuple(runs)


def _run(question: ComparisonQuestion, task: Task) -> Found:
    """One run's numbers, and whether it meets the SLA."""
    settings, is_oracle, draw = task
    load = stretch(question.load, 1.0, seed=draw)
    measured = question.engine.run(settings, load, is_oracle=is_oracle).measurement
    is_met = question.sla is not None and judge(question.sla, measured).is_met
    return flat_metrics(measured, question.sla), is_met


def _static_cases(runner: _Runner) -> list[Case]:
    question = runner.question
    count, caps = question.num_devices, question.caps
    if count == 1:
        return [_case(runner, "one device", Kind.STATIC, Settings(plan=ParallelPlan(), caps=caps))]
    plans = {
        "tp": ParallelPlan(tp=count),
        "sp": ParallelPlan(sp=count),
        "pp": ParallelPlan(pp=count),
        "dp": ParallelPlan(dp=count),
    }
    cases = [
        _case(runner, f"{axis.upper()} alone", Kind.STATIC, Settings(plan=plan, caps=caps))
        for axis, plan in plans.items()
    ]
    hybrids = [
        Settings(plan=plan, caps=caps)
        for plan in _plans(runner)
        if not plan.shift and plan not in plans.values()
    ]
    best = runner.best_first("hybrids", hybrids)[:MOST_HYBRIDS]
    return [*cases, *(Case(name="hybrid", kind=Kind.STATIC, settings=each) for each in best)]


def _plans(runner: _Runner) -> tuple[ParallelPlan, ...]:
    """Every plan that uses all devices and can run."""
    question = runner.question

    def check(plan: ParallelPlan) -> None:
        question.engine.check(plan, question.caps)

    space = build_space(
        question.engine.model,
        question.num_devices,
        check_memory=check,
        max_model_len=question.engine.model.max_positions,
        least_devices=question.num_devices,
    )
    return space.plans


def _shift_cases(runner: _Runner) -> list[Case]:
    """Shift over one replica of all devices if that can run, else over several."""
    question = runner.question
    shifting = [plan for plan in _plans(runner) if plan.shift]
    if not shifting:
        whole = (
            ParallelPlan(sp=question.num_devices, shift=True) if question.num_devices > 1 else None
        )
        why = (whole and runner.reason(whole)) or "no plan on these devices can shift"
        return [
            Case(name=name, kind=Kind.SHIFT, reason=why)
            for name in (f"Shift at {PUBLISHED_THRESHOLD}", "Shift tuned")
        ]
    fewest = min(plan.dp * plan.pp for plan in shifting)
    own = [plan for plan in shifting if plan.dp * plan.pp == fewest]
    advised = [s for plan in own for s in _ruled(question, plan)]
    best = runner.best_first("Shift plans", advised)[0]
    plan, caps = best.plan, question.caps
    grid = [Settings(plan=plan, caps=caps, threshold_tokens=tokens) for tokens in THRESHOLDS]
    tuned = runner.best_first("thresholds", [*_ruled(question, plan), *grid])[0]
    rungs: tuple[Mode, ...] | None = None if question.engine.has_rungs else ENDS
    table = Settings(plan=plan, caps=caps, pin=TABLE, rungs=rungs)
    published = Settings(plan=plan, caps=caps, threshold_tokens=PUBLISHED_THRESHOLD)
    return [
        Case(name=f"Shift at {PUBLISHED_THRESHOLD}", kind=Kind.SHIFT, settings=published),
        Case(name="Shift tuned", kind=Kind.SHIFT, settings=tuned),
        Case(name="ladder by table", kind=Kind.SHIFT, settings=table),
        Case(name="oracle", kind=Kind.BOUND, settings=replace(table, pin=AUTO)),
    ]


def _ruled(question: ComparisonQuestion, plan: ParallelPlan) -> list[Settings]:
    engine = question.engine
    return ruled_settings(plan, engine.timer(plan), question.caps, has_rungs=engine.has_rungs)


def _case(runner: _Runner, name: str, kind: Kind, settings: Settings) -> Case:
    reason = runner.reason(settings.plan)
    if reason is not None:
        return Case(name=name, kind=kind, reason=reason)
    return Case(name=name, kind=kind, settings=settings)

"""``capacity``: the highest load that a plan carries within an SLA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from engine.spec.modes import AUTO
from policies.sla import Sla
from tuner.answers.answer import Answer
from tuner.answers.asked import ThisMachine
from tuner.answers.cases import Case, Question
from tuner.answers.simulated import case_of
from tuner.answers.words import question_of
from tuner.capacity.document import capacity_json, capacity_lines
from tuner.capacity.probe import CapacityQuestion
from tuner.capacity.search import (
    NUM_DRAWS,
    Capacity,
    CapacityStopped,
    OnProbe,
    find_capacity,
)
from tuner.described.title import Title
from tuner.workload.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

    from tuner.pictures.picture import Picture


@dataclass(frozen=True, kw_only=True, repr=False)
class Carried(Answer):
    """The load that settings carry, and the points that it was found by; ``is_interrupted``: as far
    as these were looked at."""

    question: Question
    case: Case
    asked: CapacityQuestion
    found: Capacity
    is_interrupted: bool = False

    @property
    def is_met(self) -> bool:
        """Whether any load that was looked at is carried."""
        return self.found.factor is not None

    @property
    def title(self) -> Title:
        return self.case.title

    @property
    def lines(self) -> list[str]:
        """The answer in words."""
        return capacity_lines(self.document)

    @property
    def headline(self) -> str:
        return self.lines[0]

    @cached_property
    def document(self) -> dict[str, Any]:
        return capacity_json(
            self.found,
            workload=self.asked.workload,
            sla=self.asked.sla,
            settings=self.asked.settings,
            seed=self.question.seed,
            title=str(self.case.title),
            origin=self.case.origin,
            warnings=self.case.warnings,
            is_interrupted=self.is_interrupted,
        )

    def summary(self) -> pd.DataFrame:
        """As :meth:`to_frame`, without loads that were looked at in a single draw, and without
        columns that do not apply."""
        rows = self.to_frame()
        return rows[rows["draws"] > 1].dropna(axis="columns", how="all")

    def to_frame(self) -> pd.DataFrame:
        """One row per load that was looked at: its rate or number of clients, P(SLA met),
        attainment and each bounded metric, as means over the draws, with the ends of its interval
        in ``_low`` and ``_high``."""
        import pandas as pd

        return pd.DataFrame([_flat(rate) for rate in self.document["rates"]])

    def picture(self) -> Picture:
        from tuner.pictures.loads import capacity_picture

        return capacity_picture(self.document, facts=self.title.parts, sla=self.asked.sla)


class CarriedStopped(KeyboardInterrupt):
    """Ctrl-C in the middle of the search: ``answer`` is what was found by then."""

    def __init__(self, answer: Carried) -> None:
        super().__init__()
        self.answer = answer


def carried(
    question: Question,
    case: Case,
    *,
    sla: Sla,
    num_draws: int = NUM_DRAWS,
    on_probe: OnProbe = lambda *_: None,
) -> Carried:
    """Look for the load that the case carries.

    Raises:
        TunerError: a workload without a rate.
        CarriedStopped: Ctrl-C, when some load was looked at; before that KeyboardInterrupt.
    """
    asked = CapacityQuestion(
        settings=case.settings,
        run_on=case.run_on,
        workload=question.workload,
        sla=sla,
        interval=case.interval or 0.0,
    )
    tell = partial(Carried, question=question, case=case, asked=asked)
    try:
        return tell(found=find_capacity(asked, num_draws=num_draws, on_probe=on_probe))
    except CapacityStopped as stopped:
        raise CarriedStopped(tell(found=stopped.found, is_interrupted=True)) from stopped


def capacity(
    model: str,
    *,
    workload: str | Workload,
    sla: str | Sla,
    plan: str = "tp=1",
    hardware: str | None = None,
    seed: int = 0,
    draws: int = NUM_DRAWS,
    backend: str | None = None,
    backend_set: Sequence[str] = (),
    dtype: str = "auto",
    mode: str = AUTO,
    rungs: Sequence[str] | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_step_ms: float | None = None,
    max_model_len: int | None = None,
    block_size: int = 16,
    prefix_cache: bool | None = None,
    machine: ThisMachine | None = None,
) -> Carried:
    """Find the highest rate, or number of clients, of a workload that a plan carries within the
    SLA, as ``gearshift capacity``; parameters as of :func:`tuner.answers.simulated.simulate`.

    Raises:
        TunerError, PlanError, PolicyInputError: as ``simulate``, and for a workload without a
            rate.
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
    assert question.sla is not None, "an SLA was given"
    case = case_of(question, hardware, machine)
    return carried(question, case, sla=question.sla, num_draws=draws)


def _flat(rate: dict[str, Any]) -> dict[str, Any]:
    """A load that was looked at, each number under a name of its own."""
    ends = {
        f"{key}_{end}": value for key, both in rate["ends"].items() for end, value in both.items()
    }
    own = {key: value for key, value in rate.items() if key not in ("metrics", "ends")}
    return {**own, **rate["metrics"], **ends}

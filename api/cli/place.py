"""What the commands ask that simulate plans: the caps, and where the plan would run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import log
from api.cli.engine_options import MOST_SEQS, MOST_TOKENS, read_rungs
from api.cli.groups import Described, LocalMachine, PinnedPlan, WorkloadOptions
from tuner.answers import asked

if TYPE_CHECKING:
    from policies.sla import Sla
    from tuner.answers.cases import Case, Question


@dataclass(frozen=True, kw_only=True)
class NamedCaps(asked.NamedCaps):
    """What a step may hold and take."""

    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_SEQS, help="Sequences per step; by default the backend's (here 64)."
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_TOKENS, help="Tokens per step; by default the backend's (here 2048)."
        ),
    ] = None
    max_step_ms: Annotated[
        float | None, typer.Option(help="Chunks are sized so that a mixed step fits this.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Place(Described):
    """Where the plan would run: on this machine, if no hardware is described."""

    hardware: Annotated[
        str | None, typer.Option(help="Described hardware instead, as in 8xh200.")
    ] = None

    def question(
        self,
        model: str,
        plan: PinnedPlan,
        load: WorkloadOptions,
        caps: NamedCaps,
        *,
        sla: Sla | None,
        prefix_cache: bool | None,
        admit_rps: float | None = None,
    ) -> Question:
        """What is asked of the plan. Raises PlanError or TunerError where plan or workload cannot
        be read."""
        from tuner.answers.cases import Question

        return Question(
            model=model,
            spec=plan.spec,
            workload=load.read_workload(),
            sla=sla,
            seed=load.seed,
            mode=plan.mode,
            rungs=read_rungs(plan.rungs),
            caps=caps,
            served=self,
            prefix_cache=prefix_cache,
            admit_rps=admit_rps,
        )

    def case(self, question: Question, machine: LocalMachine, *, has_intervals: bool) -> Case:
        """The question there; ends on an option of the other kind of place."""
        from tuner.answers.cases import described, on_this_machine

        if self.hardware is None:
            self.refuse_backend("--hardware")
            case = on_this_machine(question, machine, has_intervals=has_intervals)
        else:
            machine.refuse()
            case = described(question, self.hardware, has_intervals=has_intervals)
        for note in case.notes:
            log(f"simulate: {note}")
        for warning in case.warnings:
            log(f"warning: {warning}")
        return case

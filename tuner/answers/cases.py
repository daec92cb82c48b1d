"""A plan under a load, and how it is run on described hardware; :mod:`tuner.answers.this_machine`
runs it as this machine's cost model says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.spec.modes import ENDS, Mode, ModePin
from tuner.answers.asked import NamedCaps, ServedAs

if TYPE_CHECKING:
    from engine.executors.protocol import StepTimer
    from engine.spec.plan import PlanSpec
    from engine.spec.settings import Caps, Settings
    from policies.sla import Sla
    from tuner.described.document import ScaledRun
    from tuner.described.title import Asked, Title
    from tuner.simulation.simulate import OnProgress, SimulationResult
    from tuner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked, whatever the step times come from."""

    model: str
    spec: PlanSpec
    workload: Workload
    sla: Sla | None
    seed: int
    mode: ModePin
    rungs: tuple[Mode, ...] | None
    caps: NamedCaps
    served: ServedAs
    prefix_cache: bool | None
    admit_rps: float | None = None

    @property
    def asked(self) -> Asked:
        """What the title of the answer says of it."""
        from tuner.described.title import Asked

        return Asked(model=self.model, workload=self.workload, sla=self.sla, seed=self.seed)

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""
        return self.served.block_size

    @property
    def max_model_len(self) -> int | None:
        """Context in tokens, None for the model's."""
        return self.served.max_model_len

    def keeps_prefixes(self, usual: bool) -> bool:
        """Whether the prefix cache is on, where it ``usual``-ly is or not."""
        return usual if self.prefix_cache is None else self.prefix_cache

    def warnings(self, *, keeps_prefixes: bool) -> tuple[str, ...]:
        """What may mislead in the answer, wherever the step times come from."""
        if self.workload.shares_beginnings and not keeps_prefixes:
            return (
                "prompts share beginnings, and every one is computed again: add --prefix-cache "
                "to find them",
            )
        return ()

    def settings(
        self, timer: StepTimer, default: Caps, *, has_rungs: bool = True
    ) -> tuple[Settings, tuple[str, ...]]:
        """The settings, with the caps named or else ``default``'s, and notes for the reader. A
        threshold that is not named is what step times advise, which a note says.

        Raises:
            PolicyError: a mode that the plan does not have, or a rate of admission that cannot be.
        """
        from engine.spec.admission import Admission
        from engine.spec.planned import planned_settings
        from engine.spec.rungs import rungs_of
        from tuner.search.design import advised_rule

        caps, spec, notes = self.caps.over(default), self.spec, []
        if spec.threshold_tokens is None and spec.plan.shift:
            named = self.rungs and rungs_of(spec.plan, self.rungs)
            modes = named or (spec.plan.modes if has_rungs else ENDS)
            rule = advised_rule(timer, modes, caps.max_num_seqs)
            spec = replace(
                spec,
                threshold_tokens=rule.threshold_tokens,
                rung_thresholds=spec.rung_thresholds or rule.rung_thresholds,
            )
            words = [f"threshold {rule.threshold_tokens} tokens"]
            words += [f"{mode} up to {tokens}" for mode, tokens in spec.rung_thresholds]
            notes.append(f"{', '.join(words)}, as the modes' step times advise")
        settings = planned_settings(spec, caps, pin=self.mode, rungs=self.rungs)
        if self.admit_rps is not None:
            settings = replace(settings, admission=Admission(rate_rps=self.admit_rps))
        return settings, tuple(notes)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings and how to run them; ``origin`` is where step times and memory come from.

    ``run_on`` runs any workload with all step times multiplied, ``run`` the one asked about.
    ``interval`` is the 90 % half width of log(true / simulated) step times, None where it is not
    asked for. ``notes`` say what was chosen that nobody named.
    """

    settings: Settings
    workload: Workload
    run_on: Callable[[Workload, float, OnProgress], SimulationResult]
    title: Title
    origin: dict[str, Any]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    interval: float | None = None
    energy: Callable[[SimulationResult], dict[str, Any]] | None = None
    keeps_prefixes: bool = False

    @property
    def run(self) -> ScaledRun:
        """A run of the workload asked about."""
        return partial(self.run_on, self.workload)


def described(question: Question, hardware: str, *, has_intervals: bool = True) -> Case:
    """On hardware that is not here, served by a backend."""
    from tuner.described.document import node_json, node_warnings
    from tuner.described.energy import energy_of
    from tuner.described.parse import check_rungs, check_served
    from tuner.described.steps import NodeSteps, steps_json
    from tuner.described.title import Title

    node = question.served.node(question.model, hardware)
    check_served(node, question.spec.plan)
    settings, notes = question.settings(
        node.timer(question.spec.plan), node.backend.default_caps, has_rungs=node.has_rungs
    )
    check_rungs(node, settings)
    keeps_prefixes = question.keeps_prefixes(node.backend.prefix_cache)

    def run_on(workload: Workload, step_scale: float, on_progress: OnProgress) -> SimulationResult:
        return node.simulate(
            settings,
            workload,
            seed=question.seed,
            keeps_prefixes=keeps_prefixes,
            step_scale=step_scale,
            on_progress=on_progress,
        )

    return Case(
        settings=settings,
        workload=question.workload,
        run_on=run_on,
        title=Title.of_node(node, question.asked),
        origin={
            **node_json(node, settings, question.model),
            "steps": steps_json(NodeSteps(node), settings, question.workload),
        },
        warnings=(
            *node_warnings(node, settings, question.workload),
            *question.warnings(keeps_prefixes=keeps_prefixes),
        ),
        notes=notes,
        interval=node.interval if has_intervals else None,
        energy=(lambda result: energy_of(node, result).to_json()) if node.has_device else None,
        keeps_prefixes=keeps_prefixes,
    )

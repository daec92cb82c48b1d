"""Where a job's step times come from: described hardware, a cost model, or a profile made now."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.executors.protocol import StepTimer
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from policies.numbers import short
from tuner.described.node import Node
from tuner.profiling.profile import weights_of
from tuner.search.context import OnEvent, TuningEvent
from tuner.search.costs import Level, Meter
from tuner.search.spec import TuningSpec
from tuner.spec.cancel import Cancellation
from tuner.spec.errors import TunerError
from tuner.step_model.model import StepModel


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """What a job knows of step times: ``node`` is the described hardware; without one,
    ``step_model`` is the cost model of this machine, or of what a server runs on. With neither,
    nothing can be simulated (``is_blind``)."""

    spec: TuningSpec
    model: ModelConfig
    node: Node | None
    step_model: StepModel | None

    @property
    def is_blind(self) -> bool:
        return self.node is None and self.step_model is None

    @property
    def timer_of(self) -> Callable[[ParallelPlan], StepTimer] | None:
        """Makes a plan's step timer; None where nothing is known."""
        if self.node is not None:
            return self.node.timer
        if (step_model := self.step_model) is None:
            return None
        link = self.spec.parsed_link
        return lambda plan: step_model.timer(plan, self.model, link=link, hides_host=True)

    @property
    def interval(self) -> float:
        """The 90 % half width of log(true / predicted) step times."""
        if self.node is not None:
            return self.node.interval
        return 0.0 if self.step_model is None else self.step_model.error.plan_interval

    @property
    def threads_per_rank(self) -> int | None:
        """Threads of the ranks that were profiled; None where none were."""
        return None if self.step_model is None else self.step_model.machine.threads_per_rank

    @property
    def max_live_ranks(self) -> int:
        """The most ranks that trials may run on this machine at once."""
        if self.spec.is_served:  # whoever starts servers here knows what they have
            return self.spec.num_devices

        from tuner.profiling.run import max_active_ranks

        most = max_active_ranks(self.spec.device, self.threads_per_rank or 1)
        return min(self.spec.num_devices, most)


def find_step_times(
    spec: TuningSpec,
    model: ModelConfig,
    node: Node | None,
    cost_model: dict[str, Any] | None,
    *,
    on_event: OnEvent,
    meter: Meter,
    cancel: Cancellation,
) -> StepTimes:
    """Those of ``node``, else of ``cost_model`` (a step model's document), else of this machine,
    which is profiled; nothing is known of a server that neither describes.

    Raises:
        CancelledError: it was cancelled meanwhile.
        TunerError, EngineError: the cost model is of something else, or a rank failed.
    """
    step_model = None
    if node is None and cost_model is not None:
        step_model = StepModel.from_json(json.loads(json.dumps(cost_model, default=str)))
        if not spec.is_served:
            step_model.refuse_other(weights_of(model, None, spec.device))
    elif node is None and not spec.is_served:
        step_model = _profiled(spec, model, on_event, meter, cancel)
    return StepTimes(spec=spec, model=model, node=node, step_model=step_model)


def _profiled(
    spec: TuningSpec, model: ModelConfig, on_event: OnEvent, meter: Meter, cancel: Cancellation
) -> StepModel:
    """The cost model fitted to a profile of this machine, which is kept."""
    _check_profile_fits(spec)

    from tuner.profiling.run import ProfileSpec, run_profile
    from tuner.step_model.files import check_cost_model_dir, save_cost_model
    from tuner.step_model.fit import fit_step_model

    def say(message: str) -> None:
        on_event(TuningEvent(kind="profiling", message=message))

    check_cost_model_dir()
    wanted = ProfileSpec(
        model_dir=spec.model_path,
        num_ranks=spec.num_devices,
        dtype=spec.rank_dtype(model),
        device=spec.device,
        link=spec.parsed_link,
        seconds=spec.profile_seconds,
        seed=spec.seed,
        quantisation=spec.quantization,
    )
    with meter.timing(Level.PROFILED, num_devices=spec.num_devices):
        profile = run_profile(wanted, on_event=say, cancel=cancel)
    fitted = fit_step_model(profile, model, seed=spec.seed)
    path = save_cost_model(fitted)
    on_event(TuningEvent(kind="profiled", message=f"cost model {fitted.id} in {path}"))
    return fitted


def _check_profile_fits(spec: TuningSpec) -> None:
    """Raises TunerError where a profile alone would use up what trials may."""
    if (budget := spec.time_budget) is None:
        return
    needed_s = budget.held_s(spec.profile_seconds, spec.num_devices)
    if needed_s > budget.for_trials_s:
        raise TunerError(
            f"budget {spec.budget}: {short(budget.for_trials_s)} {budget.unit} of it are for "
            f"trials, and profiling {spec.num_devices} devices for {spec.profile_seconds:g} s "
            f"takes {short(needed_s)}; name a cost model, or profile for less (--profile-seconds)"
        )

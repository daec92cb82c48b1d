"""The step model: seconds of a step from operator times, fitted coefficients and a residual.

``seconds = serving_factor * exp(w * residual) * sum(coefficient * term)`` per stage, plus the
delay of a declared link and what a full machine adds (:class:`ServingCost`). ``w`` falls from 1
to 0 as a step leaves the data the residual was fitted on. Saved as versioned JSON; evaluated
without scikit-learn, pandas or torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from engine.spec.config import LinkEmulation
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.profiling.profile import PLAIN
from tuner.spec.errors import TunerError
from tuner.spec.machine import Fingerprint
from tuner.step_model.operators import OperatorTable
from tuner.step_model.residual import Residual
from tuner.step_model.timer import StepModelTimer
from tuner.work.counts import MODEL_SIZES, model_sizes

SCHEMA = "step-model/v1"


@dataclass(frozen=True, kw_only=True)
class HostCost:
    """Seconds of the step loop outside ranks: per step, and per sequence in it."""

    per_step_s: float
    per_seq_s: float

    def seconds(self, shape: StepShape) -> float:
        return self.per_step_s + self.per_seq_s * shape.num_seqs

    def __add__(self, other: HostCost) -> HostCost:
        return HostCost(
            per_step_s=self.per_step_s + other.per_step_s,
            per_seq_s=self.per_seq_s + other.per_seq_s,
        )


NO_COST = HostCost(per_step_s=0.0, per_seq_s=0.0)


@dataclass(frozen=True, kw_only=True)
class ServingCost:
    """Seconds that each step of a series costs beyond a single step on idle ranks.

    ``prepare``: a rank's inputs. For a single step all stages prepare at once; in a full pipeline
    each stage prepares between two steps. ``host_cpu`` and ``message_cpu``: CPU time per step of
    the engine's process and of a rank's receiving threads. On a core of their own they cost
    nothing. If ranks occupy all cores, host time is taken from one rank of one stage and message
    time from every rank. ``launch``: from the decision to schedule a step until ranks begin it, and
    from their answer back; it hides behind a step before, if there is one.
    """

    prepare: HostCost = NO_COST
    host_cpu: HostCost = NO_COST
    message_cpu: HostCost = NO_COST
    launch: HostCost = NO_COST

    def stage_seconds(
        self, shape: StepShape, plan: ParallelPlan, *, num_free_cores: int | None
    ) -> tuple[float, ...]:
        """Seconds added to each stage of a step; ``num_free_cores`` None: ranks occupy no cores."""
        shared_s = 0.0
        if num_free_cores is not None and num_free_cores < 1:
            shared_s = self.message_cpu.seconds(shape) + self.host_cpu.seconds(shape) / plan.pp
        later_s = self.prepare.seconds(shape) + shared_s
        return (shared_s, *(later_s for _ in range(1, plan.pp)))


@dataclass(frozen=True, kw_only=True)
class PartError:
    """Mean seconds of one part of a step, measured and as predicted by a fit that never saw the
    plan. The prediction is what the step's fit gives to that part: steps may come out right while
    their parts do not."""

    part: str
    num_steps: int
    measured_s: float
    predicted_s: float


@dataclass(frozen=True, kw_only=True)
class GroupError:
    """Errors on the steps of one plan, predicted by a fit that never saw that plan.

    ``bias`` is log(sum measured / sum predicted). ``parts`` are those that were timed apart.
    """

    plan: str
    num_steps: int
    mape: float
    bias: float
    parts: tuple[PartError, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ErrorReport:
    """How wrong the model is on data it was not fitted on.

    ``step_interval`` is the split-conformal 90 % half width of log(measured / predicted) of one
    step; ``plan_interval`` the largest out-of-fold bias of a whole plan: what does not average
    out over a run.
    """

    num_pieces: int
    num_samples: int
    roofline_mape: float
    residual_mape: float | None
    is_residual_active: bool
    step_interval: float
    plan_interval: float
    groups: tuple[GroupError, ...]


@dataclass(frozen=True, kw_only=True)
class StepModel:
    """A fitted step model of one machine; see the module's first lines for its form.

    ``fitted_plans`` are plans with pieces in the profile; ``served_plans`` those with serving
    samples. Predictions for other plans rest on the operators alone. ``weights``: what ranks held
    the layers in (:func:`tuner.profiling.profile.weights_of`), None in models of older versions.
    """

    machine: Fingerprint
    model: dict[str, Any]
    dtype: DType
    operators: OperatorTable
    coefficients: dict[str, float]
    serving_factor: float
    host: HostCost
    error: ErrorReport
    residual: Residual | None = None
    serving: ServingCost = ServingCost()
    link: LinkEmulation | None = None
    fitted_plans: tuple[str, ...] = ()
    served_plans: tuple[str, ...] = ()
    weights: str | None = None
    created: str = ""
    schema: str = field(default=SCHEMA)

    @property
    def id(self) -> str:
        """A short hash of the content."""
        raw = json.dumps(self.to_json(), sort_keys=True, default=str).encode()
        return f"cm_{hashlib.sha256(raw).hexdigest()[:12]}"

    @property
    def max_ranks(self) -> int:
        """Most ranks that were timed at work at once."""
        return max(curve.active_ranks for curve in self.operators.gemms)

    def timer(
        self,
        plan: ParallelPlan,
        model: ModelConfig,
        *,
        link: LinkEmulation | None = None,
        hides_host: bool = False,
    ) -> StepModelTimer:
        """Step times of one replica of ``plan`` while all its replicas work.

        ``link`` stands for the emulated link of the engine to predict (default: the profile's).
        ``hides_host``: for a simulation that queues steps ahead, and so hides host time by
        itself; else host seconds are what was still exposed in service.
        """
        return StepModelTimer(
            operators=self.operators,
            coefficients=self.coefficients,
            factor=self.serving_factor,
            residual=self.residual,
            host=self.serving.launch.seconds if hides_host else self.host.seconds,
            added=lambda shape: self._added_seconds(shape, plan),
            model=model,
            plan=plan,
            dtype=self.dtype,
            link=link if link is not None else self.link,
        )

    def _added_seconds(self, shape: StepShape, plan: ParallelPlan) -> tuple[float, ...]:
        is_cpu = self.machine.device == "cpu"
        busy = plan.world_size * self.machine.threads_per_rank
        num_free = self.machine.num_cores - busy if is_cpu else None
        return self.serving.stage_seconds(shape, plan.replica, num_free_cores=num_free)

    @property
    def other_weights(self) -> str:
        """What is to be said of the layers behind the machine's name: nothing of plain ones."""
        return "" if self.weights in (None, PLAIN) else f", {self.weights} weights"

    def is_of(self, weights: str | None) -> bool:
        """Whether layers held in ``weights`` are what was profiled, as far as both are known."""
        return None in (self.weights, weights) or self.weights == weights

    def refuse_other(self, weights: str | None) -> None:
        """Raises TunerError where the engine asked about holds its layers otherwise than the
        profiled one did."""
        if not self.is_of(weights):
            option = "" if weights == PLAIN else f" --quantization {weights}"
            raise TunerError(
                f"cost model {self.id} was profiled with {self.weights} weights, and this engine's "
                f"are {weights}: run 'gearshift profile{option} --model DIR --out FILE' for one "
                "of it"
            )

    def refuse_checkpoint(self, weights: str | None) -> None:
        """Raises TunerError where a checkpoint with its layers in ``weights`` is never held as the
        profiled one was. A plain one may be: quantised as it loads."""
        if self.weights == PLAIN:
            self.refuse_other(weights)

    def check_model(self, model: ModelConfig) -> str | None:
        """A warning when the profile was taken of a model of other sizes, else None."""
        other = model_sizes(model)
        differing = [name for name in MODEL_SIZES if self.model.get(name) != other[name]]
        if not differing:
            return None
        sizes = ", ".join(f"{n} {self.model.get(n)} -> {other[n]}" for n in differing)
        return f"the cost model was profiled on another model ({sizes}): its numbers extrapolate"

    def to_json(self) -> dict[str, Any]:
        """The document; ``fingerprint`` is the short id of ``machine``."""
        document = asdict(self) | {"fingerprint": self.machine.id}
        if self.weights is None:  # as older versions wrote it, or its id would be another
            del document["weights"]
        return document

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str = "cost model") -> StepModel:
        """Read a saved model.

        Raises:
            TunerError: another schema, or a part that is missing or of the wrong kind, named.
        """
        if raw.get("schema") != SCHEMA:
            raise TunerError(f"{where}: schema {raw.get('schema')!r} is not {SCHEMA!r}")
        try:
            return msgspec.convert({k: v for k, v in raw.items() if k != "fingerprint"}, cls)
        except msgspec.ValidationError as error:
            raise TunerError(f"{where}: {error}") from error

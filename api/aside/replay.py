"""The engine's last hours again, simulated: once as it runs now, once as it would."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from api.aside.step_times import by_step_model, node_of, on_node
from api.documents.policy import model_from_json
from engine.spec.inventory import Inventory
from engine.spec.measurement import Measurement
from engine.spec.settings import Settings
from policies.attainment import meets
from policies.paired_requests import paired_effect
from policies.sla import Sla
from tuner.comparison.replay import RunAt
from tuner.spec.errors import TunerError
from tuner.step_model.model import StepModel
from tuner.workload.workload import Arrival, Workload, WorkloadSource

Json = dict[str, Any]
# Requests of so many seconds fare alike.
GROUP_S = 60.0


def replayed(question: Json) -> Json:
    """Attainment of both under the same requests, and the difference, pair by pair.

    ``question``: ``arrivals`` as ``[second, input tokens, output tokens]``, ``control`` and
    ``candidate`` settings, ``sla``, ``alpha``, the engine's ``model`` and ``inventory``, and
    either ``hardware`` or ``cost_model`` for the step times, which take ``step_scale`` times as
    long as these say; of hardware also ``model_name``, ``dtype`` and ``backend``, null where only
    the engine's own word is known.

    Raises:
        TunerError: step times that do not fit the engine.
        EngineError: settings that the model cannot run under.
    """
    workload, sla = _workload(question["arrivals"]), Sla.parse(question["sla"])
    scale = question["step_scale"]
    try:
        run_at = _runner(question)
        met = {
            arm: _met(run_at(Settings.from_json(question[arm]), workload, scale), sla)
            for arm in ("control", "candidate")
        }
    except (ArithmeticError, LookupError, ValueError) as error:
        raise TunerError(f"the step times do not fit this engine ({error!r})") from error
    groups = (workload.arrival_s // GROUP_S).astype(int)
    effect = paired_effect(
        met["control"], met["candidate"], groups.tolist(), alpha=question["alpha"]
    )
    return {
        "requests": len(workload),
        "seconds": round(workload.span_s, 1),
        **{f"{arm}_attainment": fmean(found) for arm, found in met.items()},
        "effect": {"mean": effect.mean, "low": effect.low, "high": effect.high},
        "fidelity": "simulated",
    }


def _met(measurement: Measurement, sla: Sla) -> list[bool]:
    """Whether each request met the SLA, in the order of arrivals."""
    return [bool(meets(sla, timing)) for timing in measurement.timings]


def _workload(arrivals: list[list[float]]) -> Workload:
    span_s = arrivals[-1][0] if arrivals else 0.0
    source = WorkloadSource(spec="replay", seed=0, sha256="", rows=len(arrivals), span_s=span_s)
    return Workload(
        arrivals=tuple(
            Arrival(arrival_s=at_s, input_tokens=int(inputs), output_tokens=int(outputs))
            for at_s, inputs, outputs in arrivals
        ),
        source=source,
    )


def _runner(question: Json) -> RunAt:
    model = model_from_json(question["model"])
    inventory = Inventory.from_json(question["inventory"])
    if question["hardware"] is not None:
        return on_node(node_of(question, model, inventory))
    step_model = StepModel.from_json(question["cost_model"], where="cost model")
    return by_step_model(step_model, model, inventory)

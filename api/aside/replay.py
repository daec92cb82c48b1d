"""The engine's last hours again, simulated: once as it runs now, once as it would."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from api.documents.policy import model_from_json
from engine.spec.inventory import Inventory, kv_bytes_of_rank
from engine.spec.measurement import Measurement
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.attainment import meets
from policies.paired_requests import paired_effect
from policies.sla import Sla
from tuner.backends import load_backend
from tuner.described.node import Node
from tuner.described.parse import OWN_BACKEND
from tuner.hardware import Precision, parse_hardware
from tuner.simulation.simulate import Ranks, SimulatedEngine, ranks_of_one, simulate
from tuner.spec.errors import TunerError
from tuner.spec.look_ahead import LookAhead
from tuner.step_model.model import StepModel
from tuner.workload.workload import Arrival, Workload, WorkloadSource

Json = dict[str, Any]
# Requests of so many seconds fare alike.
GROUP_S = 60.0
DEFAULT_KV_BYTES = 256 * 2**20
Run = Callable[[Settings], Measurement]


def replayed(question: Json) -> Json:
    """Attainment of both under the same requests, and the difference, pair by pair.

    ``question``: ``arrivals`` as ``[second, input tokens, output tokens]``, ``control`` and
    ``candidate`` settings, ``sla``, ``alpha``, the engine's ``model`` and ``inventory``, and
    either ``hardware`` or ``cost_model`` for the step times.

    Raises:
        TunerError: step times that do not fit the engine.
        EngineError: settings that the model cannot run under.
    """
    workload, sla = _workload(question["arrivals"]), Sla.parse(question["sla"])
    try:
        run = _runner(question, workload)
        met = {
            arm: _met(run(Settings.from_json(question[arm])), sla)
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
    """By request, in the order of arrivals."""
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


def _runner(question: Json, workload: Workload) -> Run:
    model = model_from_json(question["model"])
    inventory = Inventory.from_json(question["inventory"])
    if question.get("hardware") is not None:
        hardware = parse_hardware(question["hardware"])
        node = Node(
            hardware=hardware,
            model=model,
            precision=Precision.of(inventory.dtype),
            backend=load_backend(OWN_BACKEND, hardware.device),
            block_size=inventory.block_size,
        )
        return lambda settings: node.simulate(settings, workload).measurement
    step_model = StepModel.from_json(question["cost_model"], where="cost model")

    def run(settings: Settings) -> Measurement:
        plan = settings.plan
        ranks = Ranks(
            timer=step_model.timer(plan, model, hides_host=True),
            num_kv_blocks=_num_kv_blocks(inventory, plan, model),
        )
        engine = SimulatedEngine(
            model=model,
            ranks_of=ranks_of_one(plan, ranks),
            block_size=inventory.block_size,
            look_ahead=LookAhead.BEFORE_END,  # as the engine does
        )
        return simulate(engine, settings, workload).measurement

    return run


def _num_kv_blocks(inventory: Inventory, plan: ParallelPlan, model: ModelConfig) -> int:
    """As many as the engine has, as far as it said."""
    if inventory.num_kv_blocks is not None:
        return inventory.num_kv_blocks
    kv_bytes = kv_bytes_of_rank(
        plan,
        model,
        inventory.dtype,
        block_size=inventory.block_size,
        usable_bytes=inventory.device_bytes,
        kv_bytes=inventory.kv_bytes or DEFAULT_KV_BYTES,
    )
    per_token = model.kv_bytes_per_token(plan, inventory.dtype)
    return kv_bytes // (per_token * inventory.block_size)

"""What a step model says of settings under a workload: simulated, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api.documents.places import Place
from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.feasible import check_plan
from engine.spec.model import ModelConfig
from engine.spec.settings import Settings
from policies.sla import Sla
from tuner.described.document import simulation_json, with_interval
from tuner.described.parse import check_context, checkpoint_weights
from tuner.described.title import Asked, Title
from tuner.simulation.simulate import (
    OnProgress,
    Ranks,
    SimulatedEngine,
    SimulationResult,
    ranks_of_one,
    simulate,
)
from tuner.spec.errors import TunerError
from tuner.spec.look_ahead import LookAhead
from tuner.step_model.model import StepModel
from tuner.step_model.timer import ScaledTimer
from tuner.work.models import load_model
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

Json = dict[str, Any]
MIB = 2**20
MAX_REQUESTS = 20_000
# Long, and told by other resources.
LEFT_OUT = ("timeline", "energy", "driver_lag", "driver_lag_ms")


def simulated(question: Json) -> Json:
    """The simulation document of ``question``: see ``api.schemas.prediction``.

    Raises:
        TunerError: too many requests, or a step model that gives no step times.
    """
    name = _model(question)
    model = load_model(name)
    settings = Settings.from_json(question["settings"])
    check_plan(settings.plan, model)
    check_context(question["max_model_len"], model, question["model"])
    workload = _workload(question)
    step_model = StepModel.from_json(question["cost_model"], where="cost model")
    step_model.refuse_checkpoint(checkpoint_weights(name, model))
    sla = None if question["sla"] is None else Sla.parse(question["sla"])
    try:
        return _run(question, model, settings, workload, step_model, sla)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise TunerError(f"the cost model gives no step times here ({error!r})") from error


def _run(
    question: Json,
    model: ModelConfig,
    settings: Settings,
    workload: Workload,
    step_model: StepModel,
    sla: Sla | None,
) -> Json:
    config = EngineConfig(
        model_dir=Path(question["model"]),
        settings=settings,
        dtype=step_model.dtype,
        block_size=question["block_size"],
        kv_cache_bytes=question["kv_cache_mib"] * MIB,
    )
    timer = step_model.timer(settings.plan, model, hides_host=True)
    num_blocks = num_kv_blocks(config, model, settings.plan)

    def run(step_scale: float, on_progress: OnProgress) -> SimulationResult:
        ranks = Ranks(timer=ScaledTimer(timer, step_scale), num_kv_blocks=num_blocks)
        engine = SimulatedEngine(
            model=model,
            ranks_of=ranks_of_one(settings.plan, ranks),
            block_size=config.block_size,
            max_model_len=question["max_model_len"],
            look_ahead=LookAhead.BEFORE_END,  # as the engine does
        )
        return simulate(engine, settings, workload, seed=question["seed"], on_progress=on_progress)

    result = run(1.0, lambda *_: None)
    interval = step_model.error.plan_interval
    asked = Asked(model=question["model"], workload=workload, sla=sla, seed=question["seed"])
    other = step_model.check_model(model)
    document = simulation_json(
        result,
        sla=sla,
        settings=settings,
        workload=workload,
        seed=question["seed"],
        origin={},
        intervals=with_interval(result, run, sla, interval=interval),
        warnings=(*workload.warnings, *filter(None, [other])),
        title=str(
            Title.of_machine(step_model.machine, config.dtype, asked, weights=step_model.weights)
        ),
    )
    return {name: value for name, value in document.items() if name not in LEFT_OUT}


def _model(question: Json) -> str:
    """A name of the catalog, or the folder that the text leads to."""
    if (folders := question["model_folders"]) is None:
        return str(question["model"])
    place = Place(noun="model", variable="GEARSHIFT_MODEL_ROOT", folders=tuple(map(Path, folders)))
    return str(place.resolve(question["model"]))


def _workload(question: Json) -> Workload:
    workload = parse_workload(question["workload"], seed=question["seed"])
    if len(workload) > MAX_REQUESTS:
        raise TunerError(
            f"{len(workload)} requests; at most {MAX_REQUESTS} are predicted at once, so cut the "
            "workload with requests= or seconds="
        )
    return workload

"""What other settings would have done on the load that an engine had: simulated side by side."""

from __future__ import annotations

import math
from typing import Any

from api.aside.step_times import by_step_model, node_of, on_node
from api.documents.policy import model_from_json
from engine.spec.inventory import Inventory
from engine.spec.measurement import Measurement
from engine.spec.settings import Settings
from policies.load_history import LoadSlot
from policies.sla import Sla
from tuner.comparison.replay import RunAt, replay
from tuner.spec.errors import TunerError
from tuner.step_model.model import StepModel
from tuner.workload.observed import draw_minutes, newest
from tuner.workload.workload import Workload

Json = dict[str, Any]
NUM_DRAWS = 4
MOST_REQUESTS = 1500


def effect(question: Json) -> Json:
    """The replay of ``question``: see ``api.services.effects``.

    Raises:
        TunerError: settings that cannot be simulated, or a load without requests.
    """
    slots = newest([LoadSlot(**slot) for slot in question["slots"]], MOST_REQUESTS)
    lengths = [(int(given), int(wanted)) for given, wanted in question["lengths"]]
    draws = [draw_minutes(slots, seed, lengths=lengths) for seed in range(NUM_DRAWS)]
    run, interval = _described(question) if "hardware" in question else _here(question)

    def run_at(settings: Settings, load: Workload, step_scale: float) -> Measurement:
        # Steps may be known to take longer than the model says.
        return run(settings, load, step_scale * question["step_scale"])

    try:
        found = replay(
            run_at,
            draws,
            current=Settings.from_json(question["current"]),
            candidate=Settings.from_json(question["candidate"]),
            sla=None if question["sla"] is None else Sla.parse(question["sla"]),
            interval=interval,
        )
    except (ArithmeticError, LookupError, ValueError) as error:
        raise TunerError(f"the step times give no answer here ({error!r})") from error
    minutes = math.ceil((slots[-1].start_s - slots[0].start_s) / 60) + 1
    return {**found.to_json(), "minutes": minutes}


def _described(question: Json) -> tuple[RunAt, float]:
    """On hardware that is not here."""
    node = node_of(
        question,
        model_from_json(question["model"]),
        Inventory.from_json(question["inventory"]),
        max_model_len=question["max_model_len"],
    )
    return on_node(node), node.interval


def _here(question: Json) -> tuple[RunAt, float]:
    """Runs by the step model that the engine was tuned with, and its interval."""
    step_model = StepModel.from_json(question["cost_model"], where="cost model")
    run_at = by_step_model(
        step_model,
        model_from_json(question["model"]),
        Inventory.from_json(question["inventory"]),
        max_model_len=question["max_model_len"],
    )
    return run_at, step_model.error.plan_interval

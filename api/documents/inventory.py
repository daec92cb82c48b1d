"""What an engine's plans may use, as the service knows it from the engine's registration."""

from __future__ import annotations

from collections.abc import Sequence

from api.documents.policy import model_from_json
from engine.spec.errors import PlanError, PolicyError
from engine.spec.inventory import MOST_RANKS, Inventory, RankKind
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from store.models.base import Json
from tuner.profiling.profile import weights_of


def read_inventory(document: Json | None, capabilities: Sequence[Json]) -> Inventory:
    """The inventory an engine sent.

    An engine of an earlier version sends none: then its knob ``plan`` names the most ranks, if it
    has a limit, and memory is not known.

    Raises:
        EngineError: one that cannot be read.
    """
    if document is not None:
        return Inventory.from_json(document)
    limits = [knob.get("maximum") for knob in capabilities if knob.get("name") == "plan"]
    known = [int(m) for m in limits if isinstance(m, int | float) and 1 <= m <= MOST_RANKS]
    return Inventory(kind=RankKind.CPU, max_ranks=min(known, default=MOST_RANKS))


def weights_held(model: ModelConfig, inventory: Inventory) -> str | None:
    """What an engine's ranks hold the layers of its ``model`` in, in the words of cost models
    (:func:`tuner.profiling.profile.weights_of`); None where ranks are paced and hold none."""
    if inventory.kind is RankKind.PACED:
        return None
    return weights_of(model, None, inventory.kind.value)


def check_plan(plan: ParallelPlan, inventory: Inventory, model: Json, *, pointer: str) -> None:
    """Refuse a plan that the engine would refuse. An empty ``model`` is an unknown one.

    Raises:
        PolicyError: what is too much, or what the model cannot do, with the numbers.
    """
    try:
        if model:
            inventory.check(plan, model_from_json(model))
        else:
            inventory.check_ranks(plan)
    except PlanError as error:
        raise PolicyError(f"{pointer}: {error}") from error

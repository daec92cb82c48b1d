"""How an engine will go from plan to plan, as far as the service can tell beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from api.documents.policy import PolicyDocument, model_from_json
from engine.policy.document import classify, moves_ranks
from engine.spec.inventory import Inventory
from engine.spec.settings import Caps
from engine.transition.planning import first_slots, plan_transition
from store.models.base import Json


def foresee(
    before: PolicyDocument,
    after: PolicyDocument,
    *,
    envelope: Caps,
    inventory: Inventory,
    model: Json,
    capabilities: Sequence[Json],
) -> Json | None:
    """The way between two policies and its price; None where no ranks start or end, or the model
    is not known. The price is what the engine said of that way when it registered.

    It is worked out for replicas that stand side by side from the first device on, as they do
    after a start; the engine itself decides by where they stand.
    """
    old, new = before.settings, after.settings
    if not model or not moves_ranks(classify(old, new, envelope)):
        return None
    limit = after.guards["max_gpus"]
    found = plan_transition(
        old.plan,
        first_slots(old.plan),
        new.plan,
        inventory=inventory,
        model=model_from_json(model),
        most_ranks=None if limit is None else int(limit),
    )
    ways = [way for knob in capabilities for way in knob.get("ways") or ()]
    price: Json = next((way for way in ways if way.get("way") == found.way), {})
    return {
        "way": found.way.value,
        "peak_devices": found.peak_devices,
        "least_devices": found.least_devices,
        "start_s": price.get("start_s"),
        "drain_s": price.get("drain_s"),
        "is_measured": bool(price.get("is_measured")),
        "carried": None,
    }

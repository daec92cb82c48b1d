"""Reading the tuner's recommendation document. Pure functions, no database."""

from __future__ import annotations

from typing import Any

from api.documents.policy import engine_policy
from engine.policy.document import EnginePolicy
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.settings import Caps
from store.models.base import Json


def recommended_policy(document: Json) -> EnginePolicy:
    """The engine policy a recommendation stands for.

    Raises:
        EngineError: a plan or caps that cannot be read.
    """
    return EnginePolicy(
        plan=_plan(document["plan"]),
        threshold_tokens=document["shift_threshold"],
        caps=Caps(**document["caps"]),
        mode=document.get("mode") or "auto",
    )


def predicted_for(recommendation: Json, policy: Json) -> Json | None:
    """What a recommendation predicts, when the policy document is just what it recommends."""
    if not recommendation:
        return None
    if recommended_policy(recommendation).to_json() != engine_policy(policy).to_json():
        return None
    return {
        "fidelity": recommendation.get("fidelity"),
        "metrics": recommendation.get("predicted"),
    }


def _plan(raw: Any) -> ParallelPlan:
    """Plans travel as text (``sp=2,tp=2,shift``) or as an object of degrees."""
    return parse_plan(raw).plan if isinstance(raw, str) else ParallelPlan(**raw)

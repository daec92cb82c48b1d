"""The ``policy/v1`` document: reading, patching, comparing. Pure functions, no database.

A document is the engine's part (``engine.policy.document``) plus what only the service obeys:
``sla``, ``guards`` and ``provenance``. Of the guards, ``max_gpus`` is enforced; ``min_interval_s``
and ``max_reshapes_per_h`` limit automatic reshapes and are enforced once there are any: today
every reshape is asked for by somebody.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.policy.document import (
    EnginePolicy,
    KnobClass,
    check_envelope,
    classify,
    merge_patch,
    policy_from_json,
)
from engine.spec.errors import PolicyError
from engine.spec.feasible import check_plan
from engine.spec.model import ModelConfig, RopeScaling
from engine.spec.settings import Caps
from policies.sla import Sla
from store.audit import hash_document
from store.models.base import Json

SCHEMA = "policy/v1"
ENGINE_PART = ("plan", "shift", "caps", "scheduler", "mode")
RESHAPE_GUARDS = ("min_interval_s", "max_reshapes_per_h")
GUARDS = ("max_gpus", *RESHAPE_GUARDS)
DEFAULT_GUARDS: Json = {"max_gpus": None, "min_interval_s": 60, "max_reshapes_per_h": 4}
# What the service writes itself; a patch that names one may only repeat it.
FIXED = ("schema", "engine", "provenance")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One knob that differs, and what changing it costs."""

    knob: str
    knob_class: KnobClass
    before: Any
    after: Any

    def to_json(self) -> Json:
        return {
            "knob": self.knob,
            "class": self.knob_class.value,
            "from": self.before,
            "to": self.after,
        }


def new_document(
    *, engine_id: str, policy: EnginePolicy, sla: str | None, guards: Json, provenance: Json
) -> Json:
    """A complete document around an engine policy."""
    return {
        "schema": SCHEMA,
        "engine": engine_id,
        **policy.to_json(),
        "sla": sla,
        "guards": {**DEFAULT_GUARDS, **guards},
        "provenance": provenance,
    }


def engine_policy(document: Json, *, version: int = 0) -> EnginePolicy:
    """The part of a document that an engine obeys."""
    return policy_from_json(
        {name: document[name] for name in ENGINE_PART if name in document}, version=version
    )


def patched(document: Json, patch: Json) -> Json:
    """The document with a JSON Merge Patch applied and every default filled in.

    Raises:
        PolicyError: an unknown knob, a wrong kind of value, or a change of a fixed part.
    """
    for name in patch:
        if name not in (*ENGINE_PART, *FIXED, "sla", "guards"):
            known = ", ".join((*ENGINE_PART, "sla", "guards"))
            raise PolicyError(f"/{name}: unknown knob; known here: {known}")
        if name in FIXED and patch[name] != document.get(name):
            raise PolicyError(f"/{name}: is written by the service and cannot be changed")
    merged: Json = merge_patch(document, patch)
    return new_document(
        engine_id=document["engine"],
        policy=engine_policy(merged),
        sla=_checked_sla(merged.get("sla")),
        guards=_checked_guards(merged.get("guards") or {}),
        provenance=document["provenance"],
    )


def differences(before: Json, after: Json, envelope: Caps) -> list[Change]:
    """Every knob that differs, with its class; the service's own knobs are hot."""
    old, new = engine_policy(before), engine_policy(after)
    classes = classify(old, new, envelope)
    for name in ("sla", "guards"):
        if before.get(name) != after.get(name):
            classes[name] = KnobClass.HOT
    return [
        Change(knob=knob, knob_class=kind, before=_value(before, knob), after=_value(after, knob))
        for knob, kind in classes.items()
    ]


def guard_warnings(before: Json, after: Json) -> list[str]:
    """Guards that the change sets and that nothing obeys yet."""
    old, new = before["guards"], after["guards"]
    return [
        f"guards.{name} is kept and will be enforced once reshapes become automatic; "
        "a reshape that somebody asks for is not held back by it"
        for name in RESHAPE_GUARDS
        if new.get(name) != old.get(name)
    ]


def check_applicable(document: Json, *, envelope: Caps, model: Json) -> None:
    """Refuse what the engine could not run, before it is asked.

    Raises:
        PolicyError: caps above the envelope or more devices than the guard allows (``needs``).
        PlanError: a plan this model cannot run, with the numbers.
    """
    policy = engine_policy(document)
    check_envelope(policy, envelope)
    limit = document["guards"].get("max_gpus")
    if limit is not None and policy.plan.world_size > limit:
        raise PolicyError(
            f"/plan: {policy.plan} needs {policy.plan.world_size} devices, guards.max_gpus is "
            f"{limit}; raise the guard or choose a smaller plan",
            needs=KnobClass.RESTART,
        )
    if model:
        check_plan(policy.plan, model_from_json(model))


def etag(version: int, document: Json) -> str:
    """The strong ETag of one policy version."""
    return f'"{version}-{hash_document(document)[:16]}"'


def model_to_json(model: ModelConfig) -> Json:
    """A model's shape as JSON; inverse of :func:`model_from_json`."""
    return asdict(model)


def model_from_json(document: Json) -> ModelConfig:
    """Read what :func:`model_to_json` wrote."""
    scaling = document.get("rope_scaling")
    return ModelConfig(
        **{
            **document,
            "rope_scaling": RopeScaling(**scaling) if scaling else None,
            "eos_token_ids": tuple(document.get("eos_token_ids") or ()),
        }
    )


def _checked_sla(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise PolicyError(f"/sla: {value!r} is not a text like p95_ttft_ms<=500")
    Sla.parse(value)
    return value


def _checked_guards(guards: Any) -> Json:
    if not isinstance(guards, dict):
        raise PolicyError(f"/guards: {guards!r} is not an object")
    for name, value in guards.items():
        if name not in GUARDS:
            raise PolicyError(f"/guards/{name}: unknown knob; known here: {', '.join(GUARDS)}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and (not is_number or value < 0):
            raise PolicyError(f"/guards/{name}: {value!r} is not a number of at least 0")
    return guards


def _value(document: Json, knob: str) -> Any:
    """The value of a dotted knob; the plan's includes whether Shift is on."""
    if knob == "plan":
        return {**document["plan"], "shift": document["shift"]["enabled"]}
    value: Any = document
    for name in knob.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value

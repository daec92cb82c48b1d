"""The ``policy/v1`` document: reading, patching, comparing. No database.

A document is an engine's settings plus what only the service obeys: ``sla``, ``guards`` and
``provenance``. Of the guards, ``max_gpus`` and ``drain_s`` (how long replicas that leave may finish
their requests) are enforced, by the engine too while it changes plans. The others hold back what
the controller does by itself, not what somebody asks for: ``min_interval_s`` and
``max_reshapes_per_h`` changes of capacity, ``allow_shedding`` that requests are turned away
(:mod:`policies.shedding`), ``retunes_per_day`` tuning jobs because of drift, and ``apply_retuned``
that what these recommend is put in force (:mod:`api.control.retune`). ``on_drift`` says what
becomes of settings that somebody changes at the engine itself (:class:`policies.decision.OnDrift`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from engine.policy.document import KnobClass, check_envelope, classify, patched
from engine.spec.errors import PolicyError
from engine.spec.model import ModelConfig
from engine.spec.names import did_you_mean
from engine.spec.quantisation import quantisation_from_json
from engine.spec.rope import RopeKind, RopeScaling
from engine.spec.settings import Caps, Settings
from engine.transition.costs import DEFAULT_DRAIN_S, MOST_DRAIN_S, TransitionLimits
from policies.decision import OnDrift
from policies.sla import Sla
from store.audit import hash_document
from store.models.base import Json
from tuner.work.counts import MODEL_SIZES

SCHEMA = "policy/v1"
ENGINE_PART = ("plan", "shift", "caps", "scheduler", "mode", "admission")
NUMBER_GUARDS = ("max_gpus", "min_interval_s", "max_reshapes_per_h", "drain_s", "retunes_per_day")
COUNT_GUARDS = ("max_gpus", "max_reshapes_per_h", "retunes_per_day")
SWITCHES = ("allow_shedding", "apply_retuned")
ON_DRIFT = "on_drift"
GUARDS = (*NUMBER_GUARDS, *SWITCHES, ON_DRIFT)
MAX_SIZE = 2**31 - 1
DEFAULT_GUARDS: Json = {
    "max_gpus": None,
    "min_interval_s": 60,
    "max_reshapes_per_h": 4,
    "drain_s": DEFAULT_DRAIN_S,
    "retunes_per_day": 1,
    "allow_shedding": True,
    "apply_retuned": False,
    ON_DRIFT: OnDrift.PAUSE.value,
}
# Tunings of one model may add a few tokens to its vocabulary: their steps take as long.
VOCABULARY, ADDED_TOKENS = "vocab_size", 0.05
# In the provenance of a version that was adopted as its engine came back with another model.
OTHER_MODEL = "other_model"
# Fields that the service writes itself; a patch may name one only with the value it has.
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


@dataclass(frozen=True, kw_only=True)
class PolicyDocument:
    """One ``policy/v1`` document, read once: what an engine obeys and what the service adds.

    ``sla`` is as its author wrote it; ``guards`` has a value for every guard.
    """

    engine: str
    settings: Settings
    sla: str | None = None
    guards: Json = field(default_factory=lambda: dict(DEFAULT_GUARDS))
    provenance: Json = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Json) -> PolicyDocument:
        """Read a stored document.

        Raises:
            PolicyError: an unknown knob or a wrong kind of value.
        """
        return cls(
            engine=document["engine"],
            settings=settings_in(document),
            sla=_checked_sla(document.get("sla")),
            guards=_guards(_checked_guards(document.get("guards") or {})),
            provenance=document.get("provenance") or {},
        )

    def to_json(self) -> Json:
        return {
            "schema": SCHEMA,
            "engine": self.engine,
            **self.settings.to_json(),
            "sla": self.sla,
            "guards": self.guards,
            "provenance": self.provenance,
        }

    def patched(self, patch: Json) -> PolicyDocument:
        """This document with a JSON Merge Patch applied.

        Raises:
            PolicyError: an unknown knob, a wrong kind of value, or a change of a fixed part.
        """
        own = self.to_json()
        for name in patch:
            if name not in (*ENGINE_PART, *FIXED, "sla", "guards"):
                known = ", ".join((*ENGINE_PART, "sla", "guards"))
                near = did_you_mean(name, known.split(", "))
                raise PolicyError(f"/{name}: unknown knob{near}; known here: {known}")
            if name in FIXED and patch[name] != own[name]:
                raise PolicyError(f"/{name}: is written by the service and cannot be changed")
        _check_counts(patch.get("guards"))
        return self.from_json(patched(own, patch))


def settings_in(document: Json) -> Settings:
    """The part of a document that an engine obeys.

    Raises:
        PolicyError: an unknown knob or a wrong kind of value.
    """
    return Settings.from_json({name: document[name] for name in ENGINE_PART if name in document})


def limits_in(document: Json) -> TransitionLimits:
    """What a document's guards allow an engine that starts and ends ranks.

    Raises:
        PolicyError: a number that cannot be.
    """
    guards = {**DEFAULT_GUARDS, **(document.get("guards") or {})}
    most, drain_s = guards["max_gpus"], guards["drain_s"]
    return TransitionLimits(
        drain_s=DEFAULT_DRAIN_S if drain_s is None else drain_s,
        most_ranks=None if most is None else int(most),
    )


def envelope_in(document: Json) -> Caps:
    """The caps of an envelope that was accepted; what it left out is as by default."""
    return Caps(**{name: value for name, value in document.items() if value is not None})


def differences(before: PolicyDocument, after: PolicyDocument, envelope: Caps) -> list[Change]:
    """Every knob that differs, with its class; the service's own knobs are hot."""
    classes = classify(before.settings, after.settings, envelope)
    old, new = before.to_json(), after.to_json()
    for name in ("sla", "guards"):
        if old[name] != new[name]:
            classes[name] = KnobClass.HOT
    return [
        Change(knob=knob, knob_class=kind, before=_value(old, knob), after=_value(new, knob))
        for knob, kind in classes.items()
    ]


def check_limits(document: PolicyDocument, *, envelope: Caps) -> None:
    """Refuse what was ruled out beforehand.

    Raises:
        PolicyError: caps above the envelope or more devices than the guard allows (``needs``).
    """
    plan, limit = document.settings.plan, document.guards["max_gpus"]
    check_envelope(document.settings.caps, envelope)
    if limit is not None and plan.world_size > limit:
        raise PolicyError(
            f"/plan: {plan} needs {plan.world_size} devices, guards.max_gpus is "
            f"{limit}; raise the guard or choose a smaller plan",
            needs=KnobClass.RESTART,
        )


def etag(version: int, document: Json) -> str:
    """The strong ETag of one policy version."""
    return f'"{version}-{hash_document(document)[:16]}"'


def model_to_json(model: ModelConfig) -> Json:
    """A model's shape as JSON; inverse of :func:`model_from_json`."""
    return asdict(model)


def model_from_json(document: Json) -> ModelConfig:
    """Read what :func:`model_to_json` wrote."""
    scaling, quantisation = document.get("rope_scaling"), document.get("quantisation")
    return ModelConfig(
        **{
            **document,
            "rope_scaling": _rope_from_json(scaling) if scaling else None,
            "quantisation": quantisation_from_json(quantisation) if quantisation else None,
            "eos_token_ids": tuple(document.get("eos_token_ids") or ()),
        }
    )


def other_shape(tuned: Json, served: Json) -> str | None:
    """In which sizes two models differ, in words; None: in none, or one of them is not known."""
    if not tuned or not served:
        return None
    differing = [name for name in MODEL_SIZES if tuned.get(name) != served.get(name)]
    fewer, more = sorted((tuned.get(VOCABULARY) or 0, served.get(VOCABULARY) or 0))
    if more <= fewer * (1 + ADDED_TOKENS):
        differing = [name for name in differing if name != VOCABULARY]
    return ", ".join(f"{n} {tuned.get(n)}, not {served.get(n)}" for n in differing) or None


def check_model(document: Json) -> None:
    """Raises ValueError or TypeError for a model's shape that no model has."""
    try:
        model_from_json(document)
    except (AttributeError, LookupError, OverflowError) as error:  # of a part of another form
        raise ValueError(f"a part of it cannot be read: {error!r}") from error
    for name in (*MODEL_SIZES, "max_positions"):
        value = document.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise ValueError(f"{name}={value!r}: must be a whole number from 1 to {MAX_SIZE}")


def _rope_from_json(document: Json) -> RopeScaling:
    return RopeScaling(
        **{
            **document,
            "kind": RopeKind(document.get("kind", RopeKind.LLAMA3)),
            "short_factors": tuple(document.get("short_factors") or ()),
            "long_factors": tuple(document.get("long_factors") or ()),
        }
    )


def _checked_sla(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise PolicyError(f"/sla: {value!r} is not a text like p95_ttft_ms<=500")
    Sla.parse(value)
    return value


def _guards(given: Json) -> Json:
    """A value for every guard; of a switch, null is what it is by default."""
    found = {**DEFAULT_GUARDS, **given}
    return found | {n: DEFAULT_GUARDS[n] for n in SWITCHES if found[n] is None}


def _checked_guards(guards: Any) -> Json:
    if not isinstance(guards, dict):
        raise PolicyError(f"/guards: {guards!r} is not an object")
    for name, value in guards.items():
        if name not in GUARDS:
            near, known = did_you_mean(name, GUARDS), ", ".join(GUARDS)
            raise PolicyError(f"/guards/{name}: unknown knob{near}; known here: {known}")
        if name == ON_DRIFT:
            _check_on_drift(value)
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in SWITCHES:
            if value is not None and not isinstance(value, bool):
                raise PolicyError(f"/guards/{name}: {value!r} is not true or false")
        elif value is not None and (not is_number or value < 0):
            raise PolicyError(f"/guards/{name}: {value!r} is not a number of at least 0")
        if name == "drain_s" and value is not None and value > MOST_DRAIN_S:
            raise PolicyError(f"/guards/drain_s: {value!r} is more than {MOST_DRAIN_S:g} seconds")
    return guards


def _check_counts(guards: Any) -> None:
    """Half a change an hour would be none. (What is kept is read as it is.)"""
    for name in COUNT_GUARDS:
        value = guards.get(name) if isinstance(guards, dict) else None
        if isinstance(value, float) and not value.is_integer():
            raise PolicyError(f"/guards/{name}: {value!r} is not a whole number")


def _check_on_drift(value: Any) -> None:
    if value not in tuple(OnDrift):
        known = ", ".join(OnDrift)
        raise PolicyError(f"/guards/{ON_DRIFT}: {value!r} is none of {known}")


def _value(document: Json, knob: str) -> Any:
    """The value of a dotted knob; the plan's includes whether Shift is on."""
    if knob == "plan":
        return {**document["plan"], "shift": document["shift"]["enabled"]}
    value: Any = document
    for name in knob.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value

"""One version of an engine's settings, and the cost class of each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from engine.spec.admission import ADMISSION_KNOBS
from engine.spec.errors import EngineError, PolicyError
from engine.spec.held import why_not_held
from engine.spec.modes import PIN_RULES
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings

# Dotted names of the knobs that start and end ranks.
PLAN = "plan"
REPLICAS = "plan.dp"


class KnobClass(StrEnum):
    """What a change costs, cheapest first."""

    HOT = "hot"
    DRAIN = "drain"
    RESHAPE = "reshape"
    RESTART = "restart"

    @property
    def rank(self) -> int:
        return list(KnobClass).index(self)


@dataclass(frozen=True, kw_only=True)
class EnginePolicy:
    """The settings of one engine, as one version of its policy."""

    settings: Settings
    version: int = 0

    def merged(self, patch: dict[str, Any]) -> EnginePolicy:
        """This policy with a JSON Merge Patch (RFC 7396) of its settings applied.

        Raises:
            PolicyError: an unknown knob or a value of the wrong kind, named.
        """
        document = patched(self.settings.to_json(), patch)
        return replace(self, settings=Settings.from_json(document))


def classify(
    old: Settings, new: Settings, envelope: Caps, *, held: ParallelPlan | None = None
) -> dict[str, KnobClass]:
    """Knob class of every difference between two settings, by dotted knob name.

    Another plan is hot if its modes are rungs of ``held``, the plan whose shards ranks hold (None:
    that of ``old``). Another number of replicas is a knob of its own, ``plan.dp``.
    """
    changes = _plan_classes(old.plan, new.plan, held or old.plan)
    for name in ("threshold_tokens", "rungs", "rung_thresholds"):
        if getattr(old, name) != getattr(new, name):
            changes[f"shift.{name}"] = KnobClass.HOT
    if old.pin != new.pin:
        changes["mode"] = KnobClass.HOT
    if old.order != new.order:
        changes["scheduler.order"] = KnobClass.HOT
    for name in ADMISSION_KNOBS:
        if getattr(old.admission, name, None) != getattr(new.admission, name, None):
            changes[f"admission.{name}"] = KnobClass.HOT
    for name in (f.name for f in fields(Caps)):
        before, after = getattr(old.caps, name), getattr(new.caps, name)
        if before != after:
            changes[f"caps.{name}"] = _cap_class(name, before, after, envelope)
    return changes


def moves_ranks(changes: Mapping[str, KnobClass]) -> bool:
    """Whether ranks start or end for ``changes`` (see :func:`classify`)."""
    return REPLICAS in changes or changes.get(PLAN) is KnobClass.RESHAPE


def check_envelope(caps: Caps, envelope: Caps) -> None:
    """Refuse caps above what the engine was started with.

    Raises:
        PolicyError: with ``needs="restart"`` and the numbers.
    """
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        asked, limit = getattr(caps, name), getattr(envelope, name)
        if asked > limit:
            raise PolicyError(
                f"/caps/{name}: {asked} is above the {limit} this engine was started with; "
                "restart it with a wider envelope",
                needs=KnobClass.RESTART,
            )


def patched(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """``document`` with a merge patch applied. If the plan changes, settings for modes that the new
    plan lacks are dropped, unless the patch itself names them.
    """
    merged: dict[str, Any] = merge_patch(document, patch)
    shift, asked = merged.get("shift"), patch.get("shift") or {}
    plan = _plan_of(merged)
    if plan is None or plan == _plan_of(document):
        return merged
    # A rung is a rung whether Shift is on or not; a pin needs it on.
    ladder = replace(plan, shift=plan.sp > 1).modes
    if shift and "rungs" in shift and "rungs" not in asked:
        merged["shift"] = shift = _with(shift, "rungs", [m for m in shift["rungs"] if m in ladder])
    if shift and "rung_thresholds" in shift and "rung_thresholds" not in asked:
        kept = {m: n for m, n in shift["rung_thresholds"].items() if m in ladder[1:-1]}
        merged["shift"] = _with(shift, "rung_thresholds", kept)
    if "mode" in merged and "mode" not in patch and merged["mode"] not in (*PIN_RULES, *plan.modes):
        del merged["mode"]
    return merged


def _with(section: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """``section`` with this value, or without the name if nothing is left of the value."""
    rest = {key: part for key, part in section.items() if key != name}
    return {**rest, name: value} if value else rest


def _plan_of(document: dict[str, Any]) -> ParallelPlan | None:
    """The plan of a document; None if it names no possible one, which reading the document will
    report."""
    try:
        shift = document.get("shift") or {}
        return ParallelPlan(**(document.get("plan") or {}), shift=bool(shift.get("enabled")))
    except (AttributeError, EngineError, TypeError):
        return None


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: objects merge by key, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _plan_classes(old: ParallelPlan, new: ParallelPlan, held: ParallelPlan) -> dict[str, KnobClass]:
    if why_not_held(replace(held, dp=new.dp), new) is not None:
        return {PLAN: KnobClass.RESHAPE}
    changes = {}
    if replace(new, dp=old.dp) != old:
        changes[PLAN] = KnobClass.HOT
    if new.dp != old.dp:
        changes[REPLICAS] = KnobClass.DRAIN
    return changes


def _cap_class(name: str, before: Any, after: Any, envelope: Caps) -> KnobClass:
    if name in ("max_num_seqs", "max_num_batched_tokens"):
        if after > getattr(envelope, name):
            return KnobClass.RESTART
        # Fewer sequences than now run takes effect as they finish.
        if name == "max_num_seqs" and after < before:
            return KnobClass.DRAIN
    return KnobClass.HOT

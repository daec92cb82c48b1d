"""One version of an engine's settings, and the cost class of each change."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from engine.spec.errors import PolicyError
from engine.spec.settings import Caps, Settings


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
        document = merge_patch(self.settings.to_json(), patch)
        return replace(self, settings=Settings.from_json(document))


def classify(old: Settings, new: Settings, envelope: Caps) -> dict[str, KnobClass]:
    """Knob class of every difference between two settings, by dotted knob name."""
    changes: dict[str, KnobClass] = {}
    if old.plan != new.plan:
        changes["plan"] = KnobClass.RESHAPE
    for name in ("threshold_tokens", "rungs", "rung_thresholds"):
        if getattr(old, name) != getattr(new, name):
            changes[f"shift.{name}"] = KnobClass.HOT
    if old.pin != new.pin:
        changes["mode"] = KnobClass.HOT
    if old.order != new.order:
        changes["scheduler.order"] = KnobClass.HOT
    for name in (f.name for f in fields(Caps)):
        before, after = getattr(old.caps, name), getattr(new.caps, name)
        if before != after:
            changes[f"caps.{name}"] = _cap_class(name, before, after, envelope)
    return changes


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


def _cap_class(name: str, before: Any, after: Any, envelope: Caps) -> KnobClass:
    if name in ("max_num_seqs", "max_num_batched_tokens"):
        if after > getattr(envelope, name):
            return KnobClass.RESTART
        # Fewer sequences than now run takes effect as they finish.
        if name == "max_num_seqs" and after < before:
            return KnobClass.DRAIN
    return KnobClass.HOT

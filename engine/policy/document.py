"""The part of a policy document that an engine obeys, and the cost class of each change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from engine.modes.chooser import ModeChooser
from engine.spec.errors import EngineError, PolicyError
from engine.spec.plan import DEFAULT_SHIFT_THRESHOLD, ParallelPlan, shift_warning
from engine.spec.settings import Caps, Order


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
    """Plan, threshold, caps, mode pin and order of one engine, as one version of its policy."""

    plan: ParallelPlan
    threshold_tokens: int = DEFAULT_SHIFT_THRESHOLD
    caps: Caps = field(default_factory=Caps)
    mode: str = "auto"
    order: Order = Order.FCFS
    version: int = 0

    @property
    def chooser(self) -> ModeChooser:
        """The mode rule of this policy; building it validates threshold and pin."""
        return ModeChooser(plan=self.plan, threshold_tokens=self.threshold_tokens, pin=self.mode)

    @property
    def threshold_warning(self) -> str | None:
        """What is doubtful about the threshold, while it is what decides."""
        if self.mode == "table":
            return None
        return shift_warning(self.plan, self.threshold_tokens, self.caps.max_num_seqs)

    def to_json(self) -> dict[str, Any]:
        """The ``policy/v1`` fields an engine obeys (plan, shift, caps, scheduler, mode)."""
        plan = asdict(self.plan)
        enabled = plan.pop("shift")
        return {
            "plan": plan,
            "shift": {"enabled": enabled, "threshold_tokens": self.threshold_tokens},
            "caps": asdict(self.caps),
            "scheduler": {"order": self.order.value},
            "mode": self.mode,
        }

    def merged(self, patch: dict[str, Any]) -> EnginePolicy:
        """This policy with a JSON Merge Patch (RFC 7396) of the same fields applied.

        Raises:
            PolicyError: an unknown knob or a value of the wrong kind, named.
        """
        document = merge_patch(self.to_json(), patch)
        return policy_from_json(document, version=self.version)


def policy_from_json(document: dict[str, Any], *, version: int = 0) -> EnginePolicy:
    """Read the engine's part of a policy document; missing parts take their defaults.

    Raises:
        PolicyError: an unknown knob or a value of the wrong kind, with its JSON pointer.
    """
    _only(document, ("plan", "shift", "caps", "scheduler", "mode"), "")
    plan = _section(document, "plan")
    shift = _section(document, "shift")
    caps = _section(document, "caps")
    scheduler = _section(document, "scheduler")
    _only(plan, ("dp", "pp", "sp", "tp"), "/plan")
    _only(shift, ("enabled", "threshold_tokens"), "/shift")
    _only(caps, tuple(f.name for f in fields(Caps)), "/caps")
    _only(scheduler, ("order",), "/scheduler")
    _numbers(plan, "/plan", int)
    _numbers({k: v for k, v in shift.items() if k != "enabled"}, "/shift", int)
    _numbers({k: v for k, v in caps.items() if k != "max_step_ms"}, "/caps", int)
    _numbers({k: v for k, v in caps.items() if k == "max_step_ms"}, "/caps", float)
    order = scheduler.get("order", Order.FCFS)
    if not isinstance(order, str) or order not in set(Order):
        raise PolicyError(f"/scheduler/order: {order!r}; known: {', '.join(Order)}")
    enabled = shift.get("enabled", False)
    if not isinstance(enabled, bool):
        raise PolicyError(f"/shift/enabled: {enabled!r} is not true or false")
    threshold = shift.get("threshold_tokens")
    try:
        policy = EnginePolicy(
            plan=ParallelPlan(**_without_nulls(plan), shift=enabled),
            threshold_tokens=DEFAULT_SHIFT_THRESHOLD if threshold is None else threshold,
            caps=Caps(**_without_nulls(caps)),
            mode=str(document.get("mode") or "auto"),
            order=Order(order),
            version=version,
        )
        _ = policy.chooser
    except PolicyError:
        raise
    except EngineError as error:
        raise PolicyError(str(error)) from error
    return policy


def classify(old: EnginePolicy, new: EnginePolicy, envelope: Caps) -> dict[str, KnobClass]:
    """Knob class of every difference between two policies, by dotted knob name."""
    changes: dict[str, KnobClass] = {}
    if old.plan != new.plan:
        changes["plan"] = KnobClass.RESHAPE
    if old.threshold_tokens != new.threshold_tokens:
        changes["shift.threshold_tokens"] = KnobClass.HOT
    if old.mode != new.mode:
        changes["mode"] = KnobClass.HOT
    if old.order != new.order:
        changes["scheduler.order"] = KnobClass.HOT
    for name in (f.name for f in fields(Caps)):
        before, after = getattr(old.caps, name), getattr(new.caps, name)
        if before != after:
            changes[f"caps.{name}"] = _cap_class(name, before, after, envelope)
    return changes


def check_envelope(policy: EnginePolicy, envelope: Caps) -> None:
    """Refuse caps above what the engine was started with.

    Raises:
        PolicyError: with ``needs="restart"`` and the numbers.
    """
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        asked, limit = getattr(policy.caps, name), getattr(envelope, name)
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


def with_version(policy: EnginePolicy, version: int) -> EnginePolicy:
    """The same policy under another version number."""
    return replace(policy, version=version)


def _cap_class(name: str, before: Any, after: Any, envelope: Caps) -> KnobClass:
    if name in ("max_num_seqs", "max_num_batched_tokens"):
        if after > getattr(envelope, name):
            return KnobClass.RESTART
        # Fewer sequences than now run takes effect as they finish.
        if name == "max_num_seqs" and after < before:
            return KnobClass.DRAIN
    return KnobClass.HOT


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PolicyError(f"/{name}: {value!r} is not an object")
    return value


def _without_nulls(found: dict[str, Any]) -> dict[str, Any]:
    """null means the default, as in RFC 7396."""
    return {key: value for key, value in found.items() if value is not None}


def _only(found: dict[str, Any], known: tuple[str, ...], pointer: str) -> None:
    for key in found:
        if key not in known:
            raise PolicyError(f"{pointer}/{key}: unknown knob; known here: {', '.join(known)}")


def _numbers(found: dict[str, Any], pointer: str, kind: type) -> None:
    for key, value in found.items():
        allowed = (int, float) if kind is float else (int,)
        if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
            raise PolicyError(f"{pointer}/{key}: {value!r} is not a {kind.__name__}")

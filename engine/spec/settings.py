"""What an engine may be told to run with, as one value with one JSON form; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar

from engine.spec.errors import EngineError, PolicyError
from engine.spec.plan import AXES, DEFAULT_SHIFT_THRESHOLD, ParallelPlan, shift_warning

MemberT = TypeVar("MemberT", bound=StrEnum)

# Beyond any device, and what every part that counts can hold.
MOST_CAP = 2**31 - 1


class ModePin(StrEnum):
    """What decides the mode of a step on a Shift plan.

    ``table``: the times measured when the ranks started; ``auto``: the threshold; ``base`` and
    ``shift`` hold one mode.
    """

    TABLE = "table"
    AUTO = "auto"
    BASE = "base"
    SHIFT = "shift"


class Order(StrEnum):
    """Order in which waiting requests are admitted."""

    FCFS = "fcfs"
    PRIORITY = "priority"
    SHORTEST_PROMPT = "shortest_prompt"


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Limits the scheduler keeps; all are hot knobs within the start-up envelope.

    ``max_step_ms`` lets the scheduler size prefill chunks so that a mixed step fits it;
    ``max_queue`` is the admission limit on waiting requests. None = no limit.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_step_ms: float | None = None
    max_queue: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if not 1 <= getattr(self, name) <= MOST_CAP:
                raise EngineError(
                    f"{name}={getattr(self, name)}: must be at least 1 and at most {MOST_CAP}"
                )
        if self.max_step_ms is not None and not 0 < self.max_step_ms < math.inf:
            raise EngineError(
                f"max_step_ms={self.max_step_ms}: must be above 0 and finite, or left out"
            )
        if self.max_queue is not None and not 0 <= self.max_queue <= MOST_CAP:
            raise EngineError(
                f"max_queue={self.max_queue}: must be at least 0 and at most {MOST_CAP}, or "
                "left out"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about an engine that may change while it serves.

    ``threshold_tokens`` means something on Shift plans only. Plan and order are the engine's
    own; threshold, caps and pin are the *hot* part that follows the load.

    Raises:
        PolicyError: a negative threshold, a pin or an order of another type, or shift pinned on a
            plan without it.
    """

    plan: ParallelPlan = field(default_factory=ParallelPlan)
    threshold_tokens: int = DEFAULT_SHIFT_THRESHOLD
    caps: Caps = field(default_factory=Caps)
    pin: ModePin = ModePin.AUTO
    order: Order = Order.FCFS

    def __post_init__(self) -> None:
        if not isinstance(self.pin, ModePin):
            raise PolicyError(f"mode {self.pin!r}: must be a ModePin; known: {', '.join(ModePin)}")
        if not isinstance(self.order, Order):
            raise PolicyError(f"order {self.order!r}: must be an Order; known: {', '.join(Order)}")
        if self.threshold_tokens < 0:
            raise PolicyError(f"threshold_tokens={self.threshold_tokens}: must be at least 0")
        if self.pin is ModePin.SHIFT and not self.plan.shift:
            raise PolicyError(
                f"mode 'shift' needs a plan with Shift on; this one is {self.plan}", needs="reshape"
            )

    def __str__(self) -> str:
        """Plan, threshold and caps; what is as by default is left out."""
        threshold = f"={self.threshold_tokens}" if self.plan.shift else ""
        caps = self.caps
        words: dict[str, object] = {
            "seqs": caps.max_num_seqs,
            "tokens": caps.max_num_batched_tokens,
        }
        if caps.max_step_ms is not None:
            words["step_ms"] = f"{caps.max_step_ms:g}"
        if caps.max_queue is not None:
            words["queue"] = caps.max_queue
        if self.pin is not ModePin.AUTO:
            words["mode"] = self.pin
        if self.order is not Order.FCFS:
            words["order"] = self.order
        return " ".join([f"{self.plan}{threshold}", *(f"{k}={v}" for k, v in words.items())])

    @property
    def is_by_threshold(self) -> bool:
        """Whether the threshold decides the mode of each step."""
        return self.plan.shift and self.pin is ModePin.AUTO

    @property
    def threshold_warning(self) -> str | None:
        """What is doubtful about the threshold, while it is what decides."""
        if not self.is_by_threshold:
            return None
        return shift_warning(self.plan, self.threshold_tokens, self.caps.max_num_seqs)

    def with_hot(self, other: Settings) -> Settings:
        """These settings with threshold, caps and pin of ``other``."""
        return replace(
            self, threshold_tokens=other.threshold_tokens, caps=other.caps, pin=other.pin
        )

    def is_hot_as(self, other: Settings) -> bool:
        """Whether threshold, caps and pin are those of ``other``."""
        mine = (self.threshold_tokens, self.caps, self.pin)
        return mine == (other.threshold_tokens, other.caps, other.pin)

    def to_json(self) -> dict[str, Any]:
        """The fields of ``policy/v1`` that an engine obeys: plan, shift, caps, scheduler, mode."""
        return {
            "plan": {axis: getattr(self.plan, axis) for axis in AXES},
            "shift": {"enabled": self.plan.shift, "threshold_tokens": self.threshold_tokens},
            "caps": asdict(self.caps),
            "scheduler": {"order": self.order.value},
            "mode": self.pin.value,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """Read what :meth:`to_json` wrote; missing parts take their defaults.

        Raises:
            PolicyError: an unknown knob or a value that cannot be, with its JSON pointer.
        """
        _only(document, ("plan", "shift", "caps", "scheduler", "mode"), "")
        plan = _section(document, "plan", AXES)
        shift = _section(document, "shift", ("enabled", "threshold_tokens"))
        caps = _section(document, "caps", tuple(f.name for f in fields(Caps)))
        scheduler = _section(document, "scheduler", ("order",))
        for name, value in caps.items():
            _number(value, f"/caps/{name}", float if name == "max_step_ms" else int)
        for axis, degree in plan.items():
            _number(degree, f"/plan/{axis}", int)
        threshold = shift.get("threshold_tokens", DEFAULT_SHIFT_THRESHOLD)
        _number(threshold, "/shift/threshold_tokens", int)
        enabled = shift.get("enabled", False)
        if not isinstance(enabled, bool):
            raise PolicyError(f"/shift/enabled: {enabled!r} is not true or false")
        try:
            return cls(
                plan=ParallelPlan(**plan, shift=enabled),
                threshold_tokens=threshold,
                caps=Caps(**caps),
                pin=_member(ModePin, document.get("mode") or ModePin.AUTO, "/mode"),
                order=_member(Order, scheduler.get("order", Order.FCFS), "/scheduler/order"),
            )
        except PolicyError:
            raise
        except EngineError as error:
            raise PolicyError(str(error)) from error


def _section(document: Mapping[str, Any], name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """One object of a document; null means the default, as in RFC 7396."""
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PolicyError(f"/{name}: {value!r} is not an object")
    _only(value, known, f"/{name}")
    return {key: part for key, part in value.items() if part is not None}


def _only(found: Mapping[str, Any], known: tuple[str, ...], pointer: str) -> None:
    for key in found:
        if key not in known:
            raise PolicyError(f"{pointer}/{key}: unknown knob; known here: {', '.join(known)}")


def _number(value: Any, pointer: str, kind: type) -> None:
    allowed = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise PolicyError(f"{pointer}: {value!r} is not a {kind.__name__}")


def _member(kind: type[MemberT], value: Any, pointer: str) -> MemberT:
    if not isinstance(value, str) or value not in set(kind):
        raise PolicyError(f"{pointer}: {value!r}; known: {', '.join(kind)}")
    return kind(value)

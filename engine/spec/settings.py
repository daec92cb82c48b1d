"""What an engine may be told to run with, as one value with one JSON form; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar

from engine.spec.admission import ADMISSION_KNOBS, Admission
from engine.spec.errors import EngineError, PolicyError
from engine.spec.modes import AUTO, TABLE, Mode, ModePin, pinned_mode, read_mode, read_pin
from engine.spec.names import did_you_mean
from engine.spec.plan import (
    AXES,
    DEFAULT_SHIFT_THRESHOLD,
    MOST_THRESHOLD,
    ParallelPlan,
    shift_warning,
)
from engine.spec.rungs import (
    Thresholds,
    allowed_modes,
    check_modes,
    pin_of,
    rungs_of,
    thresholds_of,
)

MemberT = TypeVar("MemberT", bound=StrEnum)
NameT = TypeVar("NameT", bound=str)

# More than any device needs, and small enough for every counter.
MOST_CAP = 2**31 - 1
# Eleven days; of whole numbers beyond 1e308 there is no float to count with.
MOST_STEP_MS = 1e9
SHIFT_KNOBS = ("enabled", "threshold_tokens", "rungs", "rung_thresholds")
# What is often taken for a text, as the command line has it.
SHAPES = {
    "plan": ', as in {"tp": 2, "dp": 1}',
    "shift": ', as in {"enabled": true, "threshold_tokens": 256}',
}
# What follows the load; plan and order are the engine's own.
HOT_FIELDS = ("threshold_tokens", "rung_thresholds", "rungs", "caps", "pin")


class StepOrder(StrEnum):
    """What shares a step.

    ``MIXED``: decodes, then chunks of prompts and new requests within the same budget.
    ``PREFILL_FIRST``: prompts alone, up to the budget, and decodes only when none can be taken.
    """

    MIXED = "mixed"
    PREFILL_FIRST = "prefill_first"


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
        if self.max_step_ms is not None and not 0 < self.max_step_ms <= MOST_STEP_MS:
            raise EngineError(
                f"max_step_ms={self.max_step_ms}: must be above 0 and at most {MOST_STEP_MS:g}, or "
                "left out"
            )
        if self.max_queue is not None and not 0 <= self.max_queue <= MOST_CAP:
            raise EngineError(
                f"max_queue={self.max_queue}: must be at least 0 and at most {MOST_CAP}, or "
                "left out"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about an engine that may change while it serves.

    ``threshold_tokens`` (of shift), ``rung_thresholds`` (of the rungs between base and shift) and
    ``rungs`` (the modes steps may run in; None: all) mean something on Shift plans only. Plan and
    order are the engine's own; thresholds, rungs, caps and pin are the *hot* part that follows the
    load. ``admission`` None: every request is let in.

    Raises:
        PolicyError: a threshold that cannot be, a pin or an order of another type, or a mode that
            the plan or ``rungs`` do not have.
    """

    plan: ParallelPlan = field(default_factory=ParallelPlan)
    threshold_tokens: int = DEFAULT_SHIFT_THRESHOLD
    caps: Caps = field(default_factory=Caps)
    pin: ModePin = AUTO
    order: Order = Order.FCFS
    rungs: tuple[Mode, ...] | None = None
    rung_thresholds: Thresholds = ()
    admission: Admission | None = None

    def __post_init__(self) -> None:
        _read(read_pin, self.pin, "mode")
        if not isinstance(self.order, Order):
            raise PolicyError(f"order {self.order!r}: must be an Order; known: {', '.join(Order)}")
        if not 0 <= self.threshold_tokens <= MOST_THRESHOLD:
            raise PolicyError(
                f"threshold_tokens={self.threshold_tokens}: must be in 0..{MOST_THRESHOLD}"
            )
        check_modes(self.plan, self.pin, self.rungs, self.rung_thresholds)

    def __str__(self) -> str:
        """Plan, thresholds and caps; what is as by default is left out."""
        caps = self.caps
        words: dict[str, object] = {
            "seqs": caps.max_num_seqs,
            "tokens": caps.max_num_batched_tokens,
        }
        if caps.max_step_ms is not None:
            words["step_ms"] = f"{caps.max_step_ms:g}"
        if caps.max_queue is not None:
            words["queue"] = caps.max_queue
        if self.pin != AUTO:
            words["mode"] = self.pin
        if self.rungs is not None:
            words["rungs"] = ",".join(self.rungs)
        if self.order is not Order.FCFS:
            words["order"] = self.order
        if self.admission is not None:
            words["admit_rps"] = f"{self.admission.rate_rps:g}"
        return " ".join([self.plan_text, *(f"{k}={v}" for k, v in words.items())])

    @property
    def plan_text(self) -> str:
        """The plan with its thresholds, as ``parse_plan`` reads them."""
        if not self.plan.shift:
            return str(self.plan)
        rungs = (f",{mode}={tokens}" for mode, tokens in self.rung_thresholds)
        return f"{self.plan}={self.threshold_tokens}{''.join(rungs)}"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes a step may run in, from base down to shift."""
        return allowed_modes(self.plan, self.rungs)

    @property
    def modes_in_use(self) -> tuple[Mode, ...]:
        """Those of :attr:`modes` that steps of some size run in, as far as thresholds tell."""
        if (held := pinned_mode(self.pin)) is not None:
            return (held,)
        if self.pin == TABLE:
            return self.modes
        idle = set(self.plan.modes[1:-1]) - {mode for mode, _ in self.rung_thresholds}
        return tuple(mode for mode in self.modes if mode not in idle or mode == self.modes[0])

    @property
    def largest_below_base(self) -> int:
        """Tokens of the largest step that thresholds keep out of base."""
        return max(self.threshold_tokens, *(most for _, most in self.rung_thresholds), 0)

    @property
    def is_by_threshold(self) -> bool:
        """Whether the threshold decides the mode of each step."""
        return self.plan.shift and self.pin == AUTO

    @property
    def warnings(self) -> list[str]:
        """What is doubtful: a threshold that decides, and caps of which one makes another vain."""
        caps = self.caps
        found: list[str | None] = []
        if self.is_by_threshold:
            found.append(shift_warning(self.plan, self.largest_below_base, caps.max_num_seqs))
        most = caps.max_num_batched_tokens * self.plan.pp
        if most < caps.max_num_seqs:
            found.append(
                f"max_num_batched_tokens {caps.max_num_batched_tokens} is too small for "
                f"max_num_seqs {caps.max_num_seqs}: {most} sequences at most decode at a time, and "
                "prompts get only the tokens that these leave"
            )
        return [warning for warning in found if warning is not None]

    def with_hot(self, other: Settings) -> Settings:
        """These settings with thresholds, rungs, caps and pin of ``other``."""
        return replace(self, **{name: getattr(other, name) for name in HOT_FIELDS})

    def is_hot_as(self, other: Settings) -> bool:
        """Whether thresholds, rungs, caps and pin are those of ``other``."""
        return all(getattr(self, name) == getattr(other, name) for name in HOT_FIELDS)

    def to_json(self) -> dict[str, Any]:
        """The fields of ``policy/v1`` that an engine obeys: plan, shift, caps, scheduler, mode, and
        admission where there is one."""
        admission = self.admission
        return {
            "plan": {axis: getattr(self.plan, axis) for axis in AXES},
            "shift": self._shift_json(),
            "caps": asdict(self.caps),
            "scheduler": {"order": self.order.value},
            "mode": self.pin,
            **({} if admission is None else {"admission": admission.to_json()}),
        }

    def _shift_json(self) -> dict[str, Any]:
        """Rungs and their thresholds only where they are not as by default."""
        shift: dict[str, Any] = {
            "enabled": self.plan.shift,
            "threshold_tokens": self.threshold_tokens,
        }
        if self.rungs is not None:
            shift["rungs"] = list(self.rungs)
        if self.rung_thresholds:
            shift["rung_thresholds"] = dict(self.rung_thresholds)
        return shift

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """Read what :meth:`to_json` wrote; missing parts take their defaults.

        Raises:
            PolicyError: an unknown knob or a value that cannot be, with its JSON pointer.
        """
        _only(document, ("plan", "shift", "caps", "scheduler", "mode", "admission"), "")
        plan = _section(document, "plan", AXES)
        shift = _section(document, "shift", SHIFT_KNOBS)
        caps = _section(document, "caps", tuple(f.name for f in fields(Caps)))
        scheduler = _section(document, "scheduler", ("order",))
        admission = _section(document, "admission", ADMISSION_KNOBS)
        for name, value in caps.items():
            _number(value, f"/caps/{name}", float if name == "max_step_ms" else int)
        for name, value in admission.items():
            _number(value, f"/admission/{name}", float if name == "rate_rps" else int)
        for axis, degree in plan.items():
            _number(degree, f"/plan/{axis}", int)
        threshold = shift.get("threshold_tokens", DEFAULT_SHIFT_THRESHOLD)
        _number(threshold, "/shift/threshold_tokens", int)
        enabled = shift.get("enabled", False)
        if not isinstance(enabled, bool):
            raise PolicyError(f"/shift/enabled: {enabled!r} is not true or false")
        mode = document.get("mode")
        pin = _read(read_pin, AUTO if mode is None else mode, "/mode")
        rungs = _modes(shift.get("rungs"), list, "/shift/rungs")
        thresholds = _modes(shift.get("rung_thresholds"), dict, "/shift/rung_thresholds")
        for name, tokens in (shift.get("rung_thresholds") or {}).items():
            _number(tokens, f"/shift/rung_thresholds/{name}", int)
        try:
            made = ParallelPlan(**plan, shift=enabled)
            return cls(
                plan=made,
                threshold_tokens=threshold,
                caps=Caps(**caps),
                pin=pin_of(made, pin),
                order=_member(Order, scheduler.get("order", Order.FCFS), "/scheduler/order"),
                rungs=None if rungs is None else rungs_of(made, rungs),
                rung_thresholds=thresholds_of(
                    made,
                    {mode: shift["rung_thresholds"][mode] for mode in thresholds or ()},
                ),
                admission=Admission.from_json(admission),
            )
        except PolicyError:
            raise
        except EngineError as error:
            raise PolicyError(str(error)) from error


def _modes(value: Any, kind: type[list[Any] | dict[str, Any]], pointer: str) -> list[Mode] | None:
    """Modes named by a list or by the keys of an object; None where there is neither."""
    if value is None:
        return None
    if not isinstance(value, kind):
        raise PolicyError(
            f"{pointer}: {value!r} is not {'a list' if kind is list else 'an object'}"
        )
    return [_read(read_mode, name, pointer) for name in value]


def _section(document: Mapping[str, Any], name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """One object of a document; null means the default, as in RFC 7396."""
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PolicyError(f"/{name}: {value!r} is not an object{SHAPES.get(name, '')}")
    _only(value, known, f"/{name}")
    return {key: part for key, part in value.items() if part is not None}


def _only(found: Mapping[str, Any], known: tuple[str, ...], pointer: str) -> None:
    for key in found:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise PolicyError(
                f"{pointer}/{key}: unknown knob{near}; known here: {', '.join(known)}"
            )


def _number(value: Any, pointer: str, kind: type) -> None:
    allowed = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise PolicyError(f"{pointer}: {value!r} is not a {kind.__name__}")


def _member(kind: type[MemberT], value: Any, pointer: str) -> MemberT:
    try:
        return kind(value)
    except ValueError as error:
        raise PolicyError(f"{pointer}: {value!r}; known: {', '.join(kind)}") from error


def _read(reader: Callable[[object], NameT], value: object, pointer: str) -> NameT:
    try:
        return reader(value)
    except ValueError as error:
        raise PolicyError(f"{pointer}: {error}") from error

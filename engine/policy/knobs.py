"""The knobs of an engine, what changing each costs, and the receipt of a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.policy.document import PLAN, REPLICAS, EnginePolicy, KnobClass
from engine.spec.admission import LEAST_BURST
from engine.spec.held import list_held
from engine.spec.modes import ENDS, PIN_RULES
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Order, Settings
from engine.transition.costs import Price, Took
from engine.transition.planning import Way

ADMISSION_RATE = "admission.rate_rps"
RESIZING = (Way.ADD, Way.REMOVE)


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One thing an operator may change, what class of change it is, and its range.

    ``hot_choices`` are values that are hot where others are not. ``ways``: in which ranks start and
    end for it, and what each costs.
    """

    name: str
    knob_class: KnobClass
    current: Any
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] | None = None
    hot_choices: tuple[str, ...] | None = None
    measured_cost_s: float | None = None
    ways: tuple[Price, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The knob as REST tells it, its class under ``class``."""
        return {
            "class" if key == "knob_class" else key: value for key, value in asdict(self).items()
        }


@dataclass(frozen=True, kw_only=True)
class AppliedPolicy:
    """A policy in force: what changed, from which step on, and how long the change took;
    ``transition`` tells of the ranks that started and ended for it.
    """

    policy: EnginePolicy
    changes: dict[str, KnobClass]
    effective_step: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    transition: Took | None = None


def list_knobs(
    settings: Settings,
    envelope: Caps,
    *,
    held: ParallelPlan,
    max_devices: int,
    threads_per_rank: int | None,
    cost_s: Mapping[KnobClass, float],
    prices: Sequence[Price] = (),
) -> list[Knob]:
    """Every knob with its current value, range and, once measured, its cost in seconds.

    ``held``: the plan whose shards ranks hold. ``threads_per_rank`` is one on CPU ranks only.
    ``prices`` of each way to start and end ranks.
    """
    caps, admission = settings.caps, settings.admission
    ranges: list[tuple[str, float | None, float, float | None]] = [
        ("shift.threshold_tokens", settings.threshold_tokens, 0, None),
        *(
            (f"shift.rung_thresholds.{mode}", dict(settings.rung_thresholds).get(mode), 0, None)
            for mode in settings.plan.modes[1:-1]
        ),
        ("caps.max_num_seqs", caps.max_num_seqs, 1, envelope.max_num_seqs),
        (
            "caps.max_num_batched_tokens",
            caps.max_num_batched_tokens,
            1,
            envelope.max_num_batched_tokens,
        ),
        ("caps.max_step_ms", caps.max_step_ms, 0, None),
        ("caps.max_queue", caps.max_queue, 0, None),
        (ADMISSION_RATE, getattr(admission, "rate_rps", None), 0, None),
        ("admission.burst_requests", getattr(admission, "burst_requests", None), LEAST_BURST, None),
    ]
    choices: list[tuple[str, Any, tuple[str, ...]]] = [
        ("mode", settings.pin, tuple(dict.fromkeys((*PIN_RULES, *ENDS, *settings.plan.modes)))),
        ("shift.rungs", settings.modes, settings.plan.modes),
        ("scheduler.order", settings.order.value, tuple(Order)),
    ]
    hot_s = cost_s.get(KnobClass.HOT)
    return [
        Knob(
            name=PLAN,
            knob_class=KnobClass.RESHAPE,
            current=str(settings.plan),
            maximum=max_devices,
            hot_choices=tuple(map(str, list_held(held))),
            measured_cost_s=cost_s.get(KnobClass.RESHAPE),
            ways=tuple(price for price in prices if price.way not in RESIZING),
        ),
        Knob(
            name=REPLICAS,
            knob_class=KnobClass.DRAIN,
            current=settings.plan.dp,
            minimum=1,
            maximum=max_devices // settings.plan.replica_size,
            measured_cost_s=cost_s.get(KnobClass.DRAIN),
            ways=tuple(price for price in prices if price.way in RESIZING),
        ),
        *(
            Knob(
                name=name,
                knob_class=KnobClass.HOT,
                current=current,
                minimum=low,
                maximum=high,
                measured_cost_s=hot_s,
            )
            for name, current, low, high in ranges
        ),
        *(
            Knob(
                name=name,
                knob_class=KnobClass.HOT,
                current=current,
                choices=values,
                measured_cost_s=hot_s,
            )
            for name, current, values in choices
        ),
        *(
            Knob(name="threads_per_rank", knob_class=KnobClass.RESTART, current=count, minimum=1)
            for count in (threads_per_rank,)
            if count is not None
        ),
    ]

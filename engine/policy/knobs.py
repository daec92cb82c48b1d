"""The knobs of an engine, what changing each costs, and the receipt of a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
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

    ``hot_choices`` are values that are hot although others are not. ``ways`` are those in which
    ranks start and end for it, with the cost of each.
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

    ``held``: the plan whose shards ranks hold. ``threads_per_rank`` is a knob of CPU ranks only.
    ``prices`` of each way to start and end ranks.
    """
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
        *_list_hot(settings, envelope, cost_s=cost_s.get(KnobClass.HOT)),
        *(
            Knob(name="threads_per_rank", knob_class=KnobClass.RESTART, current=count, minimum=1)
            for count in (threads_per_rank,)
            if count is not None
        ),
    ]


def _list_hot(settings: Settings, envelope: Caps, *, cost_s: float | None) -> list[Knob]:
    """The knobs that the next step obeys."""
    caps, admission = settings.caps, settings.admission
    rungs = dict(settings.rung_thresholds)
    knob = partial(Knob, knob_class=KnobClass.HOT, measured_cost_s=cost_s)
    return [
        knob(name="shift.threshold_tokens", current=settings.threshold_tokens, minimum=0),
        *(
            knob(name=f"shift.rung_thresholds.{mode}", current=rungs.get(mode), minimum=0)
            for mode in settings.plan.modes[1:-1]
        ),
        knob(
            name="caps.max_num_seqs",
            current=caps.max_num_seqs,
            minimum=1,
            maximum=envelope.max_num_seqs,
        ),
        knob(
            name="caps.max_num_batched_tokens",
            current=caps.max_num_batched_tokens,
            minimum=1,
            maximum=envelope.max_num_batched_tokens,
        ),
        knob(name="caps.max_step_ms", current=caps.max_step_ms, minimum=0),
        knob(name="caps.max_queue", current=caps.max_queue, minimum=0),
        knob(name=ADMISSION_RATE, current=getattr(admission, "rate_rps", None), minimum=0),
        knob(
            name="admission.burst_requests",
            current=getattr(admission, "burst_requests", None),
            minimum=LEAST_BURST,
        ),
        knob(
            name="mode",
            current=settings.pin,
            choices=tuple(dict.fromkeys((*PIN_RULES, *ENDS, *settings.plan.modes))),
        ),
        knob(name="shift.rungs", current=settings.modes, choices=settings.plan.modes),
        knob(name="scheduler.order", current=settings.order.value, choices=tuple(Order)),
    ]

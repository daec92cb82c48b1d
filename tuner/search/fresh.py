"""What fresh draws of the load say of the winner, the runner-up and trial 0, which share them.

What was chosen as best of many was also lucky on the requests that it was chosen by. So all three
see the same new draws: differences between them are then not those of luck, and the gain over trial
0 comes with an interval (``policies.paired``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.objective import (
    GOODPUT,
    NOTICEABLE,
    Objective,
    goodput_rps_per_device,
    rounded_chance,
)
from policies.paired import Change, paired_change, paired_difference
from policies.points import Estimate, OperatingPoint, estimates_to_json
from policies.sla import Sla
from policies.verdict import meets_in_run

GOODPUT_PER_DEVICE = f"{GOODPUT}_per_device"


class Role(StrEnum):
    """Whose runs they are."""

    WINNER = "winner"
    RUNNER_UP = "runner_up"
    BASELINE = "baseline"


@dataclass(kw_only=True)
class Drawn:
    """Points of one setting by draw. ``chosen_by`` is the point that it was chosen by, None for
    trial 0; ``reason`` says why draws are missing."""

    settings: Settings
    chosen_by: OperatingPoint | None = None
    points: dict[int, OperatingPoint] = field(default_factory=dict)
    reason: str | None = None

    def num_met(self, sla: Sla) -> int:
        return sum(meets_in_run(point, sla) for point in self.points.values())

    def to_json(self, sla: Sla) -> dict[str, Any]:
        return {
            "settings": self.settings.to_json(),
            "num_met": self.num_met(sla),
            "draws": {
                str(draw): estimates_to_json(point.metrics)
                for draw, point in sorted(self.points.items())
            },
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class FreshDraws:
    """All of them. ``not_reached``: what was left out, and why."""

    sla: Sla
    objective: Objective
    fidelity: Fidelity
    num_draws: int
    num_requests: int
    runs: dict[Role, Drawn]
    not_reached: tuple[str, ...] = ()

    @property
    def gain(self) -> dict[str, Change]:
        """How much more than trial 0 the winner has of each bounded latency, and of goodput per
        device; without what is not known of both in two draws or more."""
        winner, before = self._shared(Role.BASELINE)
        found = {
            c.key: paired_change(_actual(winner, c.key), _actual(before, c.key))
            for c in self.sla.per_run
            if c.metric.is_latency
        }
        found[GOODPUT_PER_DEVICE] = paired_change(
            [goodput_rps_per_device(point) for point in winner],
            [goodput_rps_per_device(point) for point in before],
        )
        return {key: change for key, change in found.items() if change is not None}

    @property
    def is_missed(self) -> bool:
        """Whether the winner missed the SLA in more than half of the draws."""
        winner = self.runs[Role.WINNER]
        return 2 * winner.num_met(self.sla) < len(winner.points)

    @property
    def winner_overall(self) -> OperatingPoint:
        """The winner's median over the draws; its intervals are their ends."""
        winner = self.runs[Role.WINNER]
        points = list(winner.points.values())
        values = {
            key: [point.metrics[key].value for point in points]
            for key in points[0].metrics
            if all(key in point.metrics for point in points)
        }
        metrics = {
            key: Estimate(value=median(own), low=min(own), high=max(own))
            for key, own in values.items()
        }
        return OperatingPoint(settings=winner.settings, fidelity=self.fidelity, metrics=metrics)

    @property
    def why_demote(self) -> str | None:
        """Why the winner should not stay one; None where it should.

        It missed the SLA in more than half of the draws; or the runner-up, which was as likely to
        meet it on as many devices, was better by the objective beyond the noise of the draws.
        """
        winner, other = self.runs[Role.WINNER], self.runs.get(Role.RUNNER_UP)
        if self.is_missed:
            met, drawn = winner.num_met(self.sla), len(winner.points)
            return f"it met the SLA in {met} of {drawn} fresh draws"
        if other is None or not self._may_replace(winner, other):
            return None
        mine, theirs = self._shared(Role.RUNNER_UP)
        ahead = paired_difference(self._scores(mine), self._scores(theirs))
        if ahead is None or ahead.low <= 0 or ahead.mean < NOTICEABLE:
            return None
        return f"{other.settings} was better on {len(theirs)} fresh draws of both, beyond noise"

    @property
    def headline(self) -> str | None:
        """The gain over trial 0 in one line; None where there is none to tell."""
        if not (gain := self.gain):
            return None
        told = ", ".join(f"{key} {change}" for key, change in gain.items())
        before = self.runs[Role.BASELINE]
        num_shared = len(self._shared(Role.BASELINE)[0])
        return f"{told} against trial 0 ({before.settings}; {num_shared} fresh draws of both)"

    def to_json(self) -> dict[str, Any]:
        return {
            "fidelity": self.fidelity.value,
            "draws": self.num_draws,
            "requests": self.num_requests,
            "runs": {role.value: drawn.to_json(self.sla) for role, drawn in self.runs.items()},
            "gain": {key: change.to_json() for key, change in self.gain.items()},
            "headline": self.headline,
        }

    def _may_replace(self, winner: Drawn, other: Drawn) -> bool:
        if winner.chosen_by is None or other.chosen_by is None:
            return False
        return (
            other.num_met(self.sla) >= winner.num_met(self.sla)
            and other.chosen_by.cost_devices <= winner.chosen_by.cost_devices
            and rounded_chance(other.chosen_by, self.sla)
            >= rounded_chance(winner.chosen_by, self.sla)
        )

    def _shared(self, role: Role) -> tuple[list[OperatingPoint], list[OperatingPoint]]:
        """Points of the winner and of ``role`` on the draws that both have."""
        mine = self.runs[Role.WINNER].points
        theirs = self.runs[role].points if role in self.runs else {}
        both = sorted(mine.keys() & theirs.keys())
        return [mine[draw] for draw in both], [theirs[draw] for draw in both]

    def _scores(self, points: Sequence[OperatingPoint]) -> list[float]:
        """What the objective makes smallest; between plans of as many devices, their latency."""
        if self.objective is Objective.DEVICES:
            return [point.latency_score(self.sla) for point in points]
        return [self.objective.values(point, self.sla)[0] for point in points]


def _actual(points: Sequence[OperatingPoint], key: str) -> list[float]:
    """The values of ``key``; 0, which no ratio takes, where one is not known."""
    return [point.metrics[key].value if key in point.metrics else 0.0 for point in points]

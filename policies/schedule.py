"""The schedule: for each load band the hot settings that leave the SLA most headroom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from engine.spec.errors import EngineError
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.errors import PolicyInputError
from policies.points import Estimate, estimates_from_json, estimates_to_json

SCHEMA = "schedule/v2"


@dataclass(frozen=True, kw_only=True)
class LoadBand:
    """A range of request rates at one length mix, its settings and their SLA headroom.

    The range is [low, high); ``headroom`` is the smallest SLA margin predicted in it (1 = budget
    untouched, negative = missed).
    """

    rate_rps_low: float
    rate_rps_high: float
    mean_input_tokens: float
    mean_output_tokens: float
    settings: Settings
    headroom: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate_rps_low < self.rate_rps_high:
            raise PolicyInputError(
                f"load band {self.rate_rps_low}..{self.rate_rps_high} requests/s: "
                "the low end must be at least 0 and below the high end"
            )
        if self.mean_input_tokens <= 0 or self.mean_output_tokens <= 0:
            raise PolicyInputError(f"load band {self}: mean lengths must be above 0")

    @property
    def mix(self) -> tuple[float, float]:
        """Mean input and output tokens: the group of bands this one belongs to."""
        return (self.mean_input_tokens, self.mean_output_tokens)

    def to_json(self) -> dict[str, Any]:
        return {
            "rate_rps_low": self.rate_rps_low,
            "rate_rps_high": self.rate_rps_high if math.isfinite(self.rate_rps_high) else None,
            "mean_input_tokens": self.mean_input_tokens,
            "mean_output_tokens": self.mean_output_tokens,
            "settings": self.settings.to_json(),
            "headroom": self.headroom if math.isfinite(self.headroom) else None,
        }


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Load bands of one plan. Bands of one mix stand in order of rate without gap or overlap.

    ``alone`` has the latencies of such requests one at a time, by the SLA's words
    (``p95_ttft_ms``); each is the lowest under any band's settings. It is empty if nobody has
    measured them.

    Raises:
        PolicyInputError: no band, a gap or an overlap, or bands of several plans.
    """

    bands: tuple[LoadBand, ...]
    alone: Mapping[str, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.bands:
            raise PolicyInputError("schedule: needs at least one load band")
        for mix in {band.mix for band in self.bands}:
            for i, j in pairwise(self.group(mix)):
                low, high = self.bands[i], self.bands[j]
                if low.rate_rps_high != high.rate_rps_low:
                    raise PolicyInputError(
                        f"schedule: bands of one mix must meet; {low.rate_rps_high} is followed "
                        f"by {high.rate_rps_low} requests/s"
                    )
        if len(plans := {band.settings.plan for band in self.bands}) > 1:
            raise PolicyInputError(
                f"schedule: its bands are of {len(plans)} plans "
                f"({', '.join(sorted(map(str, plans)))}); they must be of one"
            )

    @property
    def plan(self) -> ParallelPlan:
        """The plan of all its bands."""
        return self.bands[0].settings.plan

    def with_replicas(self, dp: int) -> Schedule:
        """The schedule of as many replicas of the same kind: each keeps its share of the load."""
        factor = dp / self.plan.dp
        plan = replace(self.plan, dp=dp)
        return replace(
            self,
            bands=tuple(
                replace(
                    band,
                    rate_rps_low=band.rate_rps_low * factor,
                    rate_rps_high=band.rate_rps_high * factor,
                    settings=replace(band.settings, plan=plan),
                )
                for band in self.bands
            ),
        )

    def group(self, mix: tuple[float, float]) -> tuple[int, ...]:
        """Indices of the bands of one mix, lowest rate first."""
        members = [i for i, band in enumerate(self.bands) if band.mix == mix]
        return tuple(sorted(members, key=lambda i: self.bands[i].rate_rps_low))

    def nearest_mix(self, input_tokens: float, output_tokens: float) -> tuple[float, float]:
        """The mix closest to the observed one, by ratio of input and of output lengths."""

        def distance(mix: tuple[float, float]) -> float:
            return abs(math.log(mix[0] / input_tokens)) + abs(math.log(mix[1] / output_tokens))

        return min(dict.fromkeys(band.mix for band in self.bands), key=distance)

    def find_band(
        self, rate_rps: float, mean_input_tokens: float, mean_output_tokens: float
    ) -> int:
        """Index of the band for this load; beyond either end, the first or last of its mix."""
        group = self.group(self.nearest_mix(mean_input_tokens, mean_output_tokens))
        for index in group:
            if rate_rps < self.bands[index].rate_rps_high:
                return index
        return group[-1]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "bands": [band.to_json() for band in self.bands],
            "alone": estimates_to_json(self.alone),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Schedule:
        """Read what :meth:`to_json` wrote.

        Raises:
            PolicyInputError: another schema, a missing part, or a value that cannot be.
        """
        schema = document.get("schema")
        if schema != SCHEMA:
            raise PolicyInputError(f"schedule: schema {schema!r} is not {SCHEMA!r}")
        try:
            return cls(
                bands=tuple(_band(raw) for raw in document["bands"]),
                alone=estimates_from_json(document.get("alone") or {}),
            )
        except KeyError as missing:
            raise PolicyInputError(f"schedule: {missing} is missing") from missing
        except (AttributeError, TypeError, ValueError, OverflowError, EngineError) as error:
            raise PolicyInputError(f"schedule: {error}") from error


def _band(raw: Mapping[str, Any]) -> LoadBand:
    high, headroom = raw["rate_rps_high"], raw["headroom"]
    return LoadBand(
        rate_rps_low=float(raw["rate_rps_low"]),
        rate_rps_high=math.inf if high is None else float(high),
        mean_input_tokens=float(raw["mean_input_tokens"]),
        mean_output_tokens=float(raw["mean_output_tokens"]),
        settings=Settings.from_json(raw["settings"]),
        headroom=-math.inf if headroom is None else float(headroom),
    )

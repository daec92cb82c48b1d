"""Estimates the energy of a run: busy seconds of each kind times a device's watts.

An estimate, not a measurement: a device draws one of three powers, whatever the step; links,
processors, fans and power supplies are left out. It serves to compare runs on one kind of device.
arXiv 2606.01927 reports such a comparison: up to 54 % less energy with the host overlapped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol

from engine.spec.plan import ParallelPlan
from tuner.described.node import Node
from tuner.hardware.power import compute_share
from tuner.simulation.simulate import SimulationResult
from tuner.spec.errors import TunerError


class Power(Protocol):
    """Watts of one device: nothing runs, memory is the limit, the arithmetic units are."""

    @property
    def idle_w(self) -> float: ...
    @property
    def memory_bound_w(self) -> float: ...
    @property
    def compute_bound_w(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class BusyTime:
    """What the ranks of ``plan`` did in ``wall_s`` seconds of a run.

    ``prefill_s`` and ``decode_s`` sum the seconds of every pipeline stage of every replica, each
    step divided by the kinds of its tokens; all ranks of a stage are busy together.

    Raises:
        TunerError: a negative time, or more busy time than the ranks had.
    """

    plan: ParallelPlan
    wall_s: float
    prefill_s: float
    decode_s: float

    def __post_init__(self) -> None:
        if min(self.wall_s, self.prefill_s, self.decode_s) < 0:
            raise TunerError(f"busy time {self}: a time is below 0")
        # Sums of many step times round: a little more than all of the time counts as all.
        if self.busy_rank_s > self.rank_s * (1 + 1e-6) + 1e-6:
            raise TunerError(f"busy time {self}: ranks were busy longer than the run took")

    @property
    def rank_s(self) -> float:
        """Seconds of all ranks of the plan together."""
        return self.wall_s * self.plan.world_size

    @property
    def busy_rank_s(self) -> float:
        """Those in which they ran a step."""
        return (self.prefill_s + self.decode_s) * self.plan.stage_size


@dataclass(frozen=True, kw_only=True)
class EnergyEstimate:
    """Joules of a run by what they went into; ``unused_joules``: devices that no rank holds.

    ``utilization``: the share of their time in which the ranks ran a step.
    """

    prefill_joules: float
    decode_joules: float
    idle_joules: float
    unused_joules: float
    wall_s: float
    output_tokens: int
    utilization: float

    @property
    def joules(self) -> float:
        """All devices of the node, those that no rank holds included."""
        return self.prefill_joules + self.decode_joules + self.idle_joules + self.unused_joules

    @property
    def joules_per_output_token(self) -> float | None:
        """None when no token came out."""
        return self.joules / self.output_tokens if self.output_tokens else None

    @property
    def mean_w(self) -> float:
        return self.joules / self.wall_s if self.wall_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "is_estimate": True,
            "joules": self.joules,
            "joules_per_output_token": self.joules_per_output_token,
            "mean_w": self.mean_w,
            **parts,
        }


def busy_times(result: SimulationResult) -> list[BusyTime]:
    """What the ranks of a simulated run did, one entry per plan it had."""
    starts = [spell.from_s for spell in result.spells]
    prefill_s, decode_s = [0.0] * len(starts), [0.0] * len(starts)
    for segment in result.segments:
        spell = bisect_right(starts, segment.start_s) - 1
        shape = segment.shape
        share = compute_share(shape.num_prefill_tokens, shape.num_decode_tokens)
        prefill_s[spell] += share * segment.busy_s
        decode_s[spell] += (1 - share) * segment.busy_s
    return [
        BusyTime(
            plan=spell.plan,
            wall_s=spell.to_s - spell.from_s,
            prefill_s=prefill_s[nth],
            decode_s=decode_s[nth],
        )
        for nth, spell in enumerate(result.spells)
    ]


def energy_of(node: Node, result: SimulationResult) -> EnergyEstimate:
    """Energy of a run that :meth:`tuner.described.node.Node.simulate` returned."""
    return estimate_energy(
        busy_times(result),
        power=node.hardware.device.power,
        num_devices=node.hardware.count,
        output_tokens=sum(t.output_tokens for t in result.measurement.timings),
    )


def estimate_energy(
    spells: Iterable[BusyTime], *, power: Power, num_devices: int, output_tokens: int
) -> EnergyEstimate:
    """Energy of a run of ``num_devices`` devices, one spell per plan it had.

    Seconds in which ranks restart count as idle: give them to the plan that they restart for.

    Raises:
        TunerError: a plan has more ranks than there are devices.
    """
    prefill_s = decode_s = idle_s = unused_s = wall_s = 0.0
    for spell in spells:
        unused = num_devices - spell.plan.world_size
        if unused < 0:
            raise TunerError(f"plan {spell.plan} has more ranks than the {num_devices} devices")
        prefill_s += spell.prefill_s * spell.plan.stage_size
        decode_s += spell.decode_s * spell.plan.stage_size
        idle_s += max(0.0, spell.rank_s - spell.busy_rank_s)
        unused_s += unused * spell.wall_s
        wall_s += spell.wall_s
    held_s = prefill_s + decode_s + idle_s
    return EnergyEstimate(
        prefill_joules=prefill_s * power.compute_bound_w,
        decode_joules=decode_s * power.memory_bound_w,
        idle_joules=idle_s * power.idle_w,
        unused_joules=unused_s * power.idle_w,
        wall_s=wall_s,
        output_tokens=output_tokens,
        utilization=(prefill_s + decode_s) / held_s if held_s else 0.0,
    )

"""What an answer says if nothing could be simulated: trials of a server, without step times."""

from __future__ import annotations

import math

from policies.points import OperatingPoint
from policies.schedule import LoadBand, Schedule
from tuner.described.title import Asked, Title
from tuner.hardware import Precision
from tuner.search.context import TuningContext
from tuner.spec.machine import this_machine


def lone_band(context: TuningContext, best: OperatingPoint) -> Schedule:
    """One band for every load, because only the trials' load is known."""
    workload = context.workload
    band = LoadBand(
        rate_rps_low=0.0,
        rate_rps_high=math.inf,
        mean_input_tokens=float(workload.input_tokens.mean()),
        mean_output_tokens=float(workload.output_tokens.mean()),
        settings=best.settings,
        headroom=best.headroom(context.sla),
    )
    return Schedule(bands=(band,))


def unguided_title(context: TuningContext, asked: Asked) -> Title:
    """What was asked, of a server on this machine."""
    return Title(
        asked=asked,
        dtype=Precision.of(context.config.dtype).value,
        place=f"this machine ({this_machine(context.spec.device)})",
        system=f"{context.spec.engine}, tried live",
    )

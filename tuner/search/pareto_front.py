"""The Pareto front of goodput per device against latency, and how it grew with each trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from policies.objective import Objective
from policies.pareto import front_of, hypervolume
from policies.sla import Sla
from tuner.search.trials import TrialRecord

# The reference point: no goodput, and latencies (geometric mean) just at the bounds.
REFERENCE = (0.0, 1.0)


def pareto_json(trials: Sequence[TrialRecord], sla: Sla) -> dict[str, Any]:
    """The front of all trials, best goodput first, and the hypervolume after each trial.

    The hypervolume is the area that the front covers: requests/s per device within the SLA, times
    the share of the latency bounds left. It never falls; once it stops growing, more trials hardly
    help.
    """
    costs: dict[int, tuple[float, float]] = {}
    volumes = []
    for index, trial in enumerate(trials):
        if (point := trial.point) is not None:
            goodput, latency = Objective.PARETO.values(point, sla)
            if math.isfinite(latency):
                costs[index] = (goodput, math.exp(latency))
        volumes.append(hypervolume(costs.values(), REFERENCE))
    return {
        "front": [
            {
                "trial": trials[index].number,
                "settings": trials[index].settings.to_json(),
                "num_devices": trials[index].settings.plan.world_size,
                "goodput_rps_per_device": -costs[index][0],
                "latency_over_bound": costs[index][1],
                "is_feasible": trials[index].is_feasible,
            }
            for index in front_of(costs)
        ],
        "hypervolume": volumes,
    }

"""Whether a workload has what an SLA judges by."""

from __future__ import annotations

from policies.constraint import Metric
from policies.sla import Sla
from tuner.spec.errors import TunerError
from tuner.workload.workload import Workload

# Of an output of fewer tokens there is no time per further token, nor a gap.
LEAST_TOKENS = 2


def check_judged(workload: Workload, sla: Sla) -> None:
    """Raises TunerError where no output is long enough for a bound of the SLA to say anything: then
    nothing can meet it, nor miss it."""
    bounds = [c for c in sla.constraints if c.metric in (Metric.TPOT_MS, Metric.ITL_MS)]
    if bounds and all(arrival.output_tokens < LEAST_TOKENS for arrival in workload.arrivals):
        raise TunerError(
            f"SLA {', '.join(map(str, bounds))}: no output of workload "
            f"{workload.source.spec!r} has the two tokens that it takes to judge by it; leave it "
            "out"
        )

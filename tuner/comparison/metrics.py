"""What cases are compared by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from policies.constraint import Op
from policies.sla import Sla

USUAL = ("p95_ttft_ms", "p95_tpot_ms", "p95_e2e_ms")
THROUGHPUT = "throughput_tokens_per_s"


def metric_keys(sla: Sla | None) -> dict[str, bool]:
    """Whether less is better, by metric: of TTFT, TPOT and E2E the percentile that the SLA bounds
    (else p95), the throughput, and whatever else it bounds."""
    bounded = {c.key: c.op is Op.AT_MOST for c in (sla.per_run if sla else ())}
    keys: dict[str, bool] = {}
    for usual in USUAL:
        metric = usual.removeprefix("p95_")
        own = [key for key in bounded if key.endswith(f"_{metric}")]
        keys |= dict.fromkeys(own or [usual], True)
    return {**keys, THROUGHPUT: False, **bounded}


def score(flat: Mapping[str, float], sla: Sla | None) -> float:
    """How slow a run was: the mean log of its latencies, over their bounds where the SLA has some
    (lower is faster)."""
    bounds = {c.key: c.bound for c in (sla.per_run if sla else ()) if c.metric.is_latency}
    bounds = bounds or dict.fromkeys(USUAL[:2], 1.0)
    # Outputs of one token have no TPOT.
    known = [flat[key] / bound for key, bound in bounds.items() if key in flat]
    return fmean(math.log(max(value, 1e-9)) for value in known) if known else math.inf


def mean_score(draws: Sequence[Mapping[str, float]], sla: Sla | None) -> float:
    """The same over draws."""
    return fmean(score(flat, sla) for flat in draws)


def metric_name(key: str) -> str:
    """``p95_ttft_ms`` as a reader says it."""
    if key == THROUGHPUT:
        return "tokens/s"
    if key.endswith("_ms"):
        words = key.removesuffix("_ms").split("_")
        return f"{' '.join([*words[:-1], words[-1].upper()])} ms"
    return key.replace("_", " ")

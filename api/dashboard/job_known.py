"""What the page of a tuning job has read of it so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from api.schemas.analysis import ImportanceView, ParetoView
from api.schemas.tuning import RecommendationView, TuningJobView
from api.services import analysis, jobs
from policies.constraint import Constraint
from policies.errors import PolicyInputError
from policies.sla import Sla
from store import UnitOfWork
from store.models import JobState
from store.paging import PageRequest

# Trials that one look reads at most; the next reads on.
TRIALS_AT_ONCE = 500
# After an analysis, so many times as long as it took passes until the next.
ANALYSIS_REST = 10
LIVE = ("probed", "measured")
Json = dict[str, Any]


@dataclass
class Known:
    """What the page has read of a job so far; trials never change once they are there."""

    job: TuningJobView
    trials: list[Json] = field(default_factory=list)
    pareto: ParetoView | None = None
    importance: ImportanceView | None = None
    infeasible: Json | None = None
    chosen: Json | None = None
    analysed: tuple[int, JobState] | None = None
    next_analysis_s: float = 0.0

    @property
    def so_far(self) -> tuple[int, JobState]:
        """Trials that are known, and the job's state."""
        return len(self.trials), self.job.state

    @property
    def sla(self) -> Sla | None:
        """What the job is to meet; None where it cannot be read any more."""
        try:
            return Sla.parse(self.job.spec["sla"])
        except (KeyError, PolicyInputError):
            return None

    @property
    def bounds(self) -> list[Constraint]:
        """The latencies that the SLA bounds, as far as trials tell of them."""
        found = () if self.sla is None else self.sla.constraints
        return [c for c in found if c.metric.is_latency and c.percentile is not None]

    def is_chosen(self, record: Json) -> bool:
        """Whether a trial ran the settings that the job recommends."""
        return self.chosen is not None and record["settings"] == self.chosen

    @property
    def pairs(self) -> list[tuple[Json, float, Json]]:
        """For each live trial the prediction of the first bound, the measurement, and settings."""
        if not self.bounds:
            return []
        key = self.bounds[0].key
        found = []
        for record in self.trials:
            predicted = estimate(record, "predicted", key)
            measured = estimate(record, "metrics", key).get("value")
            if record.get("fidelity") in LIVE and predicted and measured is not None:
                found.append((predicted, measured, record["settings"]))
        return found


def look(uow: UnitOfWork, job_id: str, known: Known, *, most: int = TRIALS_AT_ONCE) -> None:
    """Read on: the job, its new trials, what it recommends, and why nothing met the SLA."""
    known.job = jobs.view(uow, uow.jobs.get(job_id))
    after = known.trials[-1]["number"] if known.trials else None
    page = uow.trials.list_page(job_id, PageRequest(limit=most, after=after))
    for record in uow.trials.records(page.items):
        known.trials.append({k: v for k, v in record.items() if k != "document"})
    if known.job.state is JobState.INFEASIBLE and known.infeasible is None:
        known.infeasible = jobs.report(uow, job_id).get("infeasible") or {}
    if known.job.recommendation_id is not None and known.chosen is None:
        row = uow.recommendations.get(known.job.recommendation_id)
        answer = RecommendationView.model_validate(row).recommendation
        known.chosen = (answer or {}).get("settings")


def analyse(uow: UnitOfWork, job_id: str, known: Known) -> bool:
    """What the trials say, where there are others than last time; whether that was asked.

    It reads all of them, so it rests in proportion to how long that takes, but not before the last.
    """
    begin_s = time.monotonic()
    is_last = known.job.state.is_final and len(known.trials) == known.job.trials_done
    is_resting = begin_s < known.next_analysis_s and not is_last
    if known.analysed == known.so_far or is_resting:
        return False
    known.analysed = known.so_far
    if known.trials:
        known.pareto = analysis.pareto(uow, job_id)
        known.importance = analysis.importance(uow, job_id)
    now_s = time.monotonic()
    known.next_analysis_s = now_s + ANALYSIS_REST * (now_s - begin_s)
    return True


def estimate(record: Json, part: str, key: str) -> Json:
    """What is known of a metric; empty where nothing is."""
    return (record.get(part) or {}).get(key) or {}

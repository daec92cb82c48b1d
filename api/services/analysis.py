"""What a tuning job's trials say: the Pareto front, and which knobs mattered."""

from __future__ import annotations

from collections.abc import Iterable

from api.documents.tuning_spec import tuning_spec
from api.schemas.analysis import AimView, FrontPoint, ImportanceView, KnobView, ParetoView
from engine.spec.measurement import Fidelity
from policies.pareto import aims_of, pareto_front
from policies.points import OperatingPoint
from policies.sla import Sla
from store import UnitOfWork
from store.models import TuningJob
from tuner.search.importance import importances
from tuner.search.trials import TrialRecord

FIDELITIES = list(Fidelity)


def pareto(uow: UnitOfWork, job_id: str) -> ParetoView:
    """The trials so far that no other beats in devices and in all that the SLA bounds.

    Of settings that were tried twice the trial of higher fidelity counts, else the later one.

    Raises:
        NotFoundError: no such job.
    """
    job = uow.jobs.get(job_id)
    sla = _sla(job)
    trials = _trials(uow, job)
    best: dict[object, tuple[TrialRecord, OperatingPoint]] = {}
    for trial, point in trials:
        known = best.get(trial.settings)
        if known is None or _rank(point) >= _rank(known[1]):
            best[trial.settings] = trial, point
    numbers = {id(point): trial for trial, point in best.values()}
    aims = aims_of(sla)
    front = pareto_front([point for _, point in best.values()], aims)
    return ParetoView(
        job_id=job.id,
        sla=str(sla),
        aims=[AimView.model_validate(aim.to_json()) for aim in aims],
        num_points=len(best),
        front=[_front_point(numbers[id(point)], point) for point in front],
    )


def importance(uow: UnitOfWork, job_id: str) -> ImportanceView:
    """How much each knob had to do with latency, over the trials so far.

    Raises:
        NotFoundError: no such job.
    """
    job = uow.jobs.get(job_id)
    sla = _sla(job)
    points = [point for _, point in _trials(uow, job)]
    return ImportanceView(
        job_id=job.id,
        sla=str(sla),
        num_points=len(points),
        knobs=[KnobView.model_validate(one.to_json()) for one in importances(points, sla)],
    )


def _sla(job: TuningJob) -> Sla:
    return tuning_spec(job.spec).parsed_sla


def _trials(uow: UnitOfWork, job: TuningJob) -> list[tuple[TrialRecord, OperatingPoint]]:
    """Trials that ran, with the operating point each observed."""
    records: Iterable[TrialRecord] = map(TrialRecord.from_json, uow.trials.list_records(job.id))
    return [(trial, point) for trial in records if (point := trial.point) is not None]


def _rank(point: OperatingPoint) -> int:
    return FIDELITIES.index(point.fidelity)


def _front_point(trial: TrialRecord, point: OperatingPoint) -> FrontPoint:
    record = trial.to_json()
    return FrontPoint(
        trial=trial.number,
        settings=record["settings"],
        num_devices=point.cost_devices,
        fidelity=point.fidelity.value,
        metrics=trial.metrics,
        is_feasible=trial.is_feasible,
        sla_probability=trial.sla_probability,
    )

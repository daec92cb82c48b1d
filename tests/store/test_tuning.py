"""Jobs, trials, cost models and recommendations."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from store import ConflictError, Database, NotFoundError, PageRequest
from store.models import JobState
from store.models.base import Json, utc_now


def _record(number: int, **changes: object) -> Json:
    return {
        "number": number,
        "settings": {"plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 2}},
        "fidelity": "simulated",
        "state": "complete",
        "metrics": {"ttft_ms": {"p95": 120.5}},
        "is_feasible": True,
        "reason": "met",
        "seconds": 0.5,
        **changes,
    }


def _job(database: Database) -> str:
    with database.begin() as uow:
        return uow.jobs.add(spec={"trials": 4}, num_trials=4, created_by="key_1").id


def test_a_new_job_is_queued(database: Database) -> None:
    job_id = _job(database)
    with database.read() as uow:
        assert uow.jobs.get(job_id).state is JobState.QUEUED
        assert [job.id for job in uow.jobs.list_open()] == [job_id]
        assert uow.jobs.count_by_state()[JobState.QUEUED] == 1


def test_of_a_retune_there_is_one_until_it_is_removed(database: Database) -> None:
    def ask(key: str) -> str:
        with database.begin() as uow:
            return uow.jobs.add(spec={}, num_trials=1, created_by="c", retune_key=key).id

    first = ask("eng_1/rec_1")
    assert ask("eng_1/rec_2") != first
    with pytest.raises(ConflictError, match="eng_1/rec_1 already"):
        ask("eng_1/rec_1")
    with database.begin() as uow:
        assert uow.jobs.count_retunes("eng_1/", since=utc_now() - timedelta(days=1)) == 2
        assert uow.jobs.count_retunes("eng_2/", since=utc_now() - timedelta(days=1)) == 0
        uow.jobs.delete(uow.jobs.get(first))
    assert ask("eng_1/rec_1") != first


def test_events_after_a_sequence_number_are_listed_in_order(database: Database) -> None:
    job_id = _job(database)
    with database.begin() as uow:
        for number in range(4):
            uow.jobs.append_event(job_id, "trial", {"number": number})
    with database.read() as uow:
        found = uow.jobs.list_events(job_id, after=2)
    assert [(event.seq, event.data) for event in found] == [(3, {"number": 2}), (4, {"number": 3})]


def test_a_row_that_is_held_is_as_others_left_it(database: Database) -> None:
    job_id = _job(database)
    with database.begin() as uow:
        seen = uow.jobs.get(job_id)
        # As if another had committed before the row was free to be held.
        uow.session.connection().execute(sa.text("UPDATE tuning_jobs SET reason = 'of another'"))
        assert uow.jobs.get(job_id).reason == "waiting for a worker"
        assert uow.jobs.get(job_id, for_update=True).reason == "of another"
        seen.reason = "of this one"
        assert uow.jobs.get(job_id, for_update=True).reason == "of this one"


def test_an_event_of_no_job_is_refused(database: Database) -> None:
    with pytest.raises(NotFoundError), database.begin() as uow:
        uow.jobs.append_event("job_none", "state", {})


def test_a_trial_record_comes_back_as_it_went_in(database: Database) -> None:
    job_id = _job(database)
    with database.begin() as uow:
        uow.trials.add(job_id, _record(1))
        uow.trials.add(job_id, _record(0, state="pruned", metrics=None, fidelity=None))
    with database.read() as uow:
        records = uow.trials.list_records(job_id)
    assert records == [_record(0, state="pruned", metrics=None, fidelity=None), _record(1)]


def test_a_second_trial_of_the_same_number_is_refused_and_the_first_stays(
    database: Database,
) -> None:
    job_id = _job(database)
    with database.begin() as uow:
        uow.trials.add(job_id, _record(0))
        with pytest.raises(ConflictError, match="trial 0"):
            uow.trials.add(job_id, _record(0, reason="again"))
    with database.read() as uow:
        trial = uow.trials.find(job_id, 0)
        assert trial is not None
        assert trial.record["reason"] == "met"
        assert uow.trials.count_by_state() == {"complete": 1}


def test_of_what_trials_rest_on_the_last_is_kept_and_goes_with_the_job(
    database: Database,
) -> None:
    job_id, other = _job(database), _job(database)
    for document in ({"size": 1}, {"size": 2, "value": 0.1}):
        with database.begin() as uow:
            uow.groundworks.put(job_id, document)
    with database.begin() as uow:
        assert uow.groundworks.find(job_id) == {"size": 2, "value": 0.1}
        assert uow.groundworks.find(other) is None
        uow.groundworks.put(other, {})
        uow.groundworks.drop(other)
        uow.jobs.delete(uow.jobs.get(job_id))
    with database.read() as uow:
        assert uow.groundworks.find(job_id) is None
        assert uow.groundworks.find(other) is None


def test_deleting_a_job_takes_its_trials_and_events_but_keeps_the_recommendation(
    database: Database,
) -> None:
    job_id = _job(database)
    with database.begin() as uow:
        uow.trials.add(job_id, _record(0))
        uow.jobs.append_event(job_id, "trial", {})
        kept = uow.recommendations.add(
            job_id=job_id, cost_model_id=None, sla="", document={}, schedule=None, warnings=[]
        ).id
    with database.begin() as uow:
        uow.jobs.delete(uow.jobs.get(job_id))
    with database.read() as uow:
        assert uow.trials.list_records(job_id) == []
        assert uow.jobs.list_events(job_id, after=0) == []
        assert uow.recommendations.get(kept).job_id is None


def test_pages_are_stable_while_jobs_are_added(database: Database) -> None:
    ids = [_job(database) for _ in range(5)]
    newest_first = sorted(ids, reverse=True)
    with database.read() as uow:
        first = uow.jobs.list_page(PageRequest(limit=2))
    _job(database)
    with database.read() as uow:
        second = uow.jobs.list_page(PageRequest(limit=2, after=first.next_after))
        last = uow.jobs.list_page(PageRequest(limit=2, after=second.next_after))
    pages = [[job.id for job in page.items] for page in (first, second, last)]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert last.next_after is None


def test_the_newest_cost_model_of_a_fingerprint_is_found(database: Database) -> None:
    with database.begin() as uow:
        uow.cost_models.add(fingerprint="cpu-a", document={"v": 1}, created_by="key_1")
        newest = uow.cost_models.add(fingerprint="cpu-a", document={"v": 2}, created_by="key_1")
        # Ids of one millisecond have no order; make the second one certainly the newer.
        newest.id = "cm_" + "f" * 21
    with database.read() as uow:
        found = uow.cost_models.find_newest("cpu-a")
        assert found is not None
        assert found.document == {"v": 2}
        assert uow.cost_models.find_newest("cpu-b") is None


def test_the_newest_cost_model_is_of_the_weights_asked_for_or_says_nothing_of_them(
    database: Database,
) -> None:
    kept = ({"v": 1}, {"v": 2, "weights": "plain"}, {"v": 3, "weights": "w8a8"})
    with database.begin() as uow:
        for number, document in enumerate(kept):
            row = uow.cost_models.add(fingerprint="cpu-a", document=document, created_by="key_1")
            row.id = f"cm_{number:021x}"
    with database.read() as uow:
        found = {
            weights: uow.cost_models.find_newest("cpu-a", weights=weights)
            for weights in (None, "plain", "w8a8", "int8")
        }
    assert [row and row.document["v"] for row in found.values()] == [3, 2, 3, 1]

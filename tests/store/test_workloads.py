"""Uploaded traces in the database."""

from __future__ import annotations

import pytest

from store import ConflictError, Database, NotFoundError
from store.models import WorkloadRow
from store.workloads import compress

PIECES = (b"arrival_s,input", b"_tokens,output_tokens\n0,5,6\n" * 1000)


def _add(database: Database) -> str:
    row = WorkloadRow(
        name="t.csv",
        form="csv",
        num_bytes=5_000_000_000,
        sha256="0" * 64,
        facts={"rows": 1000},
        created_by="key_1",
    )
    with database.begin() as uow:
        return uow.workloads.add(row, map(compress, PIECES)).id


def test_the_bytes_come_back_as_they_were_in_pieces(database: Database) -> None:
    workload_id = _add(database)
    with database.read() as uow:
        assert tuple(uow.workloads.read(workload_id)) == PIECES
        assert uow.workloads.get(workload_id).num_bytes == 5_000_000_000
        assert uow.workloads.list_known([workload_id, "wl_other"]) == {workload_id}


def test_a_workload_that_a_job_names_stays_and_goes_after_the_job(database: Database) -> None:
    workload_id = _add(database)
    with database.begin() as uow:
        assert uow.workloads.find(workload_id, for_use=True) is not None
        job = uow.jobs.add(spec={}, num_trials=1, created_by="key_1")
        job.workload_id = workload_id
    with pytest.raises(ConflictError, match=job.id), database.begin() as uow:
        uow.workloads.delete(workload_id)
    with database.begin() as uow:
        uow.jobs.delete(uow.jobs.get(job.id))
        uow.workloads.delete(workload_id)
    with pytest.raises(NotFoundError), database.read() as uow:
        uow.workloads.get(workload_id)
    with database.read() as uow:
        assert list(uow.workloads.read(workload_id)) == []

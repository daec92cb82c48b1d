"""Uploaded traces as files of the worker: brought from the database where a job names one."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from api.documents.uploads import find_upload
from store import Database
from tuner.search.spec import TuningSpec

# The prefix of a file while it is written. One that is older counts as left behind.
PART, MOST_WRITING_S = "part-", 600.0


class KeptTraces:
    """A folder with the traces that jobs of this worker read, by the ids of their workloads."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def bring(self, spec: TuningSpec) -> TuningSpec | None:
        """The specification over a file; None where it names no uploaded trace.

        Raises:
            NotFoundError: no such workload.
        """
        named = find_upload(spec.workload)
        if named is None:
            return None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._drop_removed()
        with self._database.read() as uow:
            row = uow.workloads.get(named.workload_id)
            path = self._folder / row.id
            # One of another length was cut by a crash of the machine.
            if not path.exists() or path.stat().st_size != row.num_bytes:
                # Whole or not at all: a worker may be killed here.
                with NamedTemporaryFile(dir=self._folder, prefix=PART, delete=False) as file:
                    for piece in uow.workloads.read(row.id):
                        file.write(piece)
                os.replace(file.name, path)
        return replace(spec, workload=named.at(row.form, path))

    def _drop_removed(self) -> None:
        """Remove files whose workloads are gone, and what a killed worker left half-written.

        Another job, of this worker or of another one, may be writing meanwhile.
        """
        files = {path.name: path for path in self._folder.iterdir()}
        with self._database.read() as uow:
            known = uow.workloads.list_known(files)
        for name in files.keys() - known:
            if not (name.startswith(PART) and _age_s(files[name]) < MOST_WRITING_S):
                files[name].unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    """Seconds since it was written to; of one that is gone, very many."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf

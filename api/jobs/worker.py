"""The worker process: ``python -m api.jobs.worker``, settings from the environment.

It ends when its standard input closes, which happens however its parent ends. Jobs run in a fork of
it (``api/jobs/forks.py``), in whose place another one goes on when it is killed.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from importlib import import_module

import structlog
from dbos import DBOS

from api.jobs.backend import TuningBackend
from api.jobs.forks import run_in_forks
from api.jobs.identity import Orphans, take_identity
from api.jobs.leases import DeviceLeases
from api.jobs.runner import JobRunner
from api.jobs.workflow import POLL_S, QUEUE, Dispatcher, configure, define_workflow
from api.web.settings import ServiceSettings
from engine.logs import configure_logs
from migrations.runner import require_current
from store import Database
from store.outage import Patience

# What the tuner imports once a job needs it; together they take two seconds.
USED_BY_JOBS = (
    "api.jobs.kept_traces",
    "api.jobs.tuner_backend",
    "optuna.samplers",
    "sklearn.ensemble",
    "sklearn.gaussian_process",
    "sklearn.model_selection",
)


def run_worker(settings: ServiceSettings, backend: TuningBackend, stop: threading.Event) -> None:
    """Run jobs until ``stop``; jobs a former worker of the same identity began go on first.

    Raises:
        SchemaError: the database has not this version's schema.
    """
    database = Database(settings.effective_database_url)
    require_current(database.engine)
    identity = take_identity(database, settings.worker_id)
    patience = Patience(given_up=stop)
    runner = JobRunner(database, backend, DeviceLeases(database, settings), patience)
    DBOS(config=configure(settings, identity.name))
    underway: set[str] = set()
    workflow = define_workflow(runner, underway)
    DBOS.launch()
    DBOS.register_queue(
        QUEUE, worker_concurrency=settings.job_concurrency, polling_interval_sec=POLL_S
    )
    dispatcher = Dispatcher(database, runner, workflow)
    orphans = Orphans(database, identity.name, QUEUE, underway)
    log = structlog.get_logger("api.jobs")
    log.info("worker ready", worker=identity.name)
    while not stop.wait(POLL_S):
        try:
            if not identity.lock.try_take():
                # It was lost with the connection, and another worker goes on with these jobs.
                log.error("another worker has this one's identity", worker=identity.name)
                os._exit(1)
            dispatcher.look()
            orphans.look()
        except Exception:
            log.exception("cannot look for jobs")  # the database may be back at the next look
    DBOS.destroy()
    identity.lock.release()
    database.close()


def main() -> int:
    """Run with the tuner until the parent is gone; the exit code."""
    settings = ServiceSettings()
    configure_logs(settings.log_level)
    gc.disable()  # its rounds are a seventh of the time that importing takes
    for module in USED_BY_JOBS:
        import_module(module)
    gc.freeze()
    gc.enable()
    return run_in_forks(lambda: _run(settings))


def _run(settings: ServiceSettings) -> None:
    from api.jobs.kept_traces import KeptTraces
    from api.jobs.tuner_backend import TunerBackend

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # One of its own: the database of the jobs is opened once the worker has begun.
    traces = KeptTraces(Database(settings.effective_database_url), settings.uploads_dir)
    run_worker(settings, TunerBackend(settings.places, traces), threading.Event())


def _end_with_parent() -> None:
    """Leave at once when standard input closes: what is finished is in the database."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

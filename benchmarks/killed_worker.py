"""Question: what does a tuning job lose when its worker is killed twice on the way?

A job is run by a real worker process under the service's own supervisor, once undisturbed and once
with two SIGKILLs, each somewhere inside a trial: of the fork that runs jobs, in whose place its
parent puts another one, or (``--victim parent``) of that parent, in whose place the supervisor
starts another one. Who comes after goes on with the job. Then the trials, their order and the
answer are compared, and how long both took from the moment a worker took the job up. Pairs take
turns in who is first, so that a machine whose speed drifts drifts for both.

    python -m benchmarks.killed_worker --out benchmarks/reports/DATE-killed-worker.md
    python -m benchmarks.killed_worker --live --pairs 1
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import random
import resource
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from api.documents.tuning_spec import job_document
from api.jobs.supervisor import WorkerSupervisor
from api.web.settings import ServiceSettings
from benchmarks.quiet import OtherPrograms
from engine.models.create import create_model
from engine.spec.settings import Settings
from migrations.runner import upgrade
from store import Database
from store.models import JobState
from tuner.search.spec import TuningSpec

POLL_S = 0.02
GIVE_UP_S = 3600.0
NUM_RANKS = 2
# Kills fall into these parts of the trials, and into a trial up to so long after its begin.
KILLED_AFTER = (1 / 3, 2 / 3)
MOST_INTO_S = 2.0
TARGET = 0.2
PR_SET_CHILD_SUBREAPER = 36
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One job to its end. ``cpu_s`` is what its workers took of processors, starting included;
    ``records`` are its trials in order, ``told`` the numbers of those that its followers were told
    of."""

    seconds: float
    cpu_s: float
    state: JobState
    winner: str | None
    records: tuple[Json, ...]
    told: tuple[int, ...]
    kills: int

    @property
    def tried(self) -> list[str]:
        """The settings of each trial."""
        return [str(Settings.from_json(record["settings"])) for record in self.records]


def simulated_spec(trials: int) -> TuningSpec:
    """A 70B model on a described node of eight devices, ten minutes of requests."""
    return TuningSpec(
        model_dir="llama-3.1-70b",
        num_devices=8,
        hardware="8xh200",
        workload="poisson:rate=6,input=1024,output=128,input_cv=1,output_cv=1,seconds=600",
        sla="p95_ttft_ms<=2000,p95_tpot_ms<=50",
        trials=trials,
    )


def live_spec(model_dir: Path, trials: int) -> TuningSpec:
    """A tiny model on two ranks here, profiled first; each trial is a short live run."""
    return TuningSpec(
        model_dir=str(model_dir),
        num_devices=NUM_RANKS,
        workload="poisson:rate=12,input=48,output=16,input_cv=0.5,output_cv=0.5,seconds=20",
        sla="p95_ttft_ms<=400,p95_tpot_ms<=60",
        trials=trials,
        probe_requests=48,
        profile_seconds=15.0,
        kv_cache_mib=32,
    )


class Victim(StrEnum):
    """Which process is killed: the one that runs jobs, or its parent, which ends both."""

    WORK = "work"
    PARENT = "parent"


def run(
    spec: TuningSpec,
    settings: ServiceSettings,
    *,
    kills: Sequence[int],
    seed: int,
    victim: Victim,
) -> Run:
    """Run the job; a worker is killed once so many trials are done, for each of ``kills``."""
    database = Database(settings.effective_database_url)
    with database.begin() as uow:
        document = {**job_document(spec), "on_busy": "wait"}
        job_id = uow.jobs.add(spec=document, num_trials=spec.trials, created_by="benchmark").id
    rng, left = random.Random(f"{seed} kills"), list(kills)
    before_s = _children_cpu_s()
    supervisor = WorkerSupervisor(settings)
    supervisor.start()
    try:
        for _ in _looks():
            with database.read() as uow:
                state, done = uow.jobs.get(job_id).state, uow.trials.count(job_id)
            if state.is_final:
                break
            if left and done >= left[0] and _find_victim(supervisor, victim) is not None:
                time.sleep(rng.uniform(0.0, MOST_INTO_S))
                if (pid := _find_victim(supervisor, victim)) is not None:
                    left.pop(0)
                    os.kill(pid, signal.SIGKILL)
    finally:
        supervisor.stop()
    _take_in_orphans()
    cpu_s = _children_cpu_s() - before_s
    found = _read(database, job_id, num_kills=len(kills) - len(left), cpu_s=cpu_s)
    database.close()
    return found


def _find_victim(supervisor: WorkerSupervisor, victim: Victim) -> int | None:
    """The process id; None while there is none."""
    parent = supervisor.pid
    if parent is None or victim is Victim.PARENT:
        return parent
    with suppress(psutil.NoSuchProcess):
        return next((child.pid for child in psutil.Process(parent).children()), None)
    return None


def _looks() -> Iterator[None]:
    until_s = time.monotonic() + GIVE_UP_S
    while time.monotonic() < until_s:
        yield
        time.sleep(POLL_S)
    raise TimeoutError(f"the job did not end within {GIVE_UP_S:g} s")


def _adopt_orphans() -> None:
    """Be told of forks whose parent was killed, so that what they took counts."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _take_in_orphans() -> None:
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _children_cpu_s() -> float:
    """Of all child processes that have ended, however they did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read(database: Database, job_id: str, *, num_kills: int, cpu_s: float) -> Run:
    with database.read() as uow:
        job = uow.jobs.get(job_id)
        recommendation = uow.recommendations.find_for_job(job_id)
        events = uow.jobs.list_events(job_id, after=0, limit=100_000)
        records = tuple(uow.trials.list_records(job_id))
    assert job.started_at is not None, "a worker took it up"
    assert job.finished_at is not None, "it has ended"
    document = None if recommendation is None else recommendation.document
    return Run(
        seconds=(job.finished_at - job.started_at).total_seconds(),
        cpu_s=cpu_s,
        state=job.state,
        winner=None if document is None else str(Settings.from_json(document["settings"])),
        records=records,
        told=tuple(event.data["number"] for event in events if event.type == "trial"),
        kills=num_kills,
    )


@contextmanager
def service(folder: Path) -> Iterator[ServiceSettings]:
    """Settings over a fresh database; nothing else runs."""
    settings = ServiceSettings(data_dir=folder, model_root=str(folder), devices=NUM_RANKS)
    database = Database(settings.effective_database_url)
    upgrade(database.engine)
    database.close()
    yield settings


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same job undisturbed and disturbed."""

    calm: Run
    killed: Run

    @property
    def more_time(self) -> float:
        """As a share of what the undisturbed one took."""
        return self.killed.seconds / self.calm.seconds - 1

    @property
    def is_whole(self) -> bool:
        """Whether each trial was made, kept and told of once, and killed workers there were."""
        every = list(range(len(self.calm.records)))
        numbers = [record["number"] for record in self.killed.records]
        return self.killed.kills == len(KILLED_AFTER) and numbers == list(self.killed.told) == every

    @property
    def num_alike(self) -> int:
        """Trials that tried the same settings in both."""
        return sum(a == b for a, b in zip(self.calm.tried, self.killed.tried, strict=False))


def play(
    spec: TuningSpec, settings: ServiceSettings, *, pairs: int, seed: int, victim: Victim
) -> list[Pair]:
    """So many pairs, each beginning with the other run than the one before."""
    after = [int(spec.trials * share) for share in KILLED_AFTER]
    found = []
    for nth in range(pairs):
        runs: dict[bool, Run] = {}
        for is_killed in (nth % 2 == 0, nth % 2 == 1):
            kills = after if is_killed else []
            runs[is_killed] = run(spec, settings, kills=kills, seed=seed + nth, victim=victim)
        found.append(Pair(calm=runs[False], killed=runs[True]))
    return found


def main() -> int:
    """Run the pairs and report; 1 if a trial was lost or repeated, or the answer differs."""
    options = _options()
    _adopt_orphans()
    with (
        tempfile.TemporaryDirectory(prefix="gearshift-killed-") as name,
        OtherPrograms() as others,
        service(Path(name)) as settings,
    ):
        if options.live:
            create_model(Path(name) / "model", preset="tiny", seed=1)
            spec = live_spec(Path(name) / "model", options.trials)
        else:
            spec = simulated_spec(options.trials)
        pairs = play(spec, settings, pairs=options.pairs, seed=options.seed, victim=options.victim)
    text = report(spec, pairs, others.share, options)
    print(text)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(text)
    is_same = options.live or all(
        pair.calm.winner is not None and pair.calm.winner == pair.killed.winner for pair in pairs
    )
    return 0 if is_same and all(pair.is_whole for pair in pairs) else 1


def report(
    spec: TuningSpec, pairs: Sequence[Pair], others_share: float, options: argparse.Namespace
) -> str:
    """The figures as Markdown."""
    kind = "live trials on this machine's ranks" if options.live else "simulated trials"
    more = [pair.more_time for pair in pairs]
    model = "a tiny model" if options.live else spec.model_dir
    lines = [
        f"# A worker killed twice in a job of {spec.trials} trials: {kind}",
        "",
        f"* {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; other programs used {others_share:.0%} of the machine.",
        f"* {model} on {spec.num_devices} devices ({spec.hardware}), `{spec.workload}`, "
        f"`{spec.sla}`.",
        f"* Repeat: `python -m benchmarks.killed_worker --trials {spec.trials} --pairs "
        f"{len(pairs)} --seed {options.seed} --victim {options.victim}"
        f"{' --live' if options.live else ''}`",
        "",
        "| pair | undisturbed s | killed twice s | more time | CPU s of workers undisturbed | "
        "killed twice | trials kept once and told once | trials of the same settings | winner "
        "undisturbed | winner killed twice |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {nth} | {pair.calm.seconds:.1f} | {pair.killed.seconds:.1f} | {pair.more_time:+.0%} | "
        f"{pair.calm.cpu_s:.1f} | {pair.killed.cpu_s:.1f} | "
        f"{len(pair.killed.records) if pair.is_whole else 'no'} | {pair.num_alike} | "
        f"{pair.calm.winner} | {pair.killed.winner} |"
        for nth, pair in enumerate(pairs, 1)
    ]
    verdict = "below" if median(more) < TARGET else "not below"
    lines += ["", f"Median: {median(more):+.0%}, {verdict} the {TARGET:.0%} asked.", ""]
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30, help="of each job (%(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="of runs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of when kills come (%(default)s)")
    parser.add_argument(
        "--victim", type=Victim, choices=Victim, default=Victim.WORK, help="of kills (%(default)s)"
    )
    parser.add_argument("--live", action="store_true", help="trials on ranks of this machine")
    parser.add_argument("--out", type=Path, help="append the report to this file too")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

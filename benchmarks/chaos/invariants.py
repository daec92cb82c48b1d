"""What must hold once the world is calm again: nothing half done, nothing left behind."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil
import sqlalchemy as sa

from benchmarks.chaos.sandbox import find_orphans
from benchmarks.chaos.world import ENGINES, SERVICES, World, wait_until
from store import Database
from store.models import DeviceLease

CALM_S = 20.0
IN_FORCE_S = 45.0
MIB = 2**20
# Above what a process had when it was calm for the first time. A lasting leak grows past both.
FILES_SLACK = 24
MEMORY_SLACK_MIB = 192  # a worker loads the tuner with its first job
WARM_LOOKS = 3
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
KEPT_FILES = re.compile(
    r"gearshift\.(db|jobs\.db)(-wal|-shm|-journal)?|.*\.lock|gearshift\.db\..*|pg|models|traces"
)


@dataclass
class _Usage:
    files: int
    memory_mib: float
    looks: int = 1


@dataclass
class Invariants:
    """Checks of one world; remembers what each process used when it was calm first."""

    world: World
    _usages: dict[int, _Usage] = field(default_factory=dict)

    def check(self) -> list[str]:
        """Everything that does not hold, in words."""
        return [
            *self._engines_empty(),
            *self._policies_whole(),
            *self._no_orphans(),
            *self._usage(),
        ]

    def check_end(self) -> list[str]:
        """What must hold when all programs have ended."""
        world = self.world
        found = [f"a file is left behind: {p.name}" for p in world.temporary.iterdir()]
        if world.db.kind == "sqlite":
            names = [p.name for p in world.disk.iterdir() if not KEPT_FILES.fullmatch(p.name)]
            found += [f"a file is left beside the database: {name}" for name in names]
        if not wait_until(lambda: not find_orphans(()), CALM_S):
            found += [f"a process is left behind: {p}" for p in find_orphans(())]
        return found

    def check_store(self) -> list[str]:
        """The chain of the audit is unbroken, and no device is leased to a job that has ended."""
        world, found = self.world, []
        database = Database(world.db.url)
        with database.read() as uow:
            verdict = uow.audit.verify()
            held = [lease.holder for lease in uow.session.scalars(sa.select(DeviceLease))]
        database.close()
        if not verdict.is_whole:
            found.append(f"the audit's chain is broken: {verdict}")
        found += [f"{holder} still has a device" for holder in held if holder.startswith("job:")]
        return found

    def _engines_empty(self) -> list[str]:
        """No sequence and no KV block without a request."""
        found = []
        for name in ENGINES:
            last: dict[str, float] = {}

            def is_empty(name: str = name, last: dict[str, float] = last) -> bool:
                last.update(self._gauges(name))
                return bool(last) and not any(last.values())

            if not wait_until(is_empty, CALM_S):
                found.append(f"{name} is not empty: {last}; {self._circumstances(name)}")
        return found

    def _gauges(self, name: str) -> dict[str, float]:
        try:
            text = httpx.get(f"{self.world.urls[name]}/metrics", trust_env=False, timeout=5).text
        except httpx.TransportError:
            return {}
        return {metric: _sum(text, f"vllm:{metric}") for metric in GAUGES}

    def _circumstances(self, name: str) -> str:
        """What helps to understand why an engine is not empty."""
        try:
            text = httpx.get(f"{self.world.urls[name]}/metrics", trust_env=False, timeout=5).text
            policy = httpx.get(f"{self.world.urls[name]}/v1/engine/policy", trust_env=False).json()
        except (httpx.TransportError, ValueError) as error:
            return repr(error)
        restarts = _sum(text, "gearshift_rank_restarts_total")
        return (
            f"{restarts:g} restarts of ranks, plan {policy.get('plan')}, waiting by reason "
            f"{re.findall(r'num_requests_waiting_by_reason{(.*)} (.*)', text)}"
        )

    def _policies_whole(self) -> list[str]:
        """What the service says an engine runs, the engine runs."""
        found = []
        for name in ENGINES:
            why: list[str] = []

            def is_whole(name: str = name, why: list[str] = why) -> bool:
                why[:] = self._disagreement(name)
                return not why

            if not wait_until(is_whole, IN_FORCE_S):
                found += why
        return found

    def _disagreement(self, name: str) -> list[str]:
        world = self.world
        try:
            engine_id = world.engine_id(name)
            policy = world.ledger.read(f"/v1/engines/{engine_id}/policy")
            answer = httpx.get(f"{world.urls[name]}/v1/engine/policy", trust_env=False, timeout=5)
            own = answer.json()
        except (httpx.TransportError, TimeoutError, ValueError) as error:
            return [f"{name}: {error!r}"]
        if policy["applied_version"] != policy["version"] or own["version"] != policy["version"]:
            return [
                f"{name}: asked for version {policy['version']}, applied "
                f"{policy['applied_version']}, the engine runs {own.get('version')}"
            ]
        parts = ("plan", "shift", "caps", "scheduler", "mode")
        differing = [
            part
            for part in parts
            if not own[part] == policy["requested"][part] == policy["effective"][part]
        ]
        return [
            f"{name}: {part} is {own[part]} at the engine, {policy['effective'][part]} at the "
            f"service, {policy['requested'][part]} asked for"
            for part in differing
        ]

    def _no_orphans(self) -> list[str]:
        world = self.world
        known = [*(child.pid for child in world.children.values()), *world.db.pids]
        if wait_until(lambda: not find_orphans(known), CALM_S):
            return []
        return [f"a process outlived its parent: {line}" for line in find_orphans(known)]

    def _usage(self) -> list[str]:
        """Files, sockets and memory of each process against its own first calm look."""
        found: list[str] = []
        living: set[int] = set()
        for name in (*SERVICES, *ENGINES):
            child = self.world.children[name]
            for process in [psutil.Process(child.pid), *child.descendants()]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    living.add(process.pid)
                    found += self._look(name, process)
        for pid in [pid for pid in self._usages if pid not in living]:
            del self._usages[pid]
        return found

    def _look(self, name: str, process: psutil.Process) -> list[str]:
        what = f"{name} ({' '.join(process.cmdline()[1:6])[-60:]})"
        files, memory_mib = process.num_fds(), process.memory_info().rss / MIB
        before = self._usages.setdefault(process.pid, _Usage(files, memory_mib))
        before.looks += 1
        if before.looks <= WARM_LOOKS:  # pools fill, caches warm up
            before.files, before.memory_mib = max(files, before.files), memory_mib
            return []
        found = []
        if files > before.files + FILES_SLACK:
            kinds = Counter(_connections(process))
            found.append(f"{what} has {files} open files, {before.files} when calm; {kinds}")
        if memory_mib > before.memory_mib + MEMORY_SLACK_MIB:
            found.append(f"{what} holds {memory_mib:.0f} MiB, {before.memory_mib:.0f} when calm")
        if found:
            before.files, before.memory_mib = files, memory_mib  # told once
        if not wait_until(lambda: "CLOSE_WAIT" not in _connections(process), CALM_S):
            found.append(f"{what} keeps sockets open whose peers have gone")
        return found


def _sum(text: str, metric: str) -> float:
    """The values of a metric, whatever its labels, added up."""
    return sum(float(v) for v in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.M))


def _connections(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [str(c.status) for c in process.net_connections(kind="tcp")]
    return []

"""The world that is hurt: one database, two control planes, a real and a paced engine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.chaos.children import Child, free_port
from benchmarks.chaos.clock import ShiftedClock
from benchmarks.chaos.databases import PostgresServer, SqliteFile
from benchmarks.chaos.ledger import NUM_TRIALS, Ledger
from benchmarks.chaos.relay import Relay
from benchmarks.chaos.sandbox import full_disk, is_inside, mount_memory
from benchmarks.chaos.traffic import Traffic
from engine.models.create import create_model
from store import Database

ADMIN = "gs_chaos_admin_key_of_this_run_only"
SERVICES = ("service-a", "service-b")
ENGINES = ("real", "paced")
RECOVERED_S = 240.0
# A look costs 10 ms of a core, which the programs that start need themselves.
POLL_S = 0.1
REVIVE_S = 180.0


class World:
    """Starts everything, starts again what was killed, and tells whether all of it answers.

    ``faults`` collects what must not be: it is read and emptied after each injection.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.temporary = folder / "tmp"
        self.clock = ShiftedClock(folder)
        self.has_disk = is_inside()
        self.faults: list[str] = []
        self._intended: set[str] = set()
        self._lock = threading.RLock()
        for made in (folder / "logs", self.temporary, self.disk):
            made.mkdir()
        disk_mib = (SqliteFile if kind == "sqlite" else PostgresServer).disk_mib
        if self.has_disk:
            mount_memory(self.disk, mib=disk_mib)
            mount_memory(Path("/dev/shm"), mib=4096)
        self.db: SqliteFile | PostgresServer = (
            SqliteFile(self.disk)
            if kind == "sqlite"
            else PostgresServer(self.disk, folder / "logs" / "postgres.log")
        )
        self.ports = {name: free_port() for name in (*SERVICES, *ENGINES)}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in self.ports.items()}
        self.relay = Relay(self.ports["service-b"])
        self.children = self._make_children()
        self.traffic = Traffic()
        self.ledger = Ledger([self.urls[name] for name in SERVICES], ADMIN, self._job())
        self._http = httpx.Client(
            timeout=5.0, limits=httpx.Limits(max_keepalive_connections=0), trust_env=False
        )

    # -- its parts -----------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GEARSHIFT_")}
        root = str(Path(__file__).parents[2])
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])]),
            "TMPDIR": str(self.temporary),
            "XDG_DATA_HOME": str(self.folder / "share"),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def _make_children(self) -> dict[str, Child]:
        gearshift = [sys.executable, "-m", "api.cli.main"]
        found = {}
        for name in SERVICES:
            environment = {**self._environment(), **self._service_variables(name)}
            if name == "service-b":
                environment |= self.clock.variables()
            found[name] = Child(name, [*gearshift, "serve", "--json"], environment, self._log(name))
        model = self.folder / "models" / "tiny"
        create_model(model, preset="tiny", seed=1)
        for name in ENGINES:
            command = [*gearshift, "engine", "serve", "--model", str(model), "--plan", "tp=2"]
            command += ["--port", str(self.ports[name]), "--name", name, "--drain-s", "20"]
            command += ["--max-devices", "2", "--max-num-seqs", "64", "--json"]
            if name == "real":
                command += ["--dtype", "float64", "--spare-ranks", "1", "--kv-cache-mib", "32"]
            else:
                command += ["--paced", "2xh200"]
            environment = {
                **self._environment(),
                "GEARSHIFT_CONTROL_KEY": ADMIN,
                "GEARSHIFT_HEADER_TIMEOUT_S": "2",
            }
            found[name] = Child(name, command, environment, self._log(name))
        return found

    def _service_variables(self, name: str) -> dict[str, str]:
        return {
            "GEARSHIFT_DATA_DIR": str(self.disk),
            "GEARSHIFT_DATABASE_URL": self.db.url,
            "GEARSHIFT_ADMIN_KEY": ADMIN,
            "GEARSHIFT_MODEL_ROOT": str(self.folder / "models"),
            "GEARSHIFT_PORT": str(self.ports[name]),
            "GEARSHIFT_DISK_RESERVE_MIB": "4" if self.has_disk else "0",
            "GEARSHIFT_HEADER_TIMEOUT_S": "2",
            "GEARSHIFT_CONTROL_INTERVAL_S": "0.5",
            "GEARSHIFT_CONTROL_WINDOW_S": "3",
            "GEARSHIFT_LEASE_S": "30",
            "GEARSHIFT_LOG_LEVEL": "warning",
        }

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _job(self) -> dict[str, object]:
        return {
            "model_dir": str(self.folder / "models" / "tiny"),
            "num_devices": 1,
            "workload": "poisson:rate=4,input=32,output=4,seconds=2",
            "sla": "p95_ttft_ms<=500",
            "trials": NUM_TRIALS,
            "hardware": "8xh200",
        }

    # -- its life ------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """All of it runs and is calm while the block runs; nothing of it afterwards."""
        try:
            self.relay.start()
            self.db.start()
            self.upgrade(self.db.url)
            control = {
                "real": self.urls["service-a"],
                "paced": f"http://127.0.0.1:{self.relay.port}",
            }
            for name in ENGINES:
                self.children[name].add_arguments("--control", control[name])
            self._start_all([*SERVICES, *ENGINES])
            self.wait_recovered()
            self.traffic.learn("real", self.urls["real"])  # no model runs in the other one
            yield
        finally:
            for name in (*ENGINES, *SERVICES):
                child = self.children[name]
                was_running = child.is_running
                code = child.terminate()
                if was_running and code != 0:
                    self.faults.append(f"{name} ended with exit code {code} when asked to end")
            self.traffic.close()
            self.ledger.close()
            self._http.close()
            self.db.stop()
            self.relay.stop()

    def upgrade(self, url: str) -> None:
        """Bring a database to the newest schema."""
        from migrations.runner import upgrade

        database = Database(url)
        upgrade(database.engine)
        database.close()

    def intend(self, name: str) -> Child:
        """The program ``name``, which will be ended on purpose."""
        with self._lock:
            self._intended.add(name)
        return self.children[name]

    def kill(self, name: str) -> None:
        self.intend(name).kill()

    def revive(self) -> None:
        """Start again what has ended, as whatever supervises a service does."""
        self.db.revive()
        ended = [name for name, child in self.children.items() if not child.is_running]
        for name in ended:
            if name not in self._intended:
                code = self.children[name].exit_code
                self.faults.append(f"{name} ended by itself with exit code {code}")
        self._start_all(ended)
        self._intended.difference_update(ended)

    def _start_all(self, names: Sequence[str]) -> None:
        """Start several programs side by side, as a supervisor does; the first error is raised."""
        if not names:
            return
        with ThreadPoolExecutor(len(names)) as starters:
            list(starters.map(self._start, (self.children[name] for name in names)))

    def _start(self, child: Child) -> None:
        end_s = time.monotonic() + REVIVE_S
        while True:
            try:
                child.start()
                return
            except RuntimeError:
                child.kill()
                if time.monotonic() > end_s:
                    raise
                with self._lock:
                    self.db.revive()
                time.sleep(0.1)

    # -- looking -------------------------------------------------------------------------------

    def wait_recovered(self) -> str | None:
        """Return once every program runs and answers; what did so last.

        Raises:
            TimeoutError: one does not in time, and which.
        """
        end_s, waited_for = time.monotonic() + RECOVERED_S, None
        while True:
            self.revive()
            missing = self._missing()
            if missing is None:
                return waited_for
            waited_for = missing
            if time.monotonic() > end_s:
                raise TimeoutError(f"not recovered within {RECOVERED_S:g} s: {missing}")
            time.sleep(POLL_S)

    def expect_answers(self) -> None:
        """Everything answers now, whatever is going on."""
        if (missing := self._missing()) is not None:
            self.faults.append(f"others are not served meanwhile: {missing}")

    def _missing(self) -> str | None:
        """What does not answer yet."""
        for name in SERVICES:
            for path in ("/readyz", "/v1/engines?limit=1"):
                if (said := self._refusal(self.urls[name] + path)) is not None:
                    return f"{name}{path}: {said}"
            if not self.children[name].descendants("api.jobs.worker"):
                return f"{name} has no worker"
        for name in ENGINES:
            body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2, "temperature": 0}
            if (said := self._refusal(f"{self.urls[name]}/v1/completions", body)) is not None:
                return f"{name}: {said}"
        return None

    def _refusal(self, url: str, body: dict[str, object] | None = None) -> str | None:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        try:
            method = "GET" if body is None else "POST"
            answer = self._http.request(method, url, json=body, headers=headers)
        except httpx.TransportError as error:
            return repr(error)
        return None if answer.is_success else f"{answer.status_code} {answer.text[:200]}"

    def engine_id(self, name: str) -> str:
        rows = self.ledger.read("/v1/engines?limit=100")
        return next(str(row["id"]) for row in rows if row["name"] == name)

    def ranks(self) -> list[psutil.Process]:
        """Rank processes of the real engine that are set up."""
        from benchmarks.kill_campaign import SEGMENT_NAME

        found = []
        for process in self.children["real"].descendants("engine.rank.worker"):
            try:
                maps = Path(f"/proc/{process.pid}/maps").read_text()
            except OSError:
                continue
            if SEGMENT_NAME in maps:
                found.append(process)
        return found

    def fronts(self, name: str) -> list[psutil.Process]:
        return self.children[name].descendants("engine.server.front.process")

    def workers(self, name: str) -> list[psutil.Process]:
        return self.children[name].descendants("api.jobs.worker")

    def has_leader(self) -> bool:
        """Whether a control plane holds the controller's lock."""
        database = Database(self.db.url)
        try:
            lock = database.lock("controller")
            is_free = lock.try_take()
            lock.release()
            return not is_free
        finally:
            database.close()

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """The disk of the database has no byte left while the block runs."""
        with full_disk(self.disk):
            yield


def wait_until(is_true: Callable[[], object], timeout_s: float) -> bool:
    """Look until it is so; whether it was in time."""
    end_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end_s:
            return False
        time.sleep(POLL_S)
    return True

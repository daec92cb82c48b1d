"""A server started by a command as the target of trials."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from engine.spec.measurement import Fidelity, Measurement, RequestTiming
from engine.spec.settings import Settings
from tuner.launch.command import System
from tuner.load.driver import run_load
from tuner.load.http_target import HttpTarget
from tuner.load.live import warm_up
from tuner.load.served_model import get_served_model
from tuner.servers.command import DEFAULT_START_TIMEOUT_S
from tuner.servers.metrics import between, read_samples
from tuner.servers.process import ServerError, ServerProcess, free_port
from tuner.spec.errors import LoadError
from tuner.workload.prompts import unseen_seed
from tuner.workload.workload import Workload

HOST = "127.0.0.1"


class Command(Protocol):
    """What starts a server. A value: the same settings and port give the same words."""

    @property
    def system(self) -> System:
        """Whose server it is."""
        ...

    @property
    def api_key(self) -> str | None:
        """The key that the server asks of its clients; None: none."""
        ...

    def words(self, settings: Settings, *, port: int) -> list[str]:
        """The command that serves ``settings`` on ``port``."""
        ...

    def why_not(self, settings: Settings, /) -> str | None:
        """Why it cannot run the settings; None when it can."""
        ...

    def unexpressed(self, settings: Settings, /) -> tuple[str, ...]:
        """The settings that the command has no words for, and which therefore do not happen."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Running:
    """The server that runs, and how long it took until it answered."""

    settings: Settings
    process: ServerProcess
    url: str
    start_s: float | None = None

    @property
    def health(self) -> str:
        return f"{self.url}/health"


class ServerTarget:
    """Starts a server for each trial's settings, and loads it over HTTP.

    The server of the last settings stays until others are asked for, so a repeat starts nothing.
    Not thread safe; close it, or use ``with``. ``vocab_size``: prompts are drawn below it.
    """

    def __init__(
        self,
        command: Command,
        *,
        vocab_size: int,
        start_timeout_s: float = DEFAULT_START_TIMEOUT_S,
    ) -> None:
        self._command = command
        self._vocab_size = vocab_size
        self._start_timeout_s = start_timeout_s
        self._running: _Running | None = None
        self._told: dict[str, Any] | None = None

    def __enter__(self) -> ServerTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, if one runs. Safe to call twice."""
        if self._running is not None:
            self._running.process.close()
            self._running = None

    def measure(
        self,
        settings: Settings,
        workload: Workload,
        *,
        seed: int,
        timeout_s: float,
        fidelity: Fidelity,
        on_ended: Callable[[RequestTiming], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Measurement:
        """See :class:`tuner.load.tuning_target.TuningTarget`.

        Raises:
            ServerError: the system cannot run the settings, or its server did not start or did
                not last; with its exit code and the end of its log.
        """
        self._told = None
        if (reason := self._command.why_not(settings)) is not None:
            raise ServerError(reason)
        running = self._running_with(settings, should_stop)
        process, key = running.process, self._command.api_key
        try:
            served = get_served_model(running.url, api_key=key)
        except LoadError as error:
            process.check()
            raise ServerError(str(error)) from error

        def load(
            part: Workload, seed: int, on_ended: Callable[[RequestTiming], None] = lambda _: None
        ) -> Measurement:
            # A target for each load: requests are numbered from 0.
            with HttpTarget(running.url, served.name, api_key=key) as target:
                found = run_load(
                    part,
                    target,
                    seed=seed,
                    timeout_s=timeout_s,
                    vocab_size=self._vocab_size,
                    fidelity=fidelity,
                    on_ended=on_ended,
                    should_stop=lambda: should_stop() or process.has_ended,
                )
            process.check_answers(running.health)
            return found

        # Prompts that no other run has: the server may stay, and would find them in its cache.
        load(warm_up(workload), unseen_seed())
        before, _ = read_samples(running.url, api_key=key)
        measurement = load(workload, seed, on_ended)
        after, cache = read_samples(running.url, api_key=key)
        self._told = {
            "command": shlex.join(process.words),
            "start_s": running.start_s,
            "unexpressed": list(self._command.unexpressed(settings)),
            "counted": between(before, after),
            "kv_cache": cache,
        }
        return measurement

    @property
    def pid(self) -> int | None:
        """The process that leads the running server's group; None without one."""
        return None if self._running is None else self._running.process.pid

    def told(self) -> dict[str, Any] | None:
        """See :class:`tuner.load.tuning_target.TuningTarget`: the command, how long it took to
        start, what its flags could not say, and what ``/metrics`` counted during the run."""
        return self._told

    def _running_with(self, settings: Settings, should_stop: Callable[[], bool]) -> _Running:
        running = self._running
        if running is not None and running.settings == settings and not running.process.has_ended:
            return running
        self.close()
        port = free_port()
        url = f"http://{HOST}:{port}"
        process = ServerProcess(
            self._command.words(settings, port=port), name=f"{self._command.system}'s server"
        )
        # From here on we must end it, whatever interrupts the wait.
        self._running = _Running(settings=settings, process=process, url=url)
        start_s = process.wait_healthy(
            self._running.health, timeout_s=self._start_timeout_s, should_stop=should_stop
        )
        self._running = replace(self._running, start_s=start_s)
        return self._running

"""The two ways in which the service restarts a server: an operator's hook, or its own command.

Either may be called again for what it has done already: after a crash nobody knows.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from api.documents.known_servers import ServersFileError
from api.observed.fetch import FetchError, FetchLimits, fetch
from api.observed.hook import NOT_NOW, find_hook, run_hook
from api.services.advice import port_of
from engine.spec.settings import Settings
from store.models.base import Json
from tuner.servers.command import ServerCommand
from tuner.servers.process import ServerError, ServerProcess

HEALTH = "/health"
LOOK_S = 0.5
SCHEMA = "gearshift-hook/v1"


class RestartError(Exception):
    """A restart that did not come to its end. ``is_untouched``: the server runs as before."""

    def __init__(self, detail: str, *, is_untouched: bool = False) -> None:
        super().__init__(detail)
        self.is_untouched = is_untouched


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a server is to run: ``settings``, started by ``command`` within ``timeout_s``.

    ``told``: what a hook learns of it besides. ``is_restore``: what ran before shall run again,
    since a restart failed.
    """

    engine_id: str
    url: str
    settings: Settings
    command: ServerCommand
    timeout_s: float
    told: Json
    is_restore: bool = False

    @property
    def words(self) -> list[str]:
        return self.command.words(self.settings, port=port_of(self.url))


@dataclass(frozen=True, kw_only=True)
class HookWay:
    """Restarts by a program of the operator's, ``hook`` in the folder ``root``."""

    hook: str
    root: Path | None
    limits: FetchLimits

    def apply(self, wanted: Wanted, should_stop: Callable[[], bool]) -> None:
        """Return once the server answers and the hook has said that it was done.

        Raises:
            RestartError: it was not, or no server answers in time.
        """
        until_s = time.monotonic() + wanted.timeout_s
        try:
            path = find_hook(self.root, self.hook)
        except ServersFileError as error:
            raise RestartError(str(error), is_untouched=True) from error
        document = {
            "schema": SCHEMA,
            **wanted.told,
            "is_restore": wanted.is_restore,
            "to": wanted.settings.to_json(),
            "num_devices": wanted.settings.plan.world_size,
            "command": wanted.words,
        }
        try:
            found = run_hook(path, document, timeout_s=wanted.timeout_s, should_stop=should_stop)
        except OSError as error:
            raise RestartError(f"hook {path}: {error.strerror}", is_untouched=True) from error
        if not found.is_done:
            raise RestartError(str(found), is_untouched=found.code == NOT_NOW)
        self._wait_healthy(wanted.url, until_s, should_stop)

    def _wait_healthy(self, url: str, until_s: float, should_stop: Callable[[], bool]) -> None:
        """A hook may return before its server answers."""
        said = ""
        while time.monotonic() < until_s and not should_stop():
            try:
                asyncio.run(fetch(f"{url}{HEALTH}", token=None, limits=self.limits))
            except FetchError as error:
                said = error.detail
                time.sleep(LOOK_S)
            else:
                return
        raise RestartError(f"the hook was done, but the server does not answer: {said}")


class CommandWay:
    """Restarts by the service itself: the server is then its process, and ends with it."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Settings, ServerProcess]] = {}

    def apply(self, wanted: Wanted, should_stop: Callable[[], bool]) -> None:
        """Return once the server answers; the one before it has ended first.

        Raises:
            RestartError: it did not start; nothing runs now.
        """
        self.end(wanted.engine_id)
        if _answers(wanted.url):
            raise RestartError(
                f"something else listens at {wanted.url}, which the service did not start"
            )
        process = ServerProcess(wanted.words, name=f"{wanted.command.system}'s server")
        try:
            process.wait_healthy(
                f"{wanted.url}{HEALTH}", timeout_s=wanted.timeout_s, should_stop=should_stop
            )
        except ServerError as error:
            process.close()
            raise RestartError(str(error)) from error
        except BaseException:
            process.close()
            raise
        self._running[wanted.engine_id] = wanted.settings, process

    def runs(self, engine_id: str, settings: Settings) -> bool:
        """Whether its server runs with these settings."""
        running = self._running.get(engine_id)
        return running is not None and running[0] == settings and not running[1].has_ended

    def end(self, engine_id: str) -> None:
        """End its server, where there is one."""
        running = self._running.pop(engine_id, None)
        if running is not None:
            running[1].close()

    def close(self) -> None:
        """End all."""
        for engine_id in list(self._running):
            self.end(engine_id)


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    with (
        suppress(OSError),
        socket.create_connection((parts.hostname, port_of(url)), timeout=LOOK_S),
    ):
        return True
    return False

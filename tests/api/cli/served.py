"""`gearshift engine serve` as a process, and a client of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

FRONT_MODULE = "engine.server.front.process"
COMMAND = (sys.executable, "-m", "api.cli.main", "engine", "serve", "--port", "0")
PACED = ("--paced", "1xh200", "--dtype", "bfloat16")
# For what does not depend on who speaks HTTP: a front takes a second of a core to start.
ALONE = ("--frontends", 0)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running `engine serve`, what it printed when it was ready, and a client of it."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    http: httpx.Client

    @property
    def front(self) -> psutil.Process:
        """The front process now."""
        children = psutil.Process(self.process.pid).children()
        (found,) = [child for child in children if FRONT_MODULE in child.cmdline()]
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


@contextmanager
def serving(*words: object) -> Iterator[Served]:
    """Serve with these words on a free port; whatever still runs at the end is killed."""
    with subprocess.Popen(
        [*COMMAND, "--json", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            ready = json.loads(line)
            with httpx.Client(base_url=ready["url"], timeout=60) as http:
                yield Served(process=process, ready=ready, http=http)
        finally:
            if process.poll() is None:
                process.kill()

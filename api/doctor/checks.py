"""The checks of ``gearshift doctor``, in the order in which they are shown."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from engine.kernels.native_build import NO_COMPILER_VARIABLE, find_compiler
from engine.nvml.library import Nvml
from engine.nvml.topology import Joined, read_topology
from engine.spec.errors import EngineError
from engine.spec.processor import num_cores
from tuner.hardware.detected import describe

SHOWN_PACKAGES = ("gearshift", "torch", "numpy", "safetensors", "fastapi", "sqlalchemy", "optuna")
# The module by which each extra is found, and what the extra is for.
EXTRAS = {
    "cuda": ("triton", "Triton kernels on CUDA devices"),
    "postgres": ("psycopg", "PostgreSQL instead of SQLite"),
    "plots": ("plotly", "--plot and pictures in notebooks"),
    "dashboard": ("nicegui", "pages for people at the control plane"),
    "otel": ("opentelemetry.sdk", "traces"),
}
SERVICE_PORT, ENGINE_PORT = 8700, 8000
GIB = 2**30


class Mark(StrEnum):
    """How a finding stands. ``note``: works without, better with."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found of one part; ``way_out`` says what to do where something lacks."""

    part: str
    mark: Mark
    found: str
    way_out: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(ports: tuple[int, ...] | None = None) -> list[Finding]:
    """Everything this machine says of itself. ``ports`` None: those that servers listen on."""
    named = ports or (SERVICE_PORT, ENGINE_PORT)
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _versions,
        _processor,
        _devices,
        _torch,
        _compiler,
        _database,
        _extras,
        partial(_ports, named),
    )
    return [finding for check in checks for finding in check()]


def _versions() -> Iterator[Finding]:
    found = [f"python {platform.python_version()}"]
    for name in SHOWN_PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(
                part="versions",
                mark=Mark.MISSING,
                found=f"{name} is not installed",
                way_out=f"{sys.executable} -m pip install {name}",
            )
    yield Finding(part="versions", mark=Mark.OK, found=", ".join(found))


def _processor() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{num_cores()} cores, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    yield Finding(part="processor", mark=Mark.OK, found=text)


def _devices() -> Iterator[Finding]:
    try:
        with Nvml() as driver:
            joined = read_topology(driver)
    except EngineError as error:
        yield Finding(
            part="devices",
            mark=Mark.NOTE,
            found=f"no CUDA devices: {error}",
            way_out="to serve on GPUs, install NVIDIA's driver; engines run on the CPU meanwhile, "
            "and plan and simulate answer for --hardware 8xh200",
        )
        return
    names = ", ".join(device.name for device in joined.devices)
    word = describe(joined)
    yield Finding(
        part="devices",
        mark=Mark.OK if word else Mark.NOTE,
        found=f"{names} (--hardware {word})" if word else names,
        way_out=None if word else "describe them: docs/how-to/bring-your-own-names.md",
    )
    yield from _links(joined)


def _links(joined: Joined) -> Iterator[Finding]:
    if not joined.pairs:
        return
    slow = [pair for pair in joined.pairs if not pair.num_nvlinks]
    found = f"{len(joined.pairs) - len(slow)} of {len(joined.pairs)} pairs of devices by NVLink"
    yield Finding(
        part="links",
        mark=Mark.NOTE if slow else Mark.OK,
        found=found,
        way_out="plans with tp or sp over the other pairs pay PCIe: compare --hardware ...@pcie5"
        if slow
        else None,
    )


def _torch() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        found = f"torch sees {torch.cuda.device_count()} CUDA devices (CUDA {torch.version.cuda})"
        yield Finding(part="torch", mark=Mark.OK, found=found)
        return
    build = (
        "a CPU build" if torch.version.cuda is None else f"a build for CUDA {torch.version.cuda}"
    )
    has_driver = os.path.exists("/dev/nvidiactl")
    yield Finding(
        part="torch",
        mark=Mark.MISSING if has_driver else Mark.OK,
        found=f"torch is {build} and sees no CUDA device",
        way_out='make install TORCH="torch==2.13.0 --index-url '
        'https://download.pytorch.org/whl/cu130"'
        if has_driver
        else None,
    )


def _compiler() -> Iterator[Finding]:
    path = find_compiler()
    if os.environ.get(NO_COMPILER_VARIABLE, "") not in ("", "0"):
        yield Finding(
            part="compiler",
            mark=Mark.NOTE,
            found=f"{NO_COMPILER_VARIABLE} is set: none is used",
            way_out=f"unset {NO_COMPILER_VARIABLE} for faster simulation and layers on CPU",
        )
        return
    yield Finding(
        part="compiler",
        mark=Mark.OK if path else Mark.NOTE,
        found=path or "no C++ compiler",
        way_out=None if path else "for faster simulation and layers on CPU: apt-get install g++",
    )


def _database() -> Iterator[Finding]:
    from api.web.settings import ServiceSettings
    from migrations import runner
    from store import Database, StoreError

    try:
        settings = ServiceSettings()
        url = settings.effective_database_url
        if settings.is_sqlite and not os.path.exists(url.removeprefix("sqlite:///")):
            found = f"{url} is not there yet; the first start makes it"
            yield Finding(part="database", mark=Mark.OK, found=found)
            return
        database = Database(url)
    except (OSError, ValueError, StoreError) as error:
        yield _bad_database(str(error))
        return
    try:
        database.require_reachable()
        status = runner.check(database.engine)
    except StoreError as error:
        yield _bad_database(str(error))
    else:
        shown = database.engine.url.render_as_string(hide_password=True)
        yield Finding(
            part="database",
            mark=Mark.OK if status.is_current else Mark.MISSING,
            found=f"{shown}, schema {status.current or 'empty'}",
            way_out=None if status.is_current else "gearshift db upgrade",
        )
    finally:
        database.close()


def _bad_database(reason: str) -> Finding:
    return Finding(
        part="database",
        mark=Mark.MISSING,
        found=" ".join(reason.split()),
        way_out="set GEARSHIFT_DATABASE_URL to a database that answers, or unset it for SQLite",
    )


def _extras() -> Iterator[Finding]:
    for extra, (module, purpose) in EXTRAS.items():
        try:
            is_there = find_spec(module) is not None
        except ModuleNotFoundError:
            is_there = False
        yield Finding(
            part="extras",
            mark=Mark.OK if is_there else Mark.NOTE,
            found=f"{extra}: {purpose}" if is_there else f"no {extra}: {purpose}",
            way_out=None if is_there else f"pip install 'gearshift[{extra}]'",
        )


def _ports(ports: tuple[int, ...]) -> Iterator[Finding]:
    for port in ports:
        with socket.socket() as probe:
            # As servers bind: a port whose last connections linger is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                reason = None
            except OSError as error:
                reason = error.strerror
        yield Finding(
            part="ports",
            mark=Mark.OK if reason is None else Mark.NOTE,
            found=f"{port} is free" if reason is None else f"{port}: {reason}",
            way_out=None if reason is None else "end what listens there, or take another: --port N",
        )

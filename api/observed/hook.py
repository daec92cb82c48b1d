"""One call of an operator's program that restarts a server.

The program gets one JSON document on its standard input and says by its exit code how it went: 0,
done; 75, not now, and nothing was changed; anything else, failed. It must hand the server to
whoever keeps it (systemd, Kubernetes, Docker): what it starts itself ends with it.
"""

from __future__ import annotations

import json
import os
import selectors
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from api.documents.known_servers import ServersFileError
from engine.wire.child import inherited_environment
from store.models.base import Json
from tuner.servers.process import KEEPER

NOT_NOW = os.EX_TEMPFAIL
# How much of its output is kept, from the end.
TAIL_BYTES = 2000
READ_BYTES = 2**16
GRACE_S = 10.0
LOOK_S = 0.2
OWN = "GEARSHIFT_"


@dataclass(frozen=True, kw_only=True)
class HookResult:
    """How a call ended; ``code`` None: it was ended, since it took too long or the service ends."""

    code: int | None
    said: str
    seconds: float

    @property
    def is_done(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        how = "was ended before it was done" if self.code is None else f"exit code {self.code}"
        said = f": {self.said.splitlines()[-1]}" if self.said else ""
        return f"hook {how} after {self.seconds:.1f} s{said}"


def find_hook(root: Path | None, name: str) -> Path:
    """The program ``name`` in the folder of hooks.

    Raises:
        ServersFileError: there is none that may be run: no regular file in the folder itself that
            can be executed, or one that others than its owner and group may write.
    """
    if root is None:
        raise ServersFileError(f"hook {name!r}: no folder of hooks is set (GEARSHIFT_HOOK_ROOT)")
    path = root / name
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
        folder = root.resolve(strict=True)
        folder_mode = folder.stat().st_mode
    except OSError as error:
        raise ServersFileError(f"hook {path}: {error.strerror}") from error
    if real.parent != folder:
        raise ServersFileError(f"hook {path}: leads out of the folder of hooks")
    if not stat.S_ISREG(mode) or not os.access(real, os.X_OK):
        raise ServersFileError(f"hook {path}: is no program (chmod +x?)")
    if (mode | folder_mode) & stat.S_IWOTH:
        raise ServersFileError(f"hook {path}: everybody may write it, or its folder")
    return real


def run_hook(
    path: Path, document: Json, *, timeout_s: float, should_stop: Callable[[], bool]
) -> HookResult:
    """Run it to its end, its time limit, or the service's end, whichever comes first.

    It runs under a keeper (:mod:`tuner.servers.keeper`), so nothing of it is left, whatever ends.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as told, ExitStack() as stack:
        told.write(json.dumps(document).encode() + b"\n")  # a file: it need not read
        told.seek(0)
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-I", str(KEEPER), str(os.getpid()), str(GRACE_S), str(path)],
                stdin=told,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(inherited_environment()),
                start_new_session=True,
            )
        )
        tail, is_whole = _follow(process, began_s + timeout_s, should_stop)
        if not is_whole:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(2 * GRACE_S)
            process.kill()
        code = process.wait()
    said = tail.decode(errors="replace").strip()
    seconds = time.monotonic() - began_s
    return HookResult(code=code if is_whole else None, said=said, seconds=seconds)


def _follow(
    process: subprocess.Popen[bytes], until_s: float, should_stop: Callable[[], bool]
) -> tuple[bytes, bool]:
    """The end of what it says, and whether it came to its end in time."""
    tail = b""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < until_s and not should_stop():
            if not selector.select(LOOK_S):
                continue
            piece = os.read(process.stdout.fileno(), READ_BYTES)
            if not piece:
                return tail, True  # the keeper ends last
            tail = (tail + piece)[-TAIL_BYTES:]
    return tail, False


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment without what is the service's own: its database, its keys."""
    return {k: v for k, v in inherited.items() if not k.upper().startswith(OWN)}

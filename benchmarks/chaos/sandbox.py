"""A place of the campaign's own: what it mounts, starts and leaves behind ends with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

INSIDE = "GEARSHIFT_CHAOS_INSIDE"
PR_SET_CHILD_SUBREAPER = 36


def enter_namespaces() -> None:
    """Start this command again in namespaces of its own, where that is allowed.

    There /dev/shm is empty, disks can be mounted and filled, and all processes end with the
    campaign, however it ends. Returns inside them, or where they cannot be made.
    """
    if os.environ.get(INSIDE) or os.getuid() != 0 or shutil.which("unshare") is None:
        return
    enter = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        return
    command = [*enter, sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]]
    raise SystemExit(
        subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode
    )


def is_inside() -> bool:
    """Whether this process has namespaces of its own."""
    return INSIDE in os.environ


def mount_memory(folder: Path, *, mib: int) -> None:
    """Mount a small disk of memory at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "chaos", str(folder))


def remount(folder: Path, *, is_writable: bool) -> None:
    """Make the disk at ``folder`` read-only, or writable again; nobody may be writing."""
    run("mount", "-o", f"remount,{'rw' if is_writable else 'ro'}", str(folder))


def run(*command: str) -> None:
    """Run a system command.

    Raises:
        RuntimeError: it failed; the message is its own.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def adopt_orphans() -> None:
    """Make whatever outlives its parent a child of this process, so that it is seen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def find_orphans(known: Sequence[int]) -> list[str]:
    """Living children of this process beside ``known``; dead ones are buried on the way."""
    found = []
    for child in psutil.Process().children():
        if child.pid in known:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)
            else:
                found.append(f"{child.pid} {' '.join(child.cmdline()[:6])}")
    return found


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No byte is free at ``folder`` while the block runs."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        yield
    finally:
        filler.unlink()


def unmount(folder: Path) -> None:
    """Take the disk at ``folder`` away."""
    run("umount", str(folder))

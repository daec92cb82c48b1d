"""The engine's own credential, kept over restarts in a file that one process holds at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

import structlog


class CredentialFile:
    """The credential of one engine name at one control plane.

    Two engines of one name on one machine would find the same file: only the first may read it, so
    the second cannot pass for the first. Without a usable folder it is kept in memory only. Close
    it when the engine ends.
    """

    def __init__(self, folder: Path | None, *, control_url: str, name: str) -> None:
        self._text: str | None = None
        self._fd: int | None = None
        if folder is None:
            return
        digest = hashlib.sha256(f"{control_url}\n{name}".encode()).hexdigest()[:32]
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = _lock(folder / f"{digest}.credential")
        except OSError as error:
            structlog.get_logger("api.agent").warning(
                "the engine's credential is not kept over restarts", folder=str(folder), why=error
            )
        if self._fd is not None:
            self._text = os.pread(self._fd, 1000, 0).decode(errors="replace").strip() or None

    @property
    def text(self) -> str | None:
        """The credential; None before the first registration."""
        return self._text

    def keep(self, credential: str) -> None:
        """Take a fresh one; on a disk that takes none it is kept until the engine ends."""
        self._text = credential
        if self._fd is None:
            return
        try:
            # Never empty in between: all credentials are of one length.
            os.pwrite(self._fd, credential.encode(), 0)
            os.ftruncate(self._fd, len(credential.encode()))
            os.fsync(self._fd)
        except OSError as error:
            structlog.get_logger("api.agent").warning(
                "the engine's credential is not kept over restarts", why=error
            )

    def close(self) -> None:
        """Let another process have the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _lock(path: Path) -> int | None:
    """The file, open and held; None while another process holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd

"""What the operator of the service says of servers that are not ours: their keys, their restarts.

It stands in a file on the service's machine (``GEARSHIFT_SERVERS_FILE``), and nowhere in the
database: no request names a token, a program or a command.
"""

from __future__ import annotations

import os
import shlex
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tuner.servers.command import OURS
from tuner.spec.errors import TunerError

# A server that loads a large model.
DEFAULT_TIMEOUT_S = 900.0
MOST_TIMEOUT_S = 86_400.0
MOST_FILE_BYTES = 2**20
MOST_TOKEN_LETTERS = 4096
HOOK, COMMAND = "hook", "command"


class ServersFileError(TunerError):
    """A file of servers, a token or a hook that cannot be used."""


class KnownServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server, by the name that it is observed under.

    ``url`` is the only address that gets the token: whoever observes another one under this name
    learns nothing. ``hook`` is a program in ``GEARSHIFT_HOOK_ROOT`` that restarts it; ``command``
    is the start of the command by which the service runs it itself. A restart is given
    ``timeout_s``; ``away_s`` is how long nothing serves meanwhile (0: a rolling one).
    """

    url: str
    token_file: str | None = None
    token_env: str | None = None
    hook: str | None = None
    command: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    away_s: float | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url {self.url!r} is no address as in http://HOST:PORT")
        if self.token_file is not None and self.token_env is not None:
            raise ValueError("name token_file or token_env, not both")
        if self.hook is not None and self.command is not None:
            raise ValueError("name hook or command, not both")
        if self.hook is not None and Path(self.hook).name != self.hook:
            raise ValueError(f"hook {self.hook!r}: write the name of a program in the hook folder")
        if not 0 < self.timeout_s <= MOST_TIMEOUT_S:
            raise ValueError(f"timeout_s={self.timeout_s}: must be above 0, at most a day")
        if self.away_s is not None and not 0 <= self.away_s <= MOST_TIMEOUT_S:
            raise ValueError(f"away_s={self.away_s}: must be at least 0, at most a day")
        words = None if self.command is None else shlex.split(self.command)
        if words == []:
            raise ValueError("command is empty; leave it out where the service starts no server")
        for word in words or ():
            if (flag := word.partition("=")[0]) in OURS:
                raise ValueError(f"command has {flag}, which the policy chooses; leave it out")

    @property
    def restarts_by(self) -> str | None:
        """The way to restart it; None: there is none."""
        if self.hook is not None:
            return HOOK
        return COMMAND if self.command is not None else None

    def is_at(self, url: str) -> bool:
        """Whether ``url`` is this server's."""
        return _origin(url) == _origin(self.url)

    def token(self) -> str | None:
        """Read anew at every use, so that it can be changed; None: it needs none.

        Raises:
            ServersFileError: it is not where it should be.
        """
        if self.token_env is not None:
            found = os.environ.get(self.token_env, "")
            where = f"variable {self.token_env}"
        elif self.token_file is not None:
            where = f"file {self.token_file}"
            try:
                with Path(self.token_file).open() as file:
                    found = file.read(MOST_TOKEN_LETTERS)
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or "not a text"
                raise ServersFileError(f"token in {where}: {reason}") from error
        else:
            return None
        found = found.strip()
        if not found or not found.isascii() or not found.isprintable() or " " in found:
            raise ServersFileError(f"token in {where}: must be one word of printable ASCII")
        return found


def read_known_servers(path: Path | None) -> dict[str, KnownServer]:
    """The servers in the file, by name; read anew when it has changed. None: there are none.

    Raises:
        ServersFileError: it cannot be read, with what is wrong in it.
    """
    if path is None:
        return {}
    try:
        stamp = path.stat()
        return dict(_read(path, stamp.st_mtime_ns, stamp.st_size))
    except OSError as error:
        raise ServersFileError(f"file of servers {path}: {error.strerror}") from error


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int, num_bytes: int) -> dict[str, KnownServer]:
    del mtime_ns  # part of the key: the file as it was then
    if num_bytes > MOST_FILE_BYTES:
        raise ServersFileError(f"file of servers {path}: larger than {MOST_FILE_BYTES} bytes")
    try:
        found = msgspec.yaml.decode(path.read_bytes(), type=dict[str, KnownServer] | None)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ServersFileError(f"file of servers {path}: {error}") from error
    return found or {}


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port

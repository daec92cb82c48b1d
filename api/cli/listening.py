"""The address that a server listens on, and the key that it asks for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.common import fail

CONTROL_KEY_VARIABLE = "GEARSHIFT_CONTROL_KEY"
ENGINE_KEY_VARIABLE = "GEARSHIFT_ENGINE_KEY"
THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where an engine's server listens, and the key that its callers need."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=ENGINE_KEY_VARIABLE,
            help="Required of callers; give it by the variable, since options show in the list of "
            "processes.",
        ),
    ] = None

    def __post_init__(self) -> None:
        """End where the key is empty, which would let everyone in."""
        if self.api_key == "":
            fail("--api-key is empty; leave it out, or give one")

    @property
    def warning(self) -> str | None:
        """Why this is unsafe, if it is."""
        if self.api_key is not None or self.host in THIS_MACHINE:
            return None
        return f"listening on {self.host} without --api-key: anyone may change this engine"

    def url(self, listener: socket.socket) -> str:
        """The address of ``listener``, whose port may have been picked."""
        return url_of(self.host, listener)


def url_of(host: str, listener: socket.socket) -> str:
    """The address of ``listener`` on ``host``, whose port may have been picked."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that the caller closes; port 0 picks a free one. Ends where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY on what it accepts only where it is, and an
    # answer in two writes would else wait 40 ms for the caller's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _taking(host, port, listener):
        listener.bind((host, port))
    return listener


def listen(host: str, port: int) -> socket.socket:
    """A socket of :func:`bind` on which clients already wait: the port is this process's alone."""
    listener = bind(host, port)
    with _taking(host, port, listener):
        listener.listen()
    return listener


@contextmanager
def _taking(host: str, port: int, listener: socket.socket) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter for names that no host can have
        listener.close()
        fail(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}")

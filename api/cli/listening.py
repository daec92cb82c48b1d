"""The address that a server listens on, and the key that it asks for."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail
from api.cli.key_options import ENGINE_KEY_VARIABLE, KNOB_KEY_VARIABLE, key_option

if TYPE_CHECKING:
    from engine.server.keys import ServerKeys


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where an engine's server listens, and the key that its callers need."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000
    api_key: Annotated[
        str | None,
        key_option(
            ENGINE_KEY_VARIABLE,
            "Required of callers; give it by the variable, since options show in the list of "
            "processes.",
        ),
    ] = None

    knob_key: Annotated[
        str | None,
        key_option(
            KNOB_KEY_VARIABLE,
            "Required in its place of callers of /v1/engine, who read and change the policy. "
            "Without either key that is closed beyond this machine.",
        ),
    ] = None

    def __post_init__(self) -> None:
        """End where a key is empty, which would let everyone in."""
        for option, key in (("--api-key", self.api_key), ("--knob-key", self.knob_key)):
            if key == "":
                fail(f"{option} is empty; leave it out, or give one")

    def keys(self, listener: socket.socket) -> ServerKeys:
        """What callers of the server on ``listener`` need."""
        from engine.server.keys import ServerKeys

        address = ipaddress.ip_address(listener.getsockname()[0])
        return ServerKeys(api=self.api_key, knobs=self.knob_key, is_local=address.is_loopback)

    def warning(self, listener: socket.socket) -> str | None:
        """What is unsafe about it, or closed for being so."""
        from engine.server.keys import WAY_OUT

        keys = self.keys(listener)
        if not keys.has_knobs:
            return (
                f"anyone may use the model on {self.host}, and nobody its knobs (/v1/engine): "
                f"there is no key; {WAY_OUT}"
            )
        if keys.api is None and not keys.is_local:
            return f"anyone may use the model on {self.host}: there is no GEARSHIFT_ENGINE_KEY"
        return None

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

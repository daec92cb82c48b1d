"""A remote engine whose two ends are in one process, joined by a real socket pair."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from engine.engine import Engine
from engine.server.defaults import SamplingDefaults
from engine.server.front.gateway import FrontGateway
from engine.server.front.messages import FrontSetup
from engine.server.front.remote import RemoteEngine
from engine.server.keys import ServerKeys
from engine.spec.limits import RequestLimits
from engine.text.tokenizer import Tokenizer
from engine.wire.frames import FrameChannel


@dataclass(frozen=True, kw_only=True)
class RemotePair:
    """The front's engine, the gateway it talks to, and the front's socket."""

    remote: RemoteEngine
    gateway: FrontGateway
    front_socket: socket.socket


def setup_of(engine: Engine) -> FrontSetup:
    """What the front of ``engine`` is told first."""
    return FrontSetup(
        model_dir=str(engine.config.model_dir),
        model_name="tiny",
        engine_name="0",
        keys=ServerKeys(),
        drain_s=1,
        model=engine.model,
        envelope=engine.envelope,
        inventory=engine.inventory,
        paced_as=engine.paced_as,
        defaults=SamplingDefaults(),
        limits=RequestLimits(),
    )


@contextmanager
def remote_pair(engine: Engine, tokenizer: Tokenizer) -> Iterator[RemotePair]:
    """Serve a started ``engine`` to a remote one until the block ends."""
    ours, theirs = socket.socketpair()
    gateway = FrontGateway(engine, ours)
    with socket.socket() as listener:
        gateway.open(setup_of(engine), listener)
    channel = FrameChannel(theirs)
    frame = channel.receive()
    assert frame is not None
    for fd in channel.take_fds():
        socket.socket(fileno=fd).close()
    remote = RemoteEngine(channel, msgspec.msgpack.decode(frame, type=FrontSetup), tokenizer)
    remote.start()
    try:
        yield RemotePair(remote=remote, gateway=gateway, front_socket=theirs)
    finally:
        gateway.close()
        remote.close()

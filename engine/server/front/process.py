"""The HTTP front end of one engine, which starts it: ``python -m engine.server.front.process``.

HTTP, tokenising, detokenising and stop strings are handled here, so that they do not hold up the
step loop. It ends when told to (SIGTERM, after draining) and when the engine's process is gone.
"""

from __future__ import annotations

import contextlib
import socket
import sys

import msgspec

from engine.logs import configure_logs
from engine.server.app import create_server
from engine.server.front.lending import LentClients
from engine.server.front.messages import FrontFailed, FrontSetup, WireError
from engine.server.front.remote import RemoteEngine
from engine.server.front.serving import announce_and_run
from engine.server.traces import ENGINE_SERVICE, find_traces
from engine.spec.errors import EngineError
from engine.text.tokenizer import Tokenizer
from engine.wire.child import begin
from engine.wire.frames import FrameChannel


def main() -> int:
    channel = begin(sys.argv[1:])
    configure_logs("info")
    frame = channel.receive()
    if frame is None:
        return 0
    setup = msgspec.msgpack.decode(frame, type=FrontSetup)
    (listener_fd,) = channel.take_fds()
    try:
        tokenizer = Tokenizer.from_dir(setup.model_dir)
    except EngineError as error:
        failed = FrontFailed(error=WireError.of(error))
        channel.send(msgspec.msgpack.encode(failed))
        return 1
    _serve(channel, setup, tokenizer, socket.socket(fileno=listener_fd))
    return 0


def _serve(
    channel: FrameChannel, setup: FrontSetup, tokenizer: Tokenizer, listener: socket.socket
) -> None:
    engine = RemoteEngine(channel, setup, tokenizer)
    engine.start()
    traces = find_traces(ENGINE_SERVICE, instance=setup.engine_name)
    app = create_server(
        engine,
        tokenizer,
        model_name=setup.model_name,
        keys=setup.keys,
        engine_name=setup.engine_name,
        defaults=setup.defaults,
        limits=setup.limits,
        logs_requests=setup.logs_requests,
        traces=traces,
    )
    with contextlib.suppress(KeyboardInterrupt):  # the engine's process says how it ended
        announce_and_run(
            LentClients(app, engine),
            listener,
            limits=setup.limits,
            drain_s=setup.drain_s,
            on_ready=engine.say_ready,
        )
    if traces is not None:
        traces.close()


if __name__ == "__main__":
    sys.exit(main())

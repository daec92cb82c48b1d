"""The front's end of the line, whatever order the engine's end says things in."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from engine.engine import Engine
from engine.server.front.messages import (
    Abort,
    Accepted,
    CallFailed,
    EngineState,
    FromFront,
    Lend,
    OutputRow,
    Outputs,
    Submit,
    TakeBack,
    ToFront,
    WireError,
)
from engine.server.front.remote import RemoteEngine
from engine.spec.config import EngineConfig
from engine.spec.errors import RankError, RequestError
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.text.tokenizer import Tokenizer
from engine.wire.frames import FrameChannel
from tests.contracts.served_engine import read, text_of
from tests.engine.server.front.remote_pair import setup_of


@dataclass(kw_only=True)
class Line:
    """A front's engine, and the engine's end of its socket in the hands of a test."""

    remote: RemoteEngine
    channel: FrameChannel
    socket: socket.socket
    outputs: queue.Queue[RequestOutput] = field(default_factory=queue.Queue)

    def submit(self, stop: tuple[str, ...] = ()) -> tuple[Future[None], int]:
        """Send a request from the front; the future it got, and its number on the line."""
        sampling = SamplingParams(max_tokens=9, stop=stop)
        request = Request(request_id="r", prompt_ids=(5,), sampling=sampling)
        accepted = self.remote.submit(request, self.outputs.put)
        message = self.hear()
        assert isinstance(message, Submit)
        return accepted, message.number

    def say(self, message: ToFront) -> None:
        self.channel.send(msgspec.msgpack.encode(message))

    def hear(self) -> FromFront:
        frame = self.channel.receive()
        assert frame is not None
        return msgspec.msgpack.decode(frame, type=FromFront)


def tokens(number: int, *token_ids: int, reason: FinishReason | None = None) -> Outputs:
    """One row per token, the last of which ends the request for ``reason``."""
    return Outputs(
        rows=[
            OutputRow(
                number=number,
                token_ids=(token_id,),
                token_s=1.0,
                finish_reason=reason if nth == len(token_ids) else None,
                scheduled_s=0.5,
                error=None,
                logprobs=(),
            )
            for nth, token_id in enumerate(token_ids, start=1)
        ]
    )


@pytest.fixture
def line(tiny_dir: Path) -> Iterator[Line]:
    ours, theirs = socket.socketpair()
    channel = FrameChannel(theirs)
    engine = Engine(EngineConfig(model_dir=tiny_dir, num_kv_blocks=64))  # it need not run
    state = EngineState(
        policy=engine.policy, held_plan=engine.held_plan, max_model_len=64, is_healthy=True
    )
    channel.send(msgspec.msgpack.encode(state))
    remote = RemoteEngine(FrameChannel(ours), setup_of(engine), Tokenizer.from_dir(tiny_dir))
    remote.start()
    yield Line(remote=remote, channel=channel, socket=theirs)
    theirs.close()
    remote.close()


def letters(line: Line, text: str) -> list[int]:
    return Tokenizer.from_dir(line.remote.model_dir).encode(text, add_special_tokens=False)


def test_a_request_that_ends_before_the_front_hears_that_it_was_accepted_is_both(
    line: Line,
) -> None:
    accepted, number = line.submit()
    line.say(tokens(number, *letters(line, "abc"), reason=FinishReason.LENGTH))
    line.say(Accepted(number=number))
    accepted.result(timeout=30)
    found = read(line.outputs)
    assert text_of(found) == "abc"
    assert found[-1].finish_reason is FinishReason.LENGTH
    assert found[-1].scheduled_s == 0.5
    again, _ = line.submit()  # the line goes on
    assert not again.done()


def test_a_stop_string_found_at_the_front_ends_the_request_on_both_ends(line: Line) -> None:
    accepted, number = line.submit(stop=("b",))
    line.say(Accepted(number=number))
    line.say(tokens(number, *letters(line, "abcd")))  # the engine was ahead
    found = read(line.outputs)
    assert text_of(found) == "a"
    assert found[-1].finish_reason is FinishReason.STOP
    assert line.hear() == Abort(request_id="r", reason=FinishReason.STOP)
    assert accepted.done()
    assert line.outputs.empty()


def test_a_refused_request_has_an_error_and_no_output(line: Line) -> None:
    accepted, number = line.submit()
    line.say(CallFailed(number=number, error=WireError.of(RequestError("too long"))))
    with pytest.raises(RequestError, match="too long"):
        accepted.result(timeout=30)
    line.remote.abort("r")
    assert line.outputs.empty()


def test_when_the_engine_goes_a_request_is_refused_or_ends_but_not_both(line: Line) -> None:
    accepted, number = line.submit()
    line.say(Accepted(number=number))
    accepted.result(timeout=30)
    waiting, _ = line.submit()
    line.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(RankError, match="is gone"):
        waiting.result(timeout=30)
    ends = read(line.outputs)
    assert [output.error for output in ends] == ["the engine's process is gone"]
    assert line.outputs.empty()


def test_only_what_the_engine_still_owes_is_aborted(line: Line) -> None:
    refused, number = line.submit()
    line.say(CallFailed(number=number, error=WireError.of(RequestError("too long"))))
    with pytest.raises(RequestError):
        refused.result(5)
    line.remote.abort("r")
    accepted, number = line.submit()  # nothing was sent in between
    line.say(Accepted(number=number))
    accepted.result(5)
    line.remote.abort("r")
    assert line.hear() == Abort(request_id="r", reason=FinishReason.ABORT)


def test_a_client_that_has_gone_before_its_socket_was_lent_leaves_the_line_whole(
    line: Line,
) -> None:
    gone, client = socket.socketpair()
    gone.close()
    line.remote.lend(1, gone.fileno())
    line.remote.take_back(1)
    assert line.hear() == TakeBack(client=1)
    assert line.remote.is_healthy
    with client:
        line.remote.lend(2, client.fileno())
        assert line.hear() == Lend(client=2)
    (fd,) = line.channel.take_fds()
    socket.socket(fileno=fd).close()

"""Frames arrive whole and in order however the stream cuts them, descriptors with them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.wire.frames import HEADER, FrameChannel


@pytest.fixture
def ends() -> Iterator[tuple[FrameChannel, FrameChannel]]:
    left, right = socket.socketpair()
    channels = FrameChannel(left), FrameChannel(right)
    yield channels
    for channel in channels:
        channel.close()


@given(payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=6), cut=st.integers(1, 64))
def test_frames_survive_any_cutting_of_the_stream(payloads: list[bytes], cut: int) -> None:
    left, right = socket.socketpair()
    with left:
        channel = FrameChannel(right)
        stream = b"".join(HEADER.pack(len(payload), 0) + payload for payload in payloads)
        received = []
        for start in range(0, len(stream), cut):
            left.sendall(stream[start : start + cut])
            channel.read()
            while (frame := channel.next_frame()) is not None:
                received.append(frame)
        channel.close()
    assert received == payloads


def test_descriptors_come_with_their_frame(ends: tuple[FrameChannel, FrameChannel]) -> None:
    memory = os.memfd_create("test")
    os.write(memory, b"shared")
    ends[0].send(b"here", [memory])
    os.close(memory)
    assert ends[1].receive() == b"here"
    (fd,) = ends[1].take_fds()
    assert os.pread(fd, 6, 0) == b"shared"
    assert ends[1].take_fds() == []
    os.close(fd)


def test_the_end_of_the_stream_is_none_even_within_a_frame(
    ends: tuple[FrameChannel, FrameChannel],
) -> None:
    ends[0].send(b"whole")
    ends[0]._socket.sendall(HEADER.pack(100, 0) + b"half")
    ends[0].close()
    assert ends[1].receive() == b"whole"
    assert ends[1].receive() is None


def test_an_answer_carries_the_tag_of_what_it_answers(
    ends: tuple[FrameChannel, FrameChannel],
) -> None:
    host, rank = ends
    host.send(b"first", tag=7)
    host.send(b"second", tag=8)
    for expected in (7, 8):
        rank.receive()
        rank.send(b"answer")
        host.receive()
        assert host.tag == expected
    rank.send(b"late", tag=7)
    assert (host.receive(), host.tag) == (b"late", 7)

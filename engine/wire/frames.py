"""Length-prefixed messages over a stream socket between two processes; no torch.

A frame is a little-endian u32 length, a u32 tag, and that many bytes. The tag tells the answers
of one use of a rank from those of the use before: a rank answers with the tag it was asked with.
File descriptors may travel with a frame (``SCM_RIGHTS``); they arrive before its last byte.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

HEADER = struct.Struct("<II")
READ_BYTES = 1 << 20
MAX_FDS = 8


class FrameChannel:
    """One end of the socket. One thread may read while another one writes.

    ``tag`` is that of the frame returned last; frames are sent with it unless :meth:`send` is given
    another.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.tag = 0
        self._socket = sock
        self._buffer = bytearray()
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, payload: bytes, fds: Sequence[int] = (), *, tag: int | None = None) -> None:
        """Write one frame, waiting for room.

        Raises:
            OSError: the other end is gone, or took longer than the socket's timeout.
        """
        data = HEADER.pack(len(payload), self.tag if tag is None else tag) + payload
        if fds:
            sent = socket.send_fds(self._socket, [data], list(fds))
            data = data[sent:]
        self._socket.sendall(data)

    def receive(self) -> bytes | None:
        """The next frame, waiting for it; None once the other end is gone."""
        while (frame := self.next_frame()) is None:
            if not self.read():
                return None
        return frame

    def read(self) -> bool:
        """Take in what has arrived, waiting for something; False once the other end is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, READ_BYTES, MAX_FDS)
        except ConnectionError:
            return False
        self._fds += fds
        self._buffer += data
        return bool(data)

    def next_frame(self) -> bytes | None:
        """The next frame among what was read, or None when none is whole."""
        if len(self._buffer) < HEADER.size:
            return None
        length, tag = HEADER.unpack_from(self._buffer)
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        self.tag = tag
        frame = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return frame

    def take_fds(self) -> list[int]:
        """Descriptors received and not yet taken; the caller now owns them."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        self._socket.close()

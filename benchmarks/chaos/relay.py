"""A wire between an engine and its control plane that can be cut or fall silent."""

from __future__ import annotations

import asyncio
import contextlib
import threading

HURTS = ("cut", "silent")


class Relay:
    """Passes bytes between a port of its own and another one on loopback, on its own thread."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._is_cut = False
        self._passing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._is_up.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self, *, is_cut: bool) -> None:
        """End all connections and take no new ones, or take them again."""
        self._loop.call_soon_threadsafe(self._set_cut, is_cut)

    def silence(self, *, is_silent: bool) -> None:
        """Keep connections open and let nothing through, or let it flow again."""
        change = self._passing.clear if is_silent else self._passing.set
        self._loop.call_soon_threadsafe(change)

    def set_hurt(self, hurt: str, *, is_hurt: bool) -> None:
        """One of ``HURTS`` begins or ends."""
        if hurt == "cut":
            self.cut(is_cut=is_hurt)
        else:
            self.silence(is_silent=is_hurt)

    def _set_cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        if is_cut:
            for writer in self._writers:
                writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._passing.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        self._loop.run_forever()
        server.close()
        self._set_cut(True)
        self._loop.run_until_complete(asyncio.sleep(0))
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            ways = [asyncio.create_task(self._pass(reader, back))]
            ways.append(asyncio.create_task(self._pass(there, writer)))
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        finally:
            self._writers -= {writer, back}
            for end in (writer, back):
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()

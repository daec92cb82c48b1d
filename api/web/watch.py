"""One reader of the database for every request that waits for a change.

If each long poll and event stream looked by itself, a thousand of them would read five thousand
times a second. Here one task looks for all of them: at once after a commit of this process, and
for what other processes committed as soon as the database tells (PostgreSQL), else at intervals.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import structlog

from store import Database
from store.engines import Wish, parse_wishes
from store.watched import Change

LONGEST_PAUSE_S = 5.0
LISTEN_AGAIN_S = 1.0
# How long followers that can read for themselves wait for the first look.
FIRST_LOOK_S = 1.0


class Watched(StrEnum):
    """What may be waited for; each has a number that only grows."""

    POLICY = "policy"  # an engine's desired version
    JOB = "job"  # a job's last event
    ROLLOUT = "rollout"  # a rollout's last event


@dataclass(frozen=True, eq=False)
class _Waiter:
    kind: Watched
    key: str
    seen: int
    woken: asyncio.Future[None]


Numbers = Mapping[Watched, Mapping[str, int]]


class Watch:
    """Wakes whoever waits for an engine's policy, or the events of a job or a rollout.

    :meth:`run` is a task of the event loop that serves requests; :meth:`wait` is called there too.
    While the database is away, waiters keep waiting; while it does not tell of commits, it is
    looked at every ``look_every_s``.
    """

    def __init__(self, database: Database, *, look_every_s: float) -> None:
        self.has_ended = False
        self._database = database
        self._look_every_s = look_every_s
        self._waiters: set[_Waiter] = set()
        self._wishes: Mapping[str, Wish] = {}
        self._wishes_text = ""
        self._is_wanted = asyncio.Event()
        self._is_nudged = asyncio.Event()
        self._is_listening = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log = structlog.get_logger("api.web.watch")
        database.on_commit(Change.AWAITED, self._nudge)

    async def run(self) -> None:
        """Look and listen until cancelled."""
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_looking())
            if self._database.can_listen:
                tasks.create_task(self._keep_listening())

    async def _keep_looking(self) -> None:
        """Look, but only while somebody waits."""
        pause_s = self._look_every_s
        while True:
            await self._is_wanted.wait()
            # Not wait_for, which before Python 3.12 swallows a cancellation that comes with the
            # event: then this went on for ever, and whoever ended it waited as long.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._is_nudged.wait()
            self._is_nudged.clear()
            try:
                await self._look()
            except Exception as error:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self._log.warning("cannot look for changes", error=str(error), pause_s=pause_s)
            else:
                pause_s = LONGEST_PAUSE_S if self._is_listening else self._look_every_s

    async def _keep_listening(self) -> None:
        """Listen, again and again where the connection ends."""
        while True:
            try:
                await self._database.listen(self._begin_listening)
            except Exception as error:
                self._log.warning("cannot listen for changes", error=str(error))
            finally:
                self._is_listening = False
                self._is_nudged.set()
            await asyncio.sleep(LISTEN_AGAIN_S)

    def _begin_listening(self) -> None:
        """From now on commits are told; one that came just before is looked for."""
        self._is_listening = True
        self._is_nudged.set()

    async def wait(self, kind: Watched, key: str, *, seen: int, timeout_s: float) -> bool:
        """Wait until the number of ``key`` is above ``seen`` or ``key`` is gone.

        False when neither happened within ``timeout_s``, or once :meth:`end` was called. What came
        between the caller's own look and this call is not missed, though others may have been told
        of it meanwhile.
        """
        if self.has_ended:
            return False
        if kind is Watched.POLICY:  # as of the last look, whoever it was for
            known = self._wishes.get(key)
            if known is not None and known.version > seen:
                return True
        else:
            self._is_nudged.set()
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(kind, key, seen, woken)
        self._waiters.add(waiter)
        self._is_wanted.set()
        try:
            async with asyncio.timeout(timeout_s):
                await woken
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
            if not self._waiters:
                self._is_wanted.clear()
        return not self.has_ended

    async def find_wish(self, engine_id: str) -> Wish | None:
        """What an engine was asked to run at the last look, which may be some time ago.

        Whoever waits from there on with :meth:`wait` misses nothing. Where no look has seen the
        engine, all who ask meanwhile share one look now: after a start, every engine does.
        """
        if engine_id not in self._wishes:
            self._is_nudged.set()
            await self.wait(Watched.POLICY, engine_id, seen=-1, timeout_s=FIRST_LOOK_S)
        return self._wishes.get(engine_id)

    def end(self) -> None:
        """The service ends: whoever waits goes on at once. May be called on any thread."""
        self.has_ended = True
        self._nudge()

    async def _look(self) -> None:
        if self.has_ended:
            self._wake(self._waiters)
            return
        keys = {kind: {w.key for w in self._waiters if w.kind is kind} for kind in Watched}
        numbers = await asyncio.to_thread(self._read, keys)
        # Of engines all were read, also for those who have come meanwhile.
        judged = [w for w in self._waiters if w.kind is Watched.POLICY or w.key in keys[w.kind]]
        self._wake([w for w in judged if numbers[w.kind].get(w.key, w.seen + 1) > w.seen])

    def _read(self, keys: Mapping[Watched, Collection[str]]) -> Numbers:
        jobs, rollouts = keys[Watched.JOB], keys[Watched.ROLLOUT]
        with self._database.read() as uow:
            self._take_wishes(uow.engines.read_wishes())
            return {
                Watched.POLICY: {key: wish.version for key, wish in self._wishes.items()},
                Watched.JOB: uow.jobs.last_events(jobs) if jobs else {},
                Watched.ROLLOUT: uow.rollouts.last_events(rollouts) if rollouts else {},
            }

    def _take_wishes(self, text: str) -> None:
        """Most looks find what the last one found."""
        if text != self._wishes_text:
            self._wishes, self._wishes_text = parse_wishes(text), text

    @staticmethod
    def _wake(waiters: Collection[_Waiter]) -> None:
        for waiter in waiters:
            if not waiter.woken.done():
                waiter.woken.set_result(None)

    def _nudge(self) -> None:
        """Look now: called on any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._is_nudged.set)

"""One rank: ``python -m engine.rank.worker``. Receives typed messages, runs steps, replies.

It ends when told to, when its socket closes, and when its parent's process is gone for whatever
reason: a thread watches for both while the rank computes or waits in a collective.
(``PR_SET_PDEATHSIG`` would end it with the *thread* that started it, which may end earlier.)

When a peer is gone, a rank on CPU says so and waits to be set up again. A rank that fails by itself
says so and exits, and so does any rank on CUDA.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.rank.threads import FAILED_EXIT_CODE, Inbox, Outbox, RankPing, Received
from engine.spec.errors import EngineError
from engine.spec.steps import StepPlan
from engine.wire.child import begin
from engine.wire.frames import FrameChannel
from engine.wire.messages import (
    PING,
    FromRank,
    RankFailure,
    RankReady,
    RankSetup,
    Shutdown,
)

if TYPE_CHECKING:
    from engine.parallel.communicator import Communicator
    from engine.parallel.rejoin import RejoinableCommunicator
    from engine.parallel.transport import Transport
    from engine.rank.runner import ModelRunner, PreparedStep

# On CUDA a second thread prepares steps. The computing thread releases the interpreter's lock with
# each kernel that it queues; with the usual switch interval, the other thread could then keep the
# lock for 5 ms.
SWITCH_INTERVAL_S = 0.0002

Groups = dict[tuple[str, tuple[int, ...]], "RejoinableCommunicator"]


class Rank:
    """A rank that has been set up: its transport and its share of the model."""

    def __init__(
        self, setup: RankSetup, transport: Transport, groups: Groups, runner: ModelRunner
    ) -> None:
        self._setup = setup
        self._transport = transport
        self._groups = groups
        self.runner = runner

    @classmethod
    def open(cls, setup: RankSetup, fds: list[int]) -> Rank:
        """Join the groups and load the shard.

        Raises:
            EngineError: the checkpoint, the plan or the transport is at fault.
        """
        from engine.parallel.mesh import build_groups
        from engine.parallel.rejoin import RejoinableCommunicator
        from engine.rank.runner import ModelRunner

        share = setup.share
        transport = _open_transport(setup, fds)
        groups: Groups = {}
        make = _maker(setup, transport)

        def make_rejoinable(name: str, members: Sequence[int]) -> Communicator:
            group = RejoinableCommunicator(make(name, members))
            groups[name, tuple(members)] = group
            return group

        try:
            runner = ModelRunner(
                share, groups=build_groups(share.plan, share.rank, make_rejoinable)
            )
        except BaseException:
            transport.close()
            raise
        return cls(setup, transport, groups, runner)

    def can_rejoin(self, setup: RankSetup) -> bool:
        """Whether ``setup`` differs from what is loaded here in nothing but its shared memory."""
        before = self._setup.meeting
        meeting = msgspec.structs.replace(setup.meeting, address=before.address)
        same = msgspec.structs.replace(setup, meeting=meeting)
        return meeting.backend == "shm" and same == self._setup

    def rejoin(self, setup: RankSetup, fds: list[int]) -> None:
        """Keep weights and cache memory, forget all sequences, and join the new groups."""
        self._transport.close()
        self._transport = _open_transport(setup, fds)
        make = _maker(setup, self._transport)
        for (name, members), group in self._groups.items():
            group.rejoin(make(name, members))
        self.runner.forget()

    @property
    def computes_by(self) -> str:
        """What computes and joins steps, in words."""
        return "; ".join(filter(None, (self.runner.computes_by, self._transport.said)))

    def close(self) -> None:
        """Free the weights and leave the groups."""
        del self.runner
        self._groups.clear()
        gc.collect()
        self._transport.close()


def _open_transport(setup: RankSetup, fds: list[int]) -> Transport:
    from engine.parallel.mesh import all_groups
    from engine.parallel.shm_layout import GroupSpec
    from engine.parallel.transport import open_transport

    share, plan = setup.share, setup.share.plan
    return open_transport(
        setup.meeting,
        rank=share.rank,
        device=share.device,
        groups=[GroupSpec(name=name, members=tuple(m)) for name, m in all_groups(plan)],
        num_ranks=plan.replica_size,
        fds=fds,
    )


def _maker(setup: RankSetup, transport: Transport) -> Callable[[str, Sequence[int]], Communicator]:
    from engine.parallel.transport import with_link, with_staging

    make = with_staging(transport.make, backend=setup.meeting.backend, device=setup.share.device)
    return with_link(make, setup.link)


class RankLoop:
    """Runs what comes in until told to end or its parent is gone."""

    def __init__(self, channel: FrameChannel) -> None:
        self._channel = channel
        self._inbox = Inbox(channel)
        self._outbox = Outbox(self._reply, self._fail)
        self._encoder = msgspec.msgpack.Encoder()
        self._sending = threading.Lock()
        self._rank: Rank | None = None
        self._number = -1
        self._step_id: int | None = None
        self._is_on_cuda = False
        self._has_failed = False

    def run(self) -> int:
        """Until the end; the process's exit code."""
        free_s = time.perf_counter()
        while (arrival := self._inbox.next()) is not None:
            try:
                match arrival.message:
                    case StepPlan() as step:
                        self._execute(step, arrival, free_s)
                    case RankSetup() as setup:
                        self._set_up(setup, arrival)
                    case RankPing():
                        self._outbox.drain()
                        self._send(PING, arrival.tag)
                    case Shutdown():
                        self._outbox.drain()
                        return 0
            except Exception as error:
                self._fail(error, arrival.tag)
                if self._is_on_cuda or not isinstance(error, EngineError):
                    return FAILED_EXIT_CODE
                self._has_failed = True
            free_s = time.perf_counter()
        return 0

    def _set_up(self, setup: RankSetup, arrival: Received) -> None:
        self._outbox.drain()
        self._number, self._step_id = setup.share.rank, None
        self._is_on_cuda = setup.share.device.startswith("cuda")
        _use_threads(setup.num_threads)
        self._rank = self._open(setup, arrival.fds)
        runner = self._rank.runner
        if self._is_on_cuda:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            # Ranks on CPU keep the cores busy: preparing on a second thread made decode steps of a
            # tiny model 7 to 9 % slower there (two ranks on two shared cores).
            self._inbox.prepares_for = runner
        self._has_failed = False
        self._reply(
            RankReady(
                rank=setup.share.rank,
                weight_bytes=runner.weight_bytes,
                kv_bytes=runner.kv_bytes,
                computes_by=self._rank.computes_by,
            ),
            arrival.tag,
        )

    def _open(self, setup: RankSetup, fds: list[int]) -> Rank:
        rank, self._rank = self._rank, None
        if rank is not None and rank.can_rejoin(setup):
            rank.rejoin(setup, fds)
            return rank
        self._inbox.prepares_for = None
        if rank is not None:
            rank.close()
        return Rank.open(setup, fds)

    def _execute(self, step: StepPlan, arrival: Received, free_s: float) -> None:
        if self._has_failed:
            return  # sent before the host knew
        assert self._rank is not None, "a step came before the setup"
        self._step_id = step.step_id
        prepared, waited_s = self._prepared(step, arrival, free_s)
        answer = self._rank.runner.execute(prepared)
        if answer is not None:
            answer.prepare_wait_s = waited_s
            self._outbox.put(answer, arrival.arrived_s, arrival.tag)

    def _prepared(
        self, step: StepPlan, arrival: Received, free_s: float
    ) -> tuple[PreparedStep, float]:
        """The step's inputs, and how long this thread, free since ``free_s``, waited for them."""
        if arrival.error is not None:
            raise arrival.error
        if arrival.prepared is not None:
            waited_s = arrival.prepared_s - max(arrival.arrived_s, free_s)
            return arrival.prepared, max(0.0, waited_s)
        assert self._rank is not None, "a step came before the setup"
        prepared = self._rank.runner.prepare(step)
        return prepared, prepared.seconds

    def _reply(self, message: FromRank, tag: int) -> None:
        self._send(self._encoder.encode(message), tag)

    def _send(self, payload: bytes, tag: int) -> None:
        with self._sending:
            self._channel.send(payload, tag=tag)

    def _fail(self, error: Exception, tag: int) -> None:
        is_domain = isinstance(error, EngineError)
        detail = str(error) if is_domain else "".join(traceback.format_exception(error))
        kind = type(error).__name__ if is_domain else ""
        failure = RankFailure(rank=self._number, step_id=self._step_id, detail=detail, kind=kind)
        self._reply(failure, tag)


def _use_threads(count: int) -> None:
    """Compute on ``count`` threads from now on, this one among them."""
    import torch

    torch.set_num_threads(count)


def warm_up() -> None:
    """Import torch and the model, which takes about a second, before the first message asks for
    them.

    Without the garbage collector's rounds it is a tenth quicker. Imported objects stay for good, so
    later rounds need not look at them.
    """
    gc.disable()
    import engine.parallel.transport
    import engine.rank.runner  # noqa: F401 - for what importing it costs, not for its names

    _use_threads(1)
    gc.freeze()
    gc.enable()


def main() -> int:
    channel = begin(sys.argv[1:])
    # A service manager tells all processes to end at once. The engine then finishes what it has,
    # for which it needs this one, and hangs up on it last.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warm_up()
    return RankLoop(channel).run()


if __name__ == "__main__":
    sys.exit(main())

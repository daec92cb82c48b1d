"""One rank: ``python -m engine.worker``. Receives typed messages, runs steps, replies.

It ends when told to, when its socket closes, and when its parent's process is gone, however that
happened: a thread waits for either while the rank computes or waits in a collective.
(``PR_SET_PDEATHSIG`` would end it with the *thread* that started it, which may end earlier.)
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.config import DType
from engine.errors import EngineError
from engine.executors.frames import FrameChannel
from engine.plan import ParallelPlan
from engine.steps import (
    FromRank,
    RankFailure,
    RankReady,
    RankSetup,
    Shutdown,
    StepPlan,
    StepResult,
    ToRank,
)

if TYPE_CHECKING:
    from engine.parallel.transport import Transport
    from engine.runner import ModelRunner

PARENT_GONE_EXIT_CODE = 3
PARENT_POLL_MS = 500


class Rank:
    """A rank that has been set up: its transport and its share of the model."""

    def __init__(self, transport: Transport, runner: ModelRunner) -> None:
        self._transport = transport
        self.runner = runner

    @classmethod
    def open(cls, setup: RankSetup, fds: list[int]) -> Rank:
        """Join the groups and load the shard.

        Raises:
            EngineError: the checkpoint, the plan or the transport is at fault.
        """
        from engine.parallel.mesh import all_groups, build_groups
        from engine.parallel.shm_layout import GroupSpec
        from engine.parallel.transport import open_transport, with_link
        from engine.runner import ModelRunner

        plan = ParallelPlan(**setup.plan)
        groups = [GroupSpec(name=name, members=tuple(m)) for name, m in all_groups(plan)]
        transport = open_transport(setup, groups=groups, num_ranks=plan.replica_size, fds=fds)
        try:
            runner = ModelRunner(
                model_dir=Path(setup.model_dir),
                plan=plan,
                rank=setup.rank,
                dtype=DType(setup.dtype),
                device=setup.device,
                block_size=setup.block_size,
                num_kv_blocks=setup.num_kv_blocks,
                groups=build_groups(plan, setup.rank, with_link(transport.make, setup.link)),
            )
        except BaseException:
            transport.close()
            raise
        return cls(transport, runner)

    def close(self) -> None:
        """Free the weights and leave the groups."""
        del self.runner
        gc.collect()
        self._transport.close()


class RankLoop:
    """Receives, runs and replies until told to end or its parent is gone."""

    def __init__(self, channel: FrameChannel) -> None:
        self._channel = channel
        self._decoder = msgspec.msgpack.Decoder(ToRank)
        self._encoder = msgspec.msgpack.Encoder()
        self._rank: Rank | None = None
        self._number = -1
        self._step_id: int | None = None

    def run(self) -> int:
        """Until the end; the process's exit code."""
        try:
            while (frame := self._channel.receive()) is not None:
                match self._decoder.decode(frame):
                    case RankSetup() as setup:
                        self._set_up(setup)
                    case StepPlan() as step:
                        self._execute(step)
                    case Shutdown():
                        return 0
        except Exception as error:
            self._reply(self._failure(error))
            return 1
        return 0

    def _set_up(self, setup: RankSetup) -> None:
        self._number, self._step_id = setup.rank, None
        if self._rank is not None:
            self._rank.close()
            self._rank = None
        self._rank = Rank.open(setup, self._channel.take_fds())
        runner = self._rank.runner
        self._reply(
            RankReady(rank=setup.rank, weight_bytes=runner.weight_bytes, kv_bytes=runner.kv_bytes)
        )

    def _execute(self, step: StepPlan) -> None:
        assert self._rank is not None, "a step came before the setup"
        self._step_id = step.step_id
        result: StepResult | None = self._rank.runner.execute(step)
        if result is not None:
            self._reply(result)

    def _reply(self, message: FromRank) -> None:
        self._channel.send(self._encoder.encode(message))

    def _failure(self, error: Exception) -> RankFailure:
        is_domain = isinstance(error, EngineError)
        detail = str(error) if is_domain else traceback.format_exc()
        kind = type(error).__name__ if is_domain else ""
        return RankFailure(rank=self._number, step_id=self._step_id, detail=detail, kind=kind)


def begin(arguments: list[str]) -> FrameChannel:
    """Open the socket named on the command line and tie this process's life to its parent's."""
    parser = argparse.ArgumentParser(description="one rank of an engine; started by its executor")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    sock = socket.socket(fileno=options.socket_fd)
    watcher = threading.Thread(
        target=_end_with_parent, args=(sock.fileno(), options.parent), daemon=True
    )
    watcher.start()
    return FrameChannel(sock)


def _end_with_parent(socket_fd: int, parent: int) -> None:
    """Wait until the socket is hung up or the parent is gone, then end this process at once."""
    poller = select.poll()
    poller.register(socket_fd, select.POLLRDHUP)
    timeout_ms: int | None = None
    try:
        poller.register(os.pidfd_open(parent), select.POLLIN)
    except OSError:  # an old kernel, or the parent is gone already
        timeout_ms = PARENT_POLL_MS
    while os.getppid() == parent and not poller.poll(timeout_ms):
        pass
    os._exit(PARENT_GONE_EXIT_CODE)


def warm_up() -> None:
    """Import torch and the model, about a second, before the first message asks for them.

    Without the garbage collector's rounds that is a tenth quicker; what was imported stays, so
    later rounds need not look at it.
    """
    gc.disable()
    import torch

    import engine.parallel.transport
    import engine.runner  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()
    gc.enable()


def main() -> int:
    channel = begin(sys.argv[1:])
    warm_up()
    return RankLoop(channel).run()


if __name__ == "__main__":
    sys.exit(main())

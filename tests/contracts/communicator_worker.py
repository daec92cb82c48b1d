"""A rank that runs little programs of collectives, for the communicator suite."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from engine.parallel.communicator import Communicator
from engine.parallel.shm_layout import GroupSpec
from engine.parallel.transport import Transport, open_transport
from engine.spec.errors import RankError
from engine.wire.child import begin
from engine.wire.messages import Meeting

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int32": torch.int32,
    "int64": torch.int64,
    "int16": torch.int16,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One collective, on tensors that follow from ``seed`` and the member's global rank.

    Kinds: all_reduce, all_gather, all_to_all, barrier; ``relay`` hands member 0's tensor from
    member to member; ``queue`` sends three tensors to the next member (overwriting each after
    its send) before it receives three from the one before; ``backlog`` sends two tensors more
    than there are members from the last to the first, which reads them after all have met.
    """

    kind: str
    dtype: str = "float32"
    shape: tuple[int, ...] = (4,)
    seed: int = 0


class Group(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    members: tuple[int, ...]


class Open(msgspec.Struct, tag="open", kw_only=True):
    """Leave the groups of before and join these."""

    backend: str
    init_method: str
    rank: int
    num_ranks: int
    groups: list[Group]
    timeout_s: float


class Program(msgspec.Struct, tag="program", kw_only=True):
    group: Group
    operations: list[Operation]


class Die(msgspec.Struct, tag="die"):
    """Exit at once, without a word."""


class Outcome(msgspec.Struct, kw_only=True):
    """Bytes of each operation's result, or the RankError's message."""

    results: list[bytes]
    error: str | None = None


def make_input(operation: Operation, rank: int, size: int) -> Tensor:
    """The tensor global rank ``rank`` brings to an operation of a group of ``size``."""
    dtype = DTYPES[operation.dtype]
    shape = operation.shape
    if operation.kind == "all_to_all":
        shape = (size, *shape)
    elif operation.kind == "queue":
        shape = (3, *shape)
    elif operation.kind == "backlog":
        shape = (size + 2, *shape)
    generator = torch.Generator().manual_seed(operation.seed * 1000 + rank)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def run_operation(group: Communicator, operation: Operation, rank: int) -> Tensor:
    """Bring my input to the group; what I got."""
    x = make_input(operation, rank, group.size)
    match operation.kind:
        case "all_reduce":
            return group.all_reduce(x)
        case "all_gather":
            return group.all_gather(x)
        case "all_to_all":
            return group.all_to_all(x)
        case "relay":
            return _relay(group, x)
        case "queue":
            return _queue(group, x)
        case "backlog":
            return _backlog(group, x)
        case "barrier":
            group.barrier()
            return torch.empty(0)
        case kind:
            raise AssertionError(f"unknown operation {kind}")


def _relay(group: Communicator, x: Tensor) -> Tensor:
    if group.rank > 0:
        x = group.recv(x, group.rank - 1)
    if group.rank < group.size - 1:
        group.send(x, group.rank + 1)
    return x


def _queue(group: Communicator, x: Tensor) -> Tensor:
    like = torch.empty_like(x[0])
    for part in x:
        group.send(part, (group.rank + 1) % group.size)
        part.zero_()
    return torch.stack([group.recv(like, (group.rank - 1) % group.size) for _ in range(3)])


def _backlog(group: Communicator, x: Tensor) -> Tensor:
    if group.rank == group.size - 1:
        for part in x:
            group.send(part, 0)
    group.barrier()
    if group.rank > 0:
        return torch.empty(0)
    return torch.stack([group.recv(torch.empty_like(x[0]), group.size - 1) for _ in x])


def expected(operation: Operation, members: Sequence[int]) -> list[Tensor]:
    """What each member must get, in group order, to the bit."""
    size = len(members)
    inputs = [make_input(operation, rank, size) for rank in members]
    match operation.kind:
        case "all_reduce":
            return [_ordered_sum(inputs)] * size
        case "all_gather":
            return [torch.stack(inputs)] * size
        case "all_to_all":
            return [torch.stack([x[j] for x in inputs]) for j in range(size)]
        case "relay":
            return [inputs[0]] * size
        case "queue":
            return [inputs[j - 1] for j in range(size)]
        case "backlog":
            return [inputs[-1], *[torch.empty(0)] * (size - 1)]
        case _:
            return [torch.empty(0)] * size


def _ordered_sum(inputs: list[Tensor]) -> Tensor:
    wide = torch.float32 if inputs[0].dtype in (torch.float16, torch.bfloat16) else None
    total = inputs[0].to(wide or inputs[0].dtype, copy=True)
    for x in inputs[1:]:
        total += x
    return total.to(inputs[0].dtype)


def to_bytes(x: Tensor) -> bytes:
    """The bytes of any tensor, whatever its dtype."""
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _open(message: Open, fds: list[int]) -> Transport:
    return open_transport(
        Meeting(backend=message.backend, address=message.init_method, timeout_s=message.timeout_s),
        rank=message.rank,
        device="cpu",
        groups=[GroupSpec(name=group.name, members=group.members) for group in message.groups],
        num_ranks=message.num_ranks,
        fds=fds,
    )


def main() -> int:
    channel = begin(sys.argv[1:])
    torch.set_num_threads(1)
    decoder = msgspec.msgpack.Decoder(Open | Program | Die)
    transport: Transport | None = None
    groups: dict[Group, Communicator] = {}
    rank = -1
    while (frame := channel.receive()) is not None:
        results: list[bytes] = []
        error = None
        try:
            match decoder.decode(frame):
                case Open() as message:
                    if transport is not None:
                        transport.close()
                    rank = message.rank
                    transport = _open(message, channel.take_fds())
                    groups = {
                        group: transport.make(group.name, group.members)
                        for group in message.groups
                        if rank in group.members
                    }
                case Program() as program:
                    group = groups[program.group]
                    results = [
                        to_bytes(run_operation(group, operation, rank))
                        for operation in program.operations
                    ]
                case Die():
                    os._exit(7)
        except RankError as failure:
            error = str(failure)
        channel.send(msgspec.msgpack.encode(Outcome(results=results, error=error)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Communicators over torch.distributed: NCCL between GPUs, gloo between CPU ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from engine.parallel import one_shot
from engine.parallel.communicator import Communicator
from engine.parallel.shm_layout import GroupSpec
from engine.spec.errors import EngineError, RankError

MAX_SENDS_IN_FLIGHT = 8


class TorchTransport:
    """The process group of one rank and all its ordered subgroups.

    ``new_group`` is itself a collective: every rank calls it for every group of the replica, in the
    same order, even for groups it does not belong to. ``sort_ranks=False`` keeps the order of the
    shift group; the default would sort its members.
    """

    def __init__(
        self,
        *,
        backend: str,
        address: str,
        listen_fd: int | None,
        groups: Sequence[GroupSpec],
        rank: int,
        num_ranks: int,
        device: str,
        timeout_s: float,
    ) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        self._timeout_s = timeout_s
        self._rank = rank
        self._is_nccl = backend == "nccl"
        self._device = torch.device(device)
        self.said = ""
        if self._is_nccl:  # NCCL works on the current device
            torch.cuda.set_device(self._device)
        with _as_rank_error("torch.distributed", timeout_s):
            store = TCPStore(
                host,
                int(port),
                num_ranks,
                is_master=listen_fd is not None,
                timeout=timeout,
                master_listen_fd=listen_fd,
            )
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=num_ranks, timeout=timeout
            )
            self._groups = {
                (spec.name, spec.members): dist.new_group(
                    list(spec.members), timeout=timeout, **_in_order(spec.members)
                )
                for spec in groups
            }

    def make(self, name: str, members: Sequence[int]) -> Communicator:
        """My end of the group ``name``.

        Raises:
            EngineError: no such group was announced.
        """
        group = self._groups.get((name, tuple(members)))
        if group is None:
            raise EngineError(f"group {name!r} of ranks {list(members)} was not announced")
        position = list(members).index(self._rank)
        made = TorchCommunicator(
            group=group,
            name=name,
            size=len(members),
            rank=position,
            timeout_s=self._timeout_s,
            is_nccl=self._is_nccl,
        )
        # Stages hand on what they have, but sum nothing.
        if not self._is_nccl or name == "pipeline" or not one_shot.is_asked_for(len(members)):
            return made
        return self._with_small_sums(made, group)

    def _with_small_sums(self, made: Communicator, group: dist.ProcessGroup) -> Communicator:
        found, reason = one_shot.with_one_shot(
            made, lambda: one_shot.PeerSum(group, self._device), self._device
        )
        if reason:
            self.said = f"no one-shot sums: {reason}"
        self.said = self.said or "one-shot sums"
        return found

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class TorchCommunicator:
    """One member's end of a group; see ``engine.parallel.communicator.Communicator``.

    Bytes are moved as bytes, so every dtype works on every backend. gloo sums in no fixed order,
    and 16-bit floats in 16 bits. So on CPU all parts are gathered and added in group order, 16-bit
    floats in fp32. NCCL sums by itself: equal on all members, but in its own order.
    """

    def __init__(
        self,
        *,
        group: dist.ProcessGroup,
        name: str,
        size: int,
        rank: int,
        timeout_s: float,
        is_nccl: bool,
    ) -> None:
        self._group = group
        self._name = name
        self._size = size
        self._rank = rank
        self._timeout_s = timeout_s
        self._is_nccl = is_nccl
        self._sends: deque[tuple[dist.Work, Tensor]] = deque()

    @property
    def size(self) -> int:
        return self._size

    @property
    def rank(self) -> int:
        return self._rank

    def all_reduce(self, x: Tensor) -> Tensor:
        if self._is_nccl:
            x = x.contiguous()
            with self._errors():
                dist.all_reduce(x, group=self._group)
            return x
        return _ordered_sum(self.all_gather(x))

    def all_gather(self, x: Tensor) -> Tensor:
        out = x.new_empty((self._size, *x.shape))
        if x.numel():
            with self._errors():
                dist.all_gather_into_tensor(_bytes(out), _bytes(x), group=self._group)
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if x.numel():
            with self._errors():
                dist.all_to_all_single(_bytes(out), _bytes(x), group=self._group)
        return out

    def send(self, x: Tensor, dst: int) -> None:
        # The caller may overwrite x while it is still on its way. A CUDA graph does so in its next
        # replay, which does not wait for what NCCL does on its own stream.
        data = _bytes(x).clone()
        with self._errors():
            work = dist.isend(data, group=self._group, group_dst=dst)
            assert work is not None, "a member sends on its own group"
            self._sends.append((work, data))
            # A pipeline's last stage may have sent pp + 1 messages that nobody has read yet.
            while len(self._sends) > max(MAX_SENDS_IN_FLIGHT, self._size + 2):
                self._sends.popleft()[0].wait()

    def recv(self, like: Tensor, src: int) -> Tensor:
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        with self._errors():
            dist.recv(_bytes(out), group=self._group, group_src=src)
        return out

    def barrier(self) -> None:
        with self._errors():
            dist.barrier(group=self._group)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with _as_rank_error(f"group {self._name!r}", self._timeout_s):
            yield


def _in_order(members: Sequence[int]) -> dict[str, Any]:
    """What makes torch keep the order of ``members``. By default it sorts them, and versions before
    2.13 cannot do otherwise; so if they are sorted already, nothing is asked for.
    """
    return {} if list(members) == sorted(members) else {"sort_ranks": False}


@contextmanager
def _as_rank_error(what: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"{what} (timeout {timeout_s:g} s): {error}") from error


def _bytes(x: Tensor) -> Tensor:
    """The bytes of ``x``; shares memory when ``x`` is contiguous."""
    return x.contiguous().view(-1).view(torch.uint8)


def _ordered_sum(parts: Tensor) -> Tensor:
    """Sum over the first axis, in order; 16-bit floats in fp32, rounded once."""
    is_half = parts.dtype in (torch.float16, torch.bfloat16)
    total = parts[0].float() if is_half else parts[0].clone()
    for part in parts[1:]:
        total += part
    return total.to(parts.dtype)

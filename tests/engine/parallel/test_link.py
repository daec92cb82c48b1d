"""An emulated link adds its time and changes nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.parallel.communicator import Communicator
from engine.parallel.link import LinkedCommunicator, pause
from engine.spec.config import LinkEmulation

KIB = torch.ones(2, 128)  # 1,024 bytes


class InstantPair:
    """Member 0 of two, whose peer brings the same tensors at once."""

    size = 2
    rank = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        return x + x

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.stack([x, x])

    def all_to_all(self, x: Tensor) -> Tensor:
        return x

    def send(self, x: Tensor, dst: int) -> None:
        self.sent = x

    def recv(self, like: Tensor, src: int) -> Tensor:
        return like

    def barrier(self) -> None:
        return


def seconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


@pytest.mark.parametrize(
    ("kind", "moved_bytes"),
    [("all_reduce", 1024), ("all_gather", 1024), ("all_to_all", 512), ("barrier", 0)],
)
def test_each_collective_takes_latency_and_its_bytes_over_bandwidth(
    kind: str, moved_bytes: int
) -> None:
    link = LinkEmulation(latency_us=500, gbps=0.001)  # 8 us a byte
    group: Communicator = LinkedCommunicator(InstantPair(), link)
    arguments = () if kind == "barrier" else (KIB,)
    took_s = seconds(lambda: getattr(group, kind)(*arguments))
    assert took_s >= 500e-6 + moved_bytes * 8e-6


def test_a_message_is_delayed_before_it_is_handed_over() -> None:
    inner = InstantPair()
    group = LinkedCommunicator(inner, LinkEmulation(latency_us=20_000))
    assert seconds(lambda: group.send(KIB, 1)) >= 20e-3
    assert torch.equal(inner.sent, KIB)


def test_results_and_places_are_those_of_the_wrapped_group() -> None:
    inner = InstantPair()
    group = LinkedCommunicator(inner, LinkEmulation(latency_us=1))
    assert (group.size, group.rank) == (2, 0)
    assert torch.equal(group.all_reduce(KIB), inner.all_reduce(KIB))
    assert torch.equal(group.all_gather(KIB), inner.all_gather(KIB))


@pytest.mark.parametrize("asked_s", [0.0, 30e-6, 500e-6, 3e-3])
def test_a_pause_is_never_short(asked_s: float) -> None:
    assert min(seconds(lambda: pause(asked_s)) for _ in range(5)) >= asked_s

"""Collectives over CPU memory for tensors of a device: down to the host, across, and up again."""

from __future__ import annotations

from torch import Tensor

from engine.parallel.communicator import PassingCommunicator


class StagedCommunicator(PassingCommunicator):
    """Carries tensors of any device by ``inner``, whose collectives work in host memory.

    Every call waits for the device. For ranks that share a device (NCCL refuses them), or whose
    devices NCCL cannot connect.
    """

    def all_reduce(self, x: Tensor) -> Tensor:
        return self.inner.all_reduce(x.cpu()).to(x.device)

    def all_gather(self, x: Tensor) -> Tensor:
        return self.inner.all_gather(x.cpu()).to(x.device)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self.inner.all_to_all(x.cpu()).to(x.device)

    def send(self, x: Tensor, dst: int) -> None:
        self.inner.send(x.cpu(), dst)

    def recv(self, like: Tensor, src: int) -> Tensor:
        return self.inner.recv(like.new_empty(like.shape, device="cpu"), src).to(like.device)

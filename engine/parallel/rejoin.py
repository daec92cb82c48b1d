"""Groups whose transport can be exchanged while everything that holds them stays."""

from __future__ import annotations

from torch import Tensor

from engine.parallel.communicator import Communicator


class RejoinableCommunicator:
    """Passes every call on to ``inner``, the present end of the group.

    Weights and samplers hold communicators. After a peer was replaced, :meth:`rejoin` gives them
    the new group, and they need not be built again.
    """

    def __init__(self, inner: Communicator) -> None:
        self._inner = inner
        self.size = inner.size
        self.rank = inner.rank

    def rejoin(self, inner: Communicator) -> None:
        """Use another end of the same group from now on."""
        assert (inner.size, inner.rank) == (self.size, self.rank), "it is the same place"
        self._inner = inner

    @property
    def inner(self) -> Communicator:
        """The present end of the group."""
        return self._inner

    def all_reduce(self, x: Tensor) -> Tensor:
        return self._inner.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        return self._inner.all_gather(x)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self._inner.all_to_all(x)

    def send(self, x: Tensor, dst: int) -> None:
        self._inner.send(x, dst)

    def recv(self, like: Tensor, src: int) -> Tensor:
        return self._inner.recv(like, src)

    def barrier(self) -> None:
        self._inner.barrier()

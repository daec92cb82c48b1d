"""The contract of one ordered group of ranks, which shared memory, gloo and NCCL implement, and
what wraps a group builds on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Communicator(Protocol):
    """Collectives over one ordered group. ``rank`` is the position *in that order*.

    Every member calls the same methods in the same order with equal shapes and dtypes. Sums are
    taken in group order on every member, so all members hold bit-identical results. Tensors are
    contiguous. Implementations: ``tests/contracts/communicator.py`` is their suite.

    Raises (every method):
        RankError: a peer is gone or did not arrive within the group's timeout.
    """

    @property
    def size(self) -> int:
        """Members of the group; 1 makes every collective a no-op."""
        ...

    @property
    def rank(self) -> int:
        """My position in the group's order."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over members; may reuse ``x``'s storage. Shape kept."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """``[*shape]`` from each member -> ``[size, *shape]`` in group order."""
        ...

    def all_to_all(self, x: Tensor) -> Tensor:
        """``x[size, *shape]``; block j goes to member j; result block j came from member j."""
        ...

    def send(self, x: Tensor, dst: int) -> None:
        """Hand ``x`` to member ``dst``; may return before it was received, and the caller may write
        over ``x`` from then on.
        """
        ...

    def recv(self, like: Tensor, src: int) -> Tensor:
        """The next tensor from member ``src``, of the shape and dtype of ``like``."""
        ...

    def barrier(self) -> None:
        """Return once every member has come here."""
        ...


class PassingCommunicator:
    """A group that is ``inner`` in all that a subclass does not do otherwise."""

    def __init__(self, inner: Communicator) -> None:
        self.inner = inner
        self.size = inner.size
        self.rank = inner.rank

    def all_reduce(self, x: Tensor) -> Tensor:
        return self.inner.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        return self.inner.all_gather(x)

    def all_to_all(self, x: Tensor) -> Tensor:
        return self.inner.all_to_all(x)

    def send(self, x: Tensor, dst: int) -> None:
        self.inner.send(x, dst)

    def recv(self, like: Tensor, src: int) -> Tensor:
        return self.inner.recv(like, src)

    def barrier(self) -> None:
        self.inner.barrier()

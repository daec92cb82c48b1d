"""Groups whose transport can be exchanged while everything that holds them stays."""

from __future__ import annotations

from engine.parallel.communicator import Communicator, PassingCommunicator


class RejoinableCommunicator(PassingCommunicator):
    """``inner`` is the present end of the group.

    Weights and samplers hold communicators. After a peer was replaced, :meth:`rejoin` gives them
    the new group, and they need not be built again.
    """

    def rejoin(self, inner: Communicator) -> None:
        """Use another end of the same group from now on."""
        assert (inner.size, inner.rank) == (self.size, self.rank), "it is the same place"
        self.inner = inner

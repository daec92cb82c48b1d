"""The process between one replica and its clients: requests in, tokens out, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuner.simulation.log import FloatArray, IntArray, TokenLog


class Outlet:
    """Stamps tokens in ``log`` as clients see them: ``busy_s`` for each, in the order in which they
    come, once what came before is done. With 0 every token is out as its step ends.
    """

    def __init__(self, log: TokenLog, *, busy_s: float) -> None:
        self._log = log
        self._busy_s = busy_s
        self._free_s = 0.0
        # The last step whose tokens were sent: its end, and since when there was time for them.
        self._last_s = self._before_s = 0.0

    def take_in(self, at_s: float, seconds: float) -> float:
        """When a request is in that comes at ``at_s`` and takes so many ``seconds``."""
        if self._last_s <= at_s:
            self._free_s = max(self._free_s, at_s) + seconds
            return self._free_s
        # Tokens of a step that ends later have their stamps; the time for them comes later.
        sent_s = self._free_s - max(self._before_s, self._last_s)
        self._before_s = max(self._before_s, at_s) + seconds
        self._free_s = max(self._before_s, self._last_s) + sent_s
        return self._before_s

    def stamp(self, rows: IntArray, when_s: float) -> None:
        """One token for each of ``rows``, in this order, of a step that ends at ``when_s``."""
        if not self._busy_s:
            self._log.stamp(rows, when_s)
            return
        begun_s = max(self._free_s, when_s)
        self._before_s, self._last_s = self._free_s, when_s
        sent: FloatArray = np.arange(1, len(rows) + 1, dtype=np.float64)
        self._log.stamp(rows, begun_s + self._busy_s * sent)
        self._free_s = begun_s + self._busy_s * len(rows)

    def stamp_each(self, rows: IntArray, ends_s: FloatArray, *, has_ended: bool = False) -> None:
        """One token for each of ``rows`` at each of ``ends_s`` f8[K]; ``has_ended``: some have all
        their tokens before the last, and get no more."""
        if not self._busy_s:
            self._log.stamp_each(rows, ends_s, has_ended=has_ended)
            return
        for end_s in ends_s.tolist():
            self.stamp(self._log.lacking(rows), end_s)

    def stamp_rounds(self, rows: Sequence[IntArray], ends_s: Sequence[Sequence[float]]) -> None:
        """One token for each of a group's ``rows`` at each of its ``ends_s``; groups are in the
        order in which a round's first steps are launched, so that the first group's end last."""
        if not self._busy_s:
            for own, own_s in zip(rows, ends_s, strict=True):
                self._log.stamp_each(own, np.array(own_s))
            return
        for at_s in zip(*ends_s, strict=True):
            for nth in (*range(1, len(rows)), 0):
                self.stamp(rows[nth], at_s[nth])

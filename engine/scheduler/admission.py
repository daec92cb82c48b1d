"""Which requests may join the queue of one scheduler."""

from __future__ import annotations

from engine.scheduler.queue import WaitingQueue
from engine.scheduler.rows import RunningSet
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.request import Request, check_length
from engine.spec.settings import Caps


class Admission:
    """Answers from the running set and the queue. ``is_blocked``: the last step that was scheduled
    left a request waiting."""

    def __init__(self, running: RunningSet, waiting: WaitingQueue, *, max_model_len: int) -> None:
        self.is_blocked = False
        self._running, self._waiting = running, waiting
        self._max_model_len = max_model_len

    def check_request(self, request: Request) -> None:
        """Refuse a request that could never run.

        Raises:
            RequestError: longer than the context or the whole KV cache, with the numbers.
        """
        check_length(request, self._max_model_len)
        blocks, held = self._running.blocks_for(request.max_len), self._running.pool.num_blocks
        if blocks > held:
            raise RequestError(
                f"request {request.request_id}: up to {request.max_len} tokens need {blocks} KV "
                f"blocks, this engine has {held}; raise the KV cache size"
            )

    def check_queue(self, caps: Caps, num_coming: int) -> None:
        """Refuse one more request where as many wait as may; ``num_coming`` are on their way here.

        Requests for which there is a free row do not wait, unless the one in front was refused it.

        Raises:
            QueueFullError: ``caps.max_queue`` requests wait already.
        """
        limit, num_waiting = caps.max_queue, len(self._waiting) + num_coming
        if limit is None:
            return
        # Who was refused a row may be gone: an empty queue blocks nobody.
        is_blocked = self.is_blocked and len(self._waiting) > 0
        num_free = 0 if is_blocked else max(0, caps.max_num_seqs - len(self._running))
        if num_waiting - num_free >= limit:
            raise QueueFullError(f"{num_waiting} requests wait, max_queue is {limit}")

"""Replays of rollouts, beside the loop that waits for them."""

from __future__ import annotations

import threading
from collections.abc import Collection

import structlog

from api.aside.process import AsideError, AsideLimits, run_aside
from store.models.base import Json

LIMITS = AsideLimits(seconds=120.0, memory_mib=2048)


class Replays:
    """Runs one replay at a time in a process of its own, and keeps what it said until it is taken.

    Nothing of it outlives the service: whoever leads then asks again.
    """

    def __init__(self) -> None:
        self._running: str | None = None
        self._answers: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._log = structlog.get_logger("api.control.replays")

    def forget_all_but(self, rollout_ids: Collection[str]) -> None:
        """Drop answers that nobody will take any more."""
        with self._lock:
            self._answers = {k: v for k, v in self._answers.items() if k in rollout_ids}

    def take(self, rollout_id: str) -> Json | None:
        """The answer for a rollout, once: the verdict, or ``error``."""
        with self._lock:
            return self._answers.pop(rollout_id, None)

    def can_ask(self, rollout_id: str) -> bool:
        """Whether nothing runs, and nothing was said of this rollout yet."""
        with self._lock:
            return self._running is None and rollout_id not in self._answers

    def ask(self, rollout_id: str, question: Json) -> None:
        """Begin a replay; :meth:`can_ask` has said that it may."""
        with self._lock:
            assert self._running is None, "one replay at a time"
            self._running = rollout_id
        # A daemon: the end of the service does not wait for it.
        threading.Thread(
            target=self._run, args=(rollout_id, question), name="replay", daemon=True
        ).start()

    def _run(self, rollout_id: str, question: Json) -> None:
        try:
            answer = run_aside("replay", question, LIMITS)
        except AsideError as error:
            answer = {"error": str(error)}
        except Exception as error:
            self._log.exception("replay failed", rollout=rollout_id)
            answer = {"error": f"the replay failed ({error!r}); see the service's log"}
        with self._lock:
            self._running = None
            self._answers[rollout_id] = answer

"""Work of the loops, in processes beside them: nobody's turn waits for it."""

from __future__ import annotations

import threading
from collections.abc import Collection

import structlog

from api.aside.process import AsideError, AsideLimits, run_aside
from store.models.base import Json


class AsideQueue:
    """Questions of one task (:mod:`api.aside.tasks`), each with a name. One after the other is
    answered by a process of its own, and the answer is kept until it is taken.

    Nothing of it outlives the service: whoever leads then asks again.
    """

    def __init__(self, task: str, limits: AsideLimits) -> None:
        self._task = task
        self._limits = limits
        self._running: str | None = None
        self._waiting: dict[str, Json] = {}
        self._answers: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._log = structlog.get_logger("api.control.aside_queue")

    def forget_all_but(self, names: Collection[str]) -> None:
        """Drop what nobody will take any more."""
        with self._lock:
            self._waiting = {k: v for k, v in self._waiting.items() if k in names}
            self._answers = {k: v for k, v in self._answers.items() if k in names}

    def take(self, name: str) -> Json | None:
        """The answer of that name, once; ``{"error": why}`` where there is none to be had."""
        with self._lock:
            return self._answers.pop(name, None)

    def can_ask(self, name: str) -> bool:
        """Whether nothing of that name waits, runs or is answered."""
        with self._lock:
            return name != self._running and name not in {*self._waiting, *self._answers}

    def ask(self, name: str, question: Json) -> None:
        """Queue a question; :meth:`can_ask` has said that it may come."""
        with self._lock:
            if self._running is None:
                # A daemon: the end of the service does not wait for it. Where none can be started,
                # nothing has been asked.
                threading.Thread(target=self._run, name=f"aside-{self._task}", daemon=True).start()
                self._running = name
            self._waiting[name] = question

    def _run(self) -> None:
        while (found := self._next()) is not None:
            name, question = found
            answer = self._answer(name, question)
            with self._lock:
                self._answers[name] = answer

    def _next(self) -> tuple[str, Json] | None:
        with self._lock:
            self._running = next(iter(self._waiting), None)
            if self._running is None:
                return None
            return self._running, self._waiting.pop(self._running)

    def _answer(self, name: str, question: Json) -> Json:
        try:
            return run_aside(self._task, question, self._limits)
        except AsideError as error:
            return {"error": str(error)}
        except Exception as error:
            self._log.exception("no answer", task=self._task, name=name)
            return {"error": f"{self._task} failed ({error!r}); see the service's log"}

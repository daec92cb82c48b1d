"""Questions that are answered beside the loops."""

from __future__ import annotations

import threading

import pytest

from api.aside.process import AsideLimits
from api.control.aside_queue import AsideQueue
from tests.waiting import wait_until


def test_a_question_for_which_no_thread_was_to_be_had_may_be_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = AsideQueue("no such task", AsideLimits(seconds=60.0, memory_mib=1024))

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            queue.ask("one", {})
    assert queue.can_ask("one")
    queue.ask("one", {})
    wait_until(lambda: (answer := queue.take("one")) is not None and "error" in answer)
    assert queue.can_ask("one")

"""How long a command waits for a control plane that does not answer is the user's to say."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.api.cli.conftest import Run

VARIABLE = "GEARSHIFT_CONTROL_RETRIES"


class HangsUp:
    """A service whose callers are hung up on, and counted."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.num_calls += 1
            caller.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def service() -> Iterator[HangsUp]:
    found = HangsUp()
    yield found
    found.close()


@pytest.mark.parametrize(("asked", "num_calls"), [("0", 1), ("2", 3), (None, 4)])
def test_a_service_that_hangs_up_is_asked_again_as_often_as_the_user_says(
    run: Run,
    service: HangsUp,
    monkeypatch: pytest.MonkeyPatch,
    asked: str | None,
    num_calls: int,
) -> None:
    monkeypatch.setenv("GEARSHIFT_CONTROL_KEY", "k")
    if asked is not None:
        monkeypatch.setenv(VARIABLE, asked)
    done = run("jobs", "list", "--service", service.url)
    assert done.exit_code == 2
    assert "no answer" in done.stderr
    assert service.num_calls == num_calls


@pytest.mark.parametrize("asked", ["", "x", "-1", "1.5", "9" * 30])
def test_what_is_no_number_is_named(
    run: Run, service: HangsUp, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("GEARSHIFT_CONTROL_KEY", "k")
    monkeypatch.setenv(VARIABLE, asked)
    for words in (
        ("jobs", "list", "--service", service.url),
        ("report", f"{service.url}/v1/tuning-jobs/job_1"),
    ):
        done = run(*words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {VARIABLE}={asked}: a whole number")
    assert service.num_calls == 0

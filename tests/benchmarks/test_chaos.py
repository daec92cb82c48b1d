"""The campaign of faults draws what its seed says, and its checks see what they should."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.chaos.campaign import Injection, Outcome, draw
from benchmarks.chaos.children import Child
from benchmarks.chaos.clock import ShiftedClock
from benchmarks.chaos.journal import Journal
from benchmarks.chaos.kinds import ALL
from benchmarks.chaos.relay import Relay
from benchmarks.chaos.report import report
from benchmarks.chaos.traffic import End, Traffic

LEAST_KINDS = 20
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(document: object) -> bytes:
    text = document if isinstance(document, str) else json.dumps(document)
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKENS = _event({"choices": [{"token_ids": [4, 5]}]})
ERROR = _event({"error": {"message": "x", "code": "front_end_lost"}})
DONE = _event("[DONE]")
END = b"0\r\n\r\n"


@contextmanager
def _answering(answer: bytes) -> Iterator[str]:
    """A server that says ``answer`` to one request and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65_536)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (HEAD + TOKENS + DONE + END, End.DONE),
        (HEAD + TOKENS + ERROR + DONE + END, End.TOLD),
        (HEAD + TOKENS, End.CUT),
        (HEAD + TOKENS + END, End.SILENT),
        (HEAD + DONE + END, End.SILENT),
        (b"", End.CUT),
    ],
)
def test_how_a_stream_ended_is_told_as_its_client_sees_it(answer: bytes, end: End) -> None:
    traffic = Traffic()
    with _answering(answer) as url:
        assert traffic.ask(url, 0, 2, is_stream=True)[0] is end
    traffic.close()


def test_a_campaign_has_every_kind_and_is_the_same_for_the_same_seed() -> None:
    drawn = draw(ALL, 200, seed=3)
    assert len(drawn) == 200
    assert {kind.name for kind in drawn} == {kind.name for kind in ALL}
    assert len(ALL) >= LEAST_KINDS
    assert drawn == draw(ALL, 200, seed=3) != draw(ALL, 200, seed=4)


def test_the_report_names_each_violation_with_its_injection() -> None:
    calm = Injection(number=1, kind="rank killed", recovered_s=0.5, ends=Counter({End.DONE: 8}))
    bad = Injection(number=2, kind="rank killed", ends=Counter({End.HUNG: 1}), violations=["hung"])
    text = report(
        Outcome(injections=[calm, bad], missing={"disk full": "no disk"}),
        database="sqlite",
        seed=7,
        wanted=2,
        others_share=0.0,
    )
    assert "2 injections of 1 kinds: 1 violations" in text
    assert "* injection 2 (rank killed): hung" in text
    assert "disk full (no disk)" in text
    assert '--database sqlite --injections 2 --seed 7"' in text


def test_a_campaign_that_was_cut_goes_on_after_its_last_injection(tmp_path: Path) -> None:
    campaign = {"database": "sqlite", "seed": 7, "injections": 3, "only": []}
    journal = Journal(path=tmp_path / "journal.jsonl", campaign=campaign)
    first = Injection(number=1, kind="flood", ends=Counter({End.DONE: 8}), violations=["hung"])
    journal.begin()
    journal.add(first)
    with journal.path.open("a") as file:
        file.write('{"injection": {"numb')  # it was killed as it wrote
    assert journal.read().injections == [first]
    second = Injection(number=2, kind="nonsense", refusals=Counter({"job 503": 2}), num_jobs=1)
    journal.begin()
    journal.add(second)
    journal.end(["a file is left behind"])
    outcome = journal.read()
    assert outcome.injections == [first, second]
    text = report(outcome, database="sqlite", seed=7, wanted=3, others_share=0.0)
    assert "2 injections of 2 kinds: 2 violations" in text
    assert "3 were asked for" in text
    assert "made in 2 runs" in text
    assert "1 of the runs were cut" in text
    assert "2 x job 503" in text
    with pytest.raises(ValueError, match="is the journal of"):
        Journal(path=journal.path, campaign={**campaign, "seed": 8}).read()


def test_a_wire_can_be_cut_and_mended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay(listener.getsockname()[1])
        relay.start()
        with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as sock:
            server, _ = listener.accept()
            sock.sendall(b"a")
            assert server.recv(1) == b"a"
            relay.cut(is_cut=True)
            with suppress(ConnectionError):
                assert sock.recv(1) == b""
            server.close()
        relay.cut(is_cut=False)
        with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as sock:
            server, _ = listener.accept()
            server.sendall(b"b")
            assert sock.recv(1) == b"b"
            server.close()
        relay.stop()


def test_the_clock_of_a_program_jumps_and_others_stay(tmp_path: Path) -> None:
    clock = ShiftedClock(tmp_path)
    if not clock.is_there:
        pytest.skip("there is no C compiler")
    clock.shift(86_400)
    say = "import json, time; print(json.dumps(time.time()), flush=True)"
    environment = {**os.environ, **clock.variables()}
    child = Child("clock", [sys.executable, "-c", say], environment, tmp_path / "log")
    said: object = child.start()
    child.terminate()
    assert isinstance(said, float)
    assert 80_000 < said - time.time() < 90_000


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_small_campaign_finds_nothing(database: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--injections", "6", "--database"]
    words = ["--only", "worker killed", "service killed", "front killed"]
    out = tmp_path / "report.md"
    done = subprocess.run([*command, database, *words, "--out", str(out)], check=False, timeout=600)
    assert done.returncode == 0
    assert "0 violations" in out.read_text()

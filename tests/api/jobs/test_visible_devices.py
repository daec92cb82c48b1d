"""Which CUDA devices the ranks of a job see: its own, of those that the service may use."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import cast

import pytest

from api.documents.places import Places
from api.jobs.kept_traces import KeptTraces
from api.jobs.tuner_backend import VISIBLE_DEVICES, TunerBackend, only_visible
from api.web.settings import num_visible
from engine.wire.child import inherited_environment
from tests.api.documents.test_tuning_spec import JOB

SHOW = f"import os; print(os.environ.get({VISIBLE_DEVICES!r}))"


def seen_by_a_child() -> str:
    command = [sys.executable, "-I", "-S", "-c", SHOW]
    return subprocess.check_output(command, env=inherited_environment(), text=True).strip()


@pytest.mark.parametrize(
    ("shown", "seen"),
    [(None, "0,2"), ("4,5,6,7", "4,6"), ("GPU-a, GPU-b, GPU-c", "GPU-a,GPU-c")],
)
def test_a_job_sees_its_own_of_the_devices_that_the_service_sees(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, seen: str
) -> None:
    if shown is None:
        monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    else:
        monkeypatch.setenv(VISIBLE_DEVICES, shown)
    with only_visible((0, 2)):
        assert seen_by_a_child() == seen
    assert seen_by_a_child() == str(shown)
    with only_visible(()):
        assert seen_by_a_child() == str(shown)


def test_of_two_jobs_at_once_each_sees_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    both = Barrier(2)

    def run(devices: tuple[int, ...]) -> list[str]:
        both.wait(10)
        found = []
        for _ in range(3):
            with only_visible(devices):
                found.append(seen_by_a_child())
        return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, [(0, 1), (2, 3)])) == [["0,1"] * 3, ["2,3"] * 3]


@pytest.mark.parametrize(("device", "first"), [("cuda:4", 4), ("cuda", 0), ("cpu", 0)])
def test_a_job_wants_devices_from_the_one_that_it_names_on(device: str, first: int) -> None:
    spec = {**JOB, "hardware": "local", "options": {"device": device}}
    backend = TunerBackend(cast("Places", None), cast("KeptTraces", None))
    assert backend.first_device(spec) == first


@pytest.mark.parametrize(("shown", "count"), [(None, 8), ("4,5", 2), ("", 0)])
def test_a_service_has_the_devices_that_it_may_see(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, count: int
) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    if shown is not None:
        monkeypatch.setenv(VISIBLE_DEVICES, shown)
    assert num_visible(8) == count

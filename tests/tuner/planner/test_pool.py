"""What answers a planner's tasks: this process, others here, or a Ray cluster that loses a node."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.sla import Sla
from tests.waiting import wait_until
from tuner.described.parse import describe_node
from tuner.planner.document import plan_json
from tuner.planner.planner import make_plan
from tuner.planner.pool import OnRay, Workers, read_jobs
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload

NUM_TASKS = 12
HELD = 3


def test_workers_answer_in_the_order_of_their_tasks() -> None:
    for jobs in (1, 2):
        with Workers(jobs) as workers:
            assert workers.map(abs, [-3, 1, -2]) == [3, 1, 2]


def test_jobs_are_processes_or_a_cluster() -> None:
    assert read_jobs("3") == read_jobs(3) == 3
    assert read_jobs("ray") == OnRay(None)
    assert read_jobs("ray:head:6379") == OnRay("head:6379")


@pytest.mark.parametrize("jobs", ["", "two", "ray:", "rays", "-1", 0, "4096"])
def test_other_jobs_are_refused_by_name(jobs: int | str) -> None:
    with pytest.raises(TunerError, match=f"jobs={jobs}: "):
        read_jobs(jobs)


def square_when_open(task: tuple[int, str]) -> int:
    """The square; tasks from ``HELD`` on wait until the file ``open`` is there."""
    number, folder = task
    Path(folder, f"begun-{number}-{os.getpid()}").touch()
    give_up_s = time.monotonic() + 120
    while number >= HELD and not Path(folder, "open").exists():
        assert time.monotonic() < give_up_s, "nobody opened"
        time.sleep(0.05)
    return number * number


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three real nodes on this machine: a head without cores for tasks, and two with one each."""
    utils = pytest.importorskip("ray.cluster_utils", reason="pip install 'gearshift[ray]'")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow  # starts a cluster
def test_a_plan_made_on_a_cluster_is_that_of_one_process(cluster: Any) -> None:
    cluster.add_node(num_cpus=2)
    node = describe_node(
        model="llama-3.1-70b", hardware="4xh200", dtype="bf16", backend="gearshift"
    )
    load = parse_workload("gamma:rate=6,cv=2,input=1500,output=12,requests=30", seed=1)
    sla = Sla.parse("p95_ttft_ms<=4000,p95_tpot_ms<=150")
    here, there = (
        json.dumps(plan_json(make_plan(node, load, sla, jobs=jobs), model="m"))
        for jobs in (1, f"ray:{cluster.address}")
    )
    assert here == there


@pytest.mark.slow
def test_a_node_that_is_killed_half_way_loses_no_answer(cluster: Any, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    done: list[int] = []

    def begun() -> list[int]:
        return [int(path.name.split("-")[1]) for path in tmp_path.glob("begun-*")]

    def count(task: tuple[int, str], _: int) -> None:
        done.append(task[0])
        if len(done) == HELD:
            cores = ray.cluster_resources()["CPU"]
            wait_until(lambda: len([n for n in begun() if n >= HELD]) == cores)
            cluster.remove_node(nodes[0], allow_graceful=False)
            (tmp_path / "open").touch()

    tasks = [(number, str(tmp_path)) for number in range(NUM_TASKS)]
    with Workers(f"ray:{cluster.address}") as workers:
        answers = workers.map(square_when_open, tasks, count)
    assert answers == [number * number for number in range(NUM_TASKS)]
    assert sorted(done) == list(range(NUM_TASKS))
    assert len(begun()) == NUM_TASKS + 1, "the task of the killed node began twice"


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named() -> None:
    pytest.importorskip("ray", reason="pip install 'gearshift[ray]'")
    with pytest.raises(TunerError, match=r"no Ray cluster answers 127\.0\.0\.1:9"):
        Workers("ray:127.0.0.1:9")

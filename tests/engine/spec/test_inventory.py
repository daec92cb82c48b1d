"""What plans may use: ranks and memory, refused with the numbers before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.spec.errors import EngineError, PlanError
from engine.spec.inventory import RANK_PROCESS_BYTES, Inventory, RankKind, check_ranks
from engine.spec.model import DType
from engine.spec.plan import ParallelPlan
from tests.models import MODEL

CPU = Inventory(kind=RankKind.CPU, max_ranks=8, kv_bytes=2**20, memory_bytes=4 * 2**30)


def test_a_plan_of_more_ranks_than_there_are_is_refused_with_the_way_out() -> None:
    with pytest.raises(PlanError, match=r"needs 128 devices, this engine has 8; .*--max-devices"):
        CPU.check(ParallelPlan(dp=64, tp=2), MODEL)
    CPU.check(ParallelPlan(dp=4, tp=2), MODEL)


def test_ranks_that_fill_the_machines_memory_are_refused_with_the_bytes() -> None:
    small = replace(CPU, memory_bytes=3 * RANK_PROCESS_BYTES)
    small.check(ParallelPlan(dp=2), MODEL)
    with pytest.raises(PlanError, match=r"4 ranks of 0.211 GB need 0.845 GB, .* has 0.629 GB"):
        small.check(ParallelPlan(dp=4), MODEL)


def test_weights_that_leave_no_room_for_kv_on_a_device_are_refused() -> None:
    device = Inventory(kind=RankKind.CUDA, max_ranks=4, dtype=DType.BFLOAT16, device_bytes=10**5)
    with pytest.raises(PlanError, match="one KV block needs"):
        device.check(ParallelPlan(), MODEL)


def test_nobody_has_a_billion_devices() -> None:
    with pytest.raises(PlanError, match=r"needs 1000000000 devices, .* has 1024"):
        check_ranks(ParallelPlan(dp=10**9))


def test_it_reads_back_what_it_wrote() -> None:
    assert Inventory.from_json(json.loads(json.dumps(CPU.to_json()))) == CPU


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_ranks": 0}, "max_ranks=0: must be from 1 to 1024"),
        ({"max_ranks": 10**9}, "max_ranks=1000000000"),
        ({"max_ranks": "many"}, "max_ranks"),
        ({"kind": "abacus"}, "abacus"),
        ({"memory_bytes": -1}, "memory_bytes=-1"),
        ({"block_size": 0}, "block_size=0"),
    ],
)
def test_an_inventory_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        Inventory.from_json({**CPU.to_json(), **changes})

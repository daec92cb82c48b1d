"""The order of the house: a room imports from rooms written before it (``tests.rooms``)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import rooms

TORCH_FREE = (
    "engine",
    "engine.spec.config",
    "engine.spec.feasible",
    "engine.policy.document",
    "engine.scheduler.scheduler",
    "engine.scheduler.blocks",
    "engine.spec.measurement",
    "engine.executors.simulated",
    "policies",
    "tuner.simulation.simulate",
    "tuner.hardware",
    "tuner.described.node",
    "tuner.planner.planner",
    "tuner.described.document",
    "tuner.simulation.steering",
    "tuner.workload.parse",
)


@pytest.fixture(scope="module")
def house() -> rooms.House:
    return rooms.read_house()


def test_every_room_has_its_place_and_imports_only_from_rooms_before_it(house: rooms.House) -> None:
    assert rooms.faults(house) == []


def test_no_files_import_each_other_in_a_circle(house: rooms.House) -> None:
    assert rooms.circles(house.imports) == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_value_types_and_simulation_import_neither_torch_nor_sklearn_nor_pandas(
    module: str,
) -> None:
    heavy = ("torch", "sklearn", "pandas") if module.startswith("tuner") else ("torch",)
    code = (
        f"import {module}, sys; "
        f"found = [m for m in {heavy} if m in sys.modules]; sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=rooms.ROOT
    )
    assert done.returncode == 0, done.stderr

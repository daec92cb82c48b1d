"""The order of the house: a room imports from rooms written before it (``tests.rooms``)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import rooms

# Each is imported after those before it, in one process: first what is free of more.
HEAVY = ("torch", "sklearn", "pandas")
FREE_OF_ALL = (
    "tuner.simulation.simulate",
    "tuner.hardware",
    "tuner.described.node",
    "tuner.planner.planner",
    "tuner.described.document",
    "tuner.simulation.steering",
    "tuner.workload.parse",
)
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
)


@pytest.fixture(scope="module")
def house() -> rooms.House:
    return rooms.read_house()


def test_every_room_has_its_place_and_imports_only_from_rooms_before_it(house: rooms.House) -> None:
    assert rooms.faults(house) == []


def test_no_files_import_each_other_in_a_circle(house: rooms.House) -> None:
    assert rooms.circles(house.imports) == []


def test_value_types_and_simulation_import_neither_torch_nor_sklearn_nor_pandas() -> None:
    steps = [(name, HEAVY) for name in FREE_OF_ALL] + [(name, HEAVY[:1]) for name in TORCH_FREE]
    code = f"""
import importlib, sys
for name, heavy in {steps}:
    importlib.import_module(name)
    if found := [module for module in heavy if module in sys.modules]:
        sys.exit(f"{{name}} imports {{found}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=rooms.ROOT
    )
    assert done.returncode == 0, done.stderr

"""The order of the house: a package imports from its left, never from its right."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("engine", "policies", "tuner", "store", "api")
TORCH_FREE = (
    "engine",
    "engine.spec.plan",
    "engine.spec.config",
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


def _imported_packages(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_from_its_left(package: str) -> None:
    allowed = set(ORDER[: ORDER.index(package) + 1])
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in _imported_packages(path)
        if name in ORDER and name not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_value_types_and_simulation_import_neither_torch_nor_sklearn_nor_pandas(
    module: str,
) -> None:
    heavy = ("torch", "sklearn", "pandas") if module.startswith("tuner") else ("torch",)
    code = (
        f"import {module}, sys; "
        f"found = [m for m in {heavy} if m in sys.modules]; sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr

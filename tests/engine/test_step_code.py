"""A step on CUDA only queues work: its code has no call that waits for the device, and nothing
whose shape the data decide. ``tests/benchmarks/test_gpu_check.py`` shows it of the layers on
tensors without memory; this reads the code of the rest as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEP_CODE = (
    *("engine/kernels/gpu", "engine/kernels/kv_cache.py", "engine/kernels/linear.py"),
    *("engine/kernels/transfer.py", "engine/models/batch.py", "engine/models/llama.py"),
    *("engine/parallel/linear.py", "engine/parallel/mesh.py", "engine/parallel/one_shot.py"),
    *("engine/parallel/pipeline.py", "engine/parallel/plain.py", "engine/parallel/products.py"),
    *("engine/parallel/quantised.py", "engine/parallel/sequence.py"),
    *("engine/parallel/torch_groups.py", "engine/rank/answers.py", "engine/rank/graphs.py"),
    *("engine/rank/runner.py", "engine/rank/step_times.py", "engine/sampling/edits.py"),
    *("engine/sampling/exchange.py", "engine/sampling/logprobs.py", "engine/sampling/sampler.py"),
    *("engine/sampling/scorer.py", "engine/sampling/triton_border.py"),
    *("engine/sampling/triton_draw.py", "engine/sampling/triton_floor.py"),
    *("engine/sampling/triton_noise.py", "engine/sampling/triton_rows.py"),
    "engine/sampling/triton_sampler.py",
)
# They wait until the device has come to a value, or have as many results as the data say.
WAITING = {
    *("argwhere", "cpu", "is_nonzero", "item", "masked_select", "nonzero", "numpy", "synchronize"),
    *("tolist", "unique", "unique_consecutive"),
}
# Who may, and why it is no wait within a step.
START = "at the start"
ANSWER = "on the thread that hands out answers"
HOST = "arrays of the host"
ALLOWED = {
    "engine/kernels/gpu/tables.py::StepShape.of": HOST,
    "engine/kernels/gpu/tables.py::pack": HOST,
    "engine/models/batch.py::step_tables": HOST,
    "engine/parallel/mesh.py::TimeReading.seconds": ANSWER,
    "engine/parallel/one_shot.py::_all": START,
    "engine/parallel/one_shot.py::_try": START,
    "engine/parallel/quantised.py::_torch_scales_rows": START,
    "engine/parallel/sequence.py::row_exchange": HOST,
    "engine/rank/answers.py::PendingAnswer.wait": ANSWER,
    "engine/rank/answers.py::_raw": ANSWER,
    "engine/rank/graphs.py::StageGraphs._capture": START,
    "engine/sampling/edits.py::LogitEdits._ban": HOST,
    "engine/sampling/edits.py::LogitEdits.edited": HOST,
    "engine/sampling/edits.py::LogitEdits.of_rows": HOST,
    "engine/sampling/triton_rows.py::_put_values": HOST,
}


class _Waits(ast.NodeVisitor):
    """Where a file waits: the function's dotted name, and the line."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int]] = []
        self._names: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in WAITING and not _is_numpy(called):
            self._note(node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if _is_mask(node.slice):
            self._note(node)
        self.generic_visit(node)

    def _inside(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()

    def _note(self, node: ast.expr) -> None:
        self.found.append((".".join(self._names), node.lineno))


def _is_numpy(called: ast.Attribute) -> bool:
    return isinstance(called.value, ast.Name) and called.value.id == "np"


def _is_mask(index: ast.expr) -> bool:
    if isinstance(index, ast.Name):
        return index.id.startswith(("is_", "has_", "are_"))
    is_inverted = isinstance(index, ast.UnaryOp) and isinstance(index.op, ast.Invert)
    return is_inverted or isinstance(index, ast.Compare)


def waits_in(code: str) -> list[tuple[str, int]]:
    visitor = _Waits()
    visitor.visit(ast.parse(code))
    return visitor.found


def files() -> Iterator[Path]:
    for name in STEP_CODE:
        path = ROOT / name
        yield from sorted(path.glob("*.py")) if path.is_dir() else [path]


def test_no_code_of_a_step_waits_for_the_device() -> None:
    found = {
        f"{path.relative_to(ROOT)}::{name}": line
        for path in files()
        for name, line in waits_in(path.read_text())
    }
    assert {where: line for where, line in found.items() if where not in ALLOWED} == {}
    assert ALLOWED.keys() <= found.keys(), "no longer there"


@pytest.mark.parametrize(
    "line",
    [
        *("x.sum().item()", "y = x.cpu()", "x.tolist()", "torch.nonzero(x)", "x.numpy()"),
        *("x[x > 0]", "x[~mask] = 0", "x[is_mine]"),
    ],
)
def test_what_waits_is_seen(line: str) -> None:
    assert waits_in(f"class A:\n    def step(x):\n        {line}") == [("A.step", 3)]

"""Benchmarks are run rarely; that they can begin is tried each time."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

# Of peers, which run in environments of their own.
ELSEWHERE = ("benchmarks.peers.run_vllm", "benchmarks.peers.run_openvino")
MODULES = [found.name for found in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ELSEWHERE])
def test_every_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(name)

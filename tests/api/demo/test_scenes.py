"""The demo's workloads."""

from __future__ import annotations

import pytest

from api.demo.scenes import ENOUGH, live_scene, paced_scene
from tuner.workload.parse import parse_workload


@pytest.mark.parametrize("seed", range(30))
def test_a_scene_without_a_trace_has_requests_whatever_the_seed(seed: int) -> None:
    for scene in (live_scene(None, seed=seed), paced_scene(None, seed=seed)):
        for spec in (scene.workload, scene.rush):
            assert len(parse_workload(spec, seed=seed)) >= ENOUGH

"""The demo's workloads."""

from __future__ import annotations

from collections import Counter

import pytest

from api.demo.scenes import ENOUGH, live_scene, paced_scene
from api.demo.story import shares
from tuner.workload.parse import parse_workload


@pytest.mark.parametrize("seed", range(30))
def test_a_scene_without_a_trace_has_requests_whatever_the_seed(seed: int) -> None:
    for scene in (live_scene(None, seed=seed), paced_scene(None, seed=seed)):
        for spec in (scene.workload, scene.rush):
            assert len(parse_workload(spec, seed=seed)) >= ENOUGH


def test_the_share_of_each_mode_is_told_in_percent_most_first() -> None:
    assert shares(Counter({"base": 30, "4x2": 150, "shift": 0, "2x4": 120})) == (
        "4x2 50 %, 2x4 40 %, base 10 %"
    )
    assert shares(Counter()) == ""

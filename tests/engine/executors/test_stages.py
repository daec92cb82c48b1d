"""A stage holds one step at a time, and the first one tells how long it has waited."""

from __future__ import annotations

import pytest

from engine.executors.stages import Stages


def test_a_step_waits_where_the_one_before_is_still_inside() -> None:
    stages = Stages([0.0, 0.0])
    assert stages.send(1.0, (2.0, 5.0)) == 8.0
    assert stages.send(1.0, (2.0, 5.0)) == 13.0  # ready for the second stage at 5, let in at 8
    assert stages.free_s == [5.0, 13.0]


def test_a_step_that_comes_late_finds_the_stages_free() -> None:
    stages = Stages([0.0, 0.0])
    stages.send(0.0, (1.0, 1.0))
    assert stages.send(10.0, (1.0, 1.0)) == 12.0


def test_the_first_stage_tells_how_long_it_waited_but_not_before_the_first_step() -> None:
    stages = Stages([0.0])
    assert stages.idle_s(5.0) == 0.0
    stages.send(5.0, (1.0,))
    assert stages.idle_s(5.5) == 0.0
    assert stages.idle_s(8.0) == pytest.approx(2.0)


def test_a_copy_goes_its_own_way() -> None:
    stages = Stages([0.0])
    stages.send(0.0, (1.0,))
    copy = stages.copy()
    copy.send(0.0, (1.0,))
    assert (stages.free_s, copy.free_s) == ([1.0], [2.0])
    assert copy.idle_s(3.0) == 1.0

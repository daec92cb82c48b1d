from __future__ import annotations

import os

import pytest

from engine.spec.processor import num_cores, processor_name


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are not chosen here")
def test_cores_are_those_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    assert num_cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_processor_has_a_name() -> None:
    assert processor_name().strip()

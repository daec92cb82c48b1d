"""How the groups' memory is laid out, and its flag of failure."""

from __future__ import annotations

from engine.parallel.shm_layout import HEADER_BYTES, GroupSpec, Segment, lay_out


def test_regions_follow_each_other_without_overlap() -> None:
    groups = [
        GroupSpec(name="tp", members=(0, 1)),
        GroupSpec(name="shift", members=(0, 2, 1, 3)),
    ]
    first, second = lay_out(groups)
    assert first.offset == HEADER_BYTES
    assert first.counters < first.slots < first.rings < first.end == second.offset
    assert {x % 4096 for x in (first.slots, second.offset, second.slots)} == {0}


def test_the_first_abort_is_the_one_that_counts() -> None:
    segment = Segment.create()
    segment.abort(3)
    segment.abort(1)
    assert int.from_bytes(segment.memory[:8], "little") == 4
    segment.close()
    segment.close()

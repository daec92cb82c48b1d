"""Which facts tell one machine's step times from another's."""

from __future__ import annotations

from dataclasses import replace

from tuner.spec.machine import this_machine


def test_a_profile_of_two_threads_a_rank_is_not_one_of_one() -> None:
    one, two = this_machine(), this_machine(threads_per_rank=2)
    assert one != two
    assert one.id != two.id
    assert "2 threads per rank" in str(two)
    assert replace(two, threads_per_rank=1).id == one.id

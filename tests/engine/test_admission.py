"""The door's bucket: never more than the rate and the burst, and the urgent ones first."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.admission import MOST_SEEN, SEEN_S, AdmissionBucket
from engine.spec.admission import Admission
from engine.spec.errors import OverloadError, PolicyError

HIGH, LOW = 0, 5
# (seconds since the one before, priority) of each arrival.
arrivals = st.lists(st.tuples(st.floats(0, 2), st.integers(0, 3)), max_size=120)
admissions = st.builds(
    Admission,
    rate_rps=st.floats(0.1, 50),
    burst_requests=st.none() | st.integers(2, 20),
)


def let_in(bucket: AdmissionBucket, priority: int, now_s: float, size: int = 1) -> bool:
    try:
        bucket.check(priority, size, now_s)
    except OverloadError:
        return False
    bucket.take(size)
    return True


@given(admissions, arrivals)
def test_no_more_than_rate_and_burst_come_in_in_any_stretch_of_time(
    admission: Admission, gaps: list[tuple[float, int]]
) -> None:
    bucket, now_s, came_in = AdmissionBucket(admission, 0.0), 0.0, []
    for gap_s, priority in gaps:
        now_s += gap_s
        if let_in(bucket, priority, now_s):
            came_in.append(now_s)
    for first, begin_s in enumerate(came_in):
        for last, end_s in enumerate(came_in[first:], first):
            most = admission.rate_rps * (end_s - begin_s) + admission.burst
            assert last - first + 1 <= most + 1e-6


@given(admissions, arrivals)
def test_the_most_urgent_gets_no_less_than_alone_with_the_rate_and_half_the_burst(
    admission: Admission, gaps: list[tuple[float, int]]
) -> None:
    shared, now_s = AdmissionBucket(admission, 0.0), 0.0
    level, half, num_alone, num_shared = admission.burst / 2, admission.burst / 2, 0, 0
    let_in(shared, HIGH, now_s)  # it is known that there is one
    level -= 1
    for gap_s, priority in gaps:
        now_s += gap_s
        level = min(half, level + gap_s * admission.rate_rps)
        came_in = let_in(shared, priority, now_s)
        if priority == HIGH:
            num_shared += came_in
            if level >= 1 + 1e-9:
                num_alone, level = num_alone + 1, level - 1
        assert num_shared >= num_alone


@given(admissions, st.integers(1, 40), st.sampled_from((HIGH, LOW)))
@example(Admission(rate_rps=0.125, burst_requests=18), 8, LOW)  # told 64 s: longer than SEEN_S
def test_who_waits_as_long_as_it_was_told_is_let_in(
    admission: Admission, size: int, priority: int
) -> None:
    bucket, now_s = AdmissionBucket(admission, 0.0), 0.0
    let_in(bucket, HIGH, now_s)
    while let_in(bucket, priority, now_s, size):
        pass
    with pytest.raises(OverloadError) as refused:
        bucket.check(priority, size, now_s)
    early_s = 0.99 * refused.value.retry_s
    # Later nothing is left to the more urgent ones, who have not come again.
    if early_s <= SEEN_S or priority == HIGH:
        assert not let_in(bucket, priority, now_s + early_s, size)
    assert let_in(bucket, priority, now_s + refused.value.retry_s + 1e-6, size)


def test_the_lower_priority_gets_what_the_higher_one_leaves() -> None:
    """Twice as many come as are admitted, half of them urgent."""
    bucket = AdmissionBucket(Admission(rate_rps=10.0, burst_requests=10), 0.0)
    num = {HIGH: 0, LOW: 0}
    for nth in range(2000):
        priority = HIGH if nth % 2 else LOW
        num[priority] += let_in(bucket, priority, nth / 20)
    assert num[HIGH] == 1000
    assert num[LOW] <= 15
    for nth in range(2000):  # none of them is urgent any more
        num[LOW] += let_in(bucket, LOW, 200.0 + nth / 20)
    assert num[LOW] >= 1000


def test_one_priority_alone_is_a_plain_bucket_whatever_its_number() -> None:
    bucket = AdmissionBucket(Admission(rate_rps=1.0, burst_requests=8), 0.0)
    assert [let_in(bucket, LOW, 0.0) for _ in range(9)] == [True] * 8 + [False]


def test_a_call_of_several_comes_in_as_a_whole_or_not_at_all() -> None:
    bucket = AdmissionBucket(Admission(rate_rps=1.0, burst_requests=4), 0.0)
    assert let_in(bucket, HIGH, 0.0, size=3)
    assert not let_in(bucket, HIGH, 0.0, size=2)
    assert let_in(bucket, HIGH, 0.0)
    assert not let_in(bucket, HIGH, 3.9, size=100)
    assert let_in(bucket, HIGH, 4.0, size=100)
    assert not let_in(bucket, HIGH, 100.0)
    assert let_in(bucket, HIGH, 101.0)


def test_another_rate_holds_from_then_on_and_gives_no_fresh_burst() -> None:
    bucket = AdmissionBucket(Admission(rate_rps=1.0, burst_requests=4), 0.0)
    for _ in range(4):
        assert let_in(bucket, HIGH, 0.0)
    bucket.change(Admission(rate_rps=2.0, burst_requests=40), 0.0)
    assert not let_in(bucket, HIGH, 0.4)
    assert let_in(bucket, HIGH, 0.5)


def test_priorities_that_nobody_uses_any_more_are_forgotten() -> None:
    bucket = AdmissionBucket(Admission(rate_rps=1000.0), 0.0)
    for priority in range(10 * MOST_SEEN):
        let_in(bucket, priority, 0.0)
    assert len(bucket._seen_s) == MOST_SEEN
    let_in(bucket, LOW, 1000.0)
    assert list(bucket._seen_s) == [LOW]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rate_rps": 0.0}, "/admission/rate_rps: 0.0 must be above 0"),
        ({"rate_rps": float("nan")}, "/admission/rate_rps: nan must be above 0"),
        ({"rate_rps": 1.0, "burst_requests": 1}, "/admission/burst_requests: 1 must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, float], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        Admission(**fields)

"""The heap of names: sorted order, early leavers, and no memory kept for them."""

from __future__ import annotations

import weakref

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.heap import MIN_REBUILD, NamedHeap


class Name(str):
    """A string that can be watched."""


@given(ranks=st.lists(st.integers(0, 5), max_size=30), data=st.data())
def test_names_leave_by_rank_then_by_insertion_without_those_that_left_early(
    ranks: list[int], data: st.DataObject
) -> None:
    heap: NamedHeap[float] = NamedHeap((str(i), rank) for i, rank in enumerate(ranks))
    names = sorted((str(i) for i in range(len(ranks))), key=lambda name: ranks[int(name)])
    gone = data.draw(st.sets(st.sampled_from(names))) if names else set()
    for name in sorted(gone):
        heap.discard(name)
        heap.discard(name)
    left = [name for name in names if name not in gone]
    assert list(heap) == left
    assert [heap.pop() for _ in range(len(heap))] == left
    assert heap.first is None


@given(ranks=st.permutations(range(200)), num_left=st.integers(1, 30))
def test_the_order_stands_when_most_names_left_early(ranks: list[int], num_left: int) -> None:
    heap: NamedHeap[float] = NamedHeap()
    for rank in ranks:
        heap.push(str(rank), rank)
    for rank in ranks:
        if 0 < rank <= 200 - num_left:
            heap.discard(str(rank))
    assert [heap.pop() for _ in range(num_left)] == [
        "0",
        *map(str, range(201 - num_left, 200)),
    ]


@given(count=st.integers(0, 400))
def test_names_that_left_behind_one_that_stays_are_let_go(count: int) -> None:
    heap: NamedHeap[float] = NamedHeap([("stays", 0)])
    watched = []
    for i in range(count):
        name = Name(i)
        watched.append(weakref.ref(name))
        heap.push(name, 1.0)
        heap.discard(name)
        del name
    assert sum(ref() is not None for ref in watched) <= MIN_REBUILD + 2
    assert heap.first == ("stays", 0)

"""Which replicas start and which leave on the way from one plan to another; pure, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.spec.inventory import Inventory
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan


class Way(StrEnum):
    """How an engine goes from one plan to another.

    ``ADD`` and ``REMOVE``: replicas of the same kind join or leave, the others are not touched.
    ``BLUE_GREEN``: all new replicas start on free devices, then the old ones leave. ``ROLLING``:
    old ones leave a few at a time to make place. ``STOP_AND_CARRY``: all stop, requests wait.
    """

    ADD = "add"
    REMOVE = "remove"
    BLUE_GREEN = "blue_green"
    ROLLING = "rolling"
    STOP_AND_CARRY = "stop_and_carry"


@dataclass(frozen=True, kw_only=True, order=True)
class Slot:
    """The devices of one replica: ``size`` of them, from the engine's ``first`` (0, 1, ...) on.

    It begins at a multiple of its size, so that replicas of one plan never leave gaps that none
    of them fits.
    """

    first: int
    size: int

    @property
    def ranks(self) -> range:
        """The devices by number, as the engine counts them."""
        return range(self.first, self.first + self.size)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Replicas ``retire``; once they are gone, others ``start`` side by side, and then serve."""

    retire: tuple[Slot, ...] = ()
    start: tuple[Slot, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Transition:
    """The steps from one plan to another. ``peak_devices`` are the most devices that are in use at
    once, ``least_devices`` the fewest that serve (0: requests wait).
    """

    way: Way
    steps: tuple[Step, ...]
    peak_devices: int
    least_devices: int

    @property
    def num_starts(self) -> int:
        """Times that replicas start, one after the other."""
        return sum(1 for step in self.steps if step.start)

    @property
    def num_retreats(self) -> int:
        """Times that replicas leave, one after the other."""
        return sum(1 for step in self.steps if step.retire)


def first_slots(plan: ParallelPlan) -> tuple[Slot, ...]:
    """Where the replicas of a plan are when nothing else runs."""
    size = plan.replica_size
    return tuple(Slot(first=index * size, size=size) for index in range(plan.dp))


def plan_transition(
    old: ParallelPlan,
    serving: Sequence[Slot],
    new: ParallelPlan,
    *,
    inventory: Inventory,
    model: ModelConfig,
    most_ranks: int | None = None,
) -> Transition:
    """The least disturbing way to ``new`` from the replicas of ``old`` in the slots ``serving``.

    Where some must leave and others may stay, the last of ``serving`` leave first. No moment of
    the way uses more than ``inventory`` has, nor more than ``most_ranks`` devices, except that
    stopping all may need as many as the larger of both plans.
    """
    limit = inventory.max_ranks if most_ranks is None else min(most_ranks, inventory.max_ranks)
    inventory = replace(inventory, max_ranks=max(1, limit))
    places = _Places(old=old, new=new, inventory=inventory, model=model)
    is_same = old.replica == new.replica
    steps = _resized(serving, places) if is_same else _replaced(serving, places)
    if steps is None:
        steps = (Step(retire=tuple(serving), start=first_slots(new)),)
        way, least = Way.STOP_AND_CARRY, 0
    else:
        way = _way_of(steps, is_same=is_same)
        least = _least_devices(serving, steps)
    return Transition(
        way=way, steps=steps, peak_devices=_peak_devices(serving, steps), least_devices=least
    )


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where replicas of ``new`` may start beside some of ``old``."""

    old: ParallelPlan
    new: ParallelPlan
    inventory: Inventory
    model: ModelConfig

    def has_room(self, num_old: int, num_new: int) -> bool:
        parts = ((self.old.replica, num_old), (self.new.replica, num_new))
        return self.inventory.has_room(parts, self.model)

    def find(
        self, left: Sequence[Slot], fresh: Sequence[Slot]
    ) -> tuple[Slot, tuple[Slot, ...]] | None:
        """A slot for one more, and those of ``left`` that must leave for it: as few as can be."""
        best: tuple[Slot, tuple[Slot, ...]] | None = None
        for slot, in_the_way in self._windows(left, fresh):
            if best is not None and len(in_the_way) >= len(best[1]):
                continue
            victims = self._victims(left, fresh, in_the_way)
            if victims is not None and (best is None or len(victims) < len(best[1])):
                best = (slot, victims)
            if best is not None and not best[1]:
                break
        return best

    def _windows(
        self, left: Sequence[Slot], fresh: Sequence[Slot]
    ) -> Iterator[tuple[Slot, frozenset[Slot]]]:
        """Slots that no new replica has, with the old ones that stand there."""
        taken = {rank for slot in fresh for rank in slot.ranks}
        owner = {rank: slot for slot in left for rank in slot.ranks}
        size = self.new.replica_size
        for first in range(0, self.inventory.max_ranks - size + 1, size):
            slot = Slot(first=first, size=size)
            if taken.isdisjoint(slot.ranks):
                yield slot, frozenset(owner[rank] for rank in slot.ranks if rank in owner)

    def _victims(
        self, left: Sequence[Slot], fresh: Sequence[Slot], in_the_way: frozenset[Slot]
    ) -> tuple[Slot, ...] | None:
        """The replicas that must leave: those in the way, and more if devices or memory do not
        suffice."""
        victims = [slot for slot in left if slot in in_the_way]
        others = [slot for slot in left if slot not in in_the_way]
        while not self.has_room(len(others), len(fresh) + 1):
            if not others:
                return None
            victims.append(others.pop())
        return tuple(victims)


def _resized(serving: Sequence[Slot], places: _Places) -> tuple[Step, ...] | None:
    """More or fewer of the same replicas; None where one more finds no place."""
    kept, surplus = serving[: places.new.dp], serving[places.new.dp :]
    if surplus:
        return (Step(retire=tuple(surplus)),)
    fresh: list[Slot] = []
    while len(kept) + len(fresh) < places.new.dp:
        found = places.find(kept, fresh)
        if found is None or found[1]:
            return None
        fresh.append(found[0])
    return (Step(start=tuple(fresh)),)


def _replaced(serving: Sequence[Slot], places: _Places) -> tuple[Step, ...] | None:
    """All of ``serving`` replaced while at least one replica serves; None where that cannot be."""
    left, fresh, steps = list(serving), list[Slot](), list[Step]()
    while len(fresh) < places.new.dp:
        found = places.find(left, fresh)
        if found is None:
            return None
        slot, victims = found
        if victims and len(victims) == len(left) + len(fresh):
            return None
        left = [old for old in left if old not in victims]
        if victims or not steps:
            steps.append(Step(retire=victims, start=(slot,)))
        else:
            steps[-1] = replace(steps[-1], start=(*steps[-1].start, slot))
        fresh.append(slot)
    if left:
        steps.append(Step(retire=tuple(left)))
    return tuple(steps)


def _way_of(steps: Sequence[Step], *, is_same: bool) -> Way:
    if is_same:
        return Way.ADD if any(step.start for step in steps) else Way.REMOVE
    makes_place = any(step.retire and step.start for step in steps)
    return Way.ROLLING if makes_place else Way.BLUE_GREEN


def _peak_devices(serving: Sequence[Slot], steps: Sequence[Step]) -> int:
    now = most = sum(slot.size for slot in serving)
    for step in steps:
        now += sum(slot.size for slot in step.start) - sum(slot.size for slot in step.retire)
        most = max(most, now)
    return most


def _least_devices(serving: Sequence[Slot], steps: Sequence[Step]) -> int:
    now = least = sum(slot.size for slot in serving)
    for step in steps:
        now -= sum(slot.size for slot in step.retire)
        least = min(least, now)
        now += sum(slot.size for slot in step.start)
    return least

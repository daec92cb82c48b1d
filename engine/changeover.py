"""Carries out a transition from plan to plan while requests come in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from engine.door import Door
from engine.fleet import Fleet
from engine.lobby import end_all
from engine.replica.handover import Handover
from engine.replica.replica import Replica
from engine.spec.errors import RankError
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason
from engine.spec.settings import Settings
from engine.transition.costs import Took
from engine.transition.planning import Slot, Transition, Way

# How often a leaving replica is asked whether it has finished its requests.
DRAIN_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Both ends of a transition: ``old`` settings as replicas obey them now, ``new`` ones as they
    will, and the longest request in tokens under each.
    """

    old: Settings
    new: Settings
    old_max_len: int
    new_max_len: int


class HalfwayError(RankError):
    """A transition failed and could only partly be taken back: ``plan`` is what serves now."""

    def __init__(self, message: str, plan: ParallelPlan, *, is_new: bool) -> None:
        super().__init__(message)
        self.plan = plan
        self.is_new = is_new


class Changeover:
    """Starts and retires replicas step by step. One transition at a time.

    A failure before the last new replica serves takes everything back: the replicas of the old plan
    serve on, and those that had left start again. Once ``is_closing`` is set, nobody waits for
    requests to finish.
    """

    def __init__(self, door: Door, fleet: Fleet, *, is_closing: threading.Event) -> None:
        self._door = door
        self._fleet = fleet
        self._is_closing = is_closing

    def run(
        self,
        transition: Transition,
        ends: Ends,
        *,
        drain_s: float,
        put_in_force: Callable[[Collection[Replica]], None],
    ) -> Took:
        """Go from plan to plan. ``put_in_force`` is called with the replicas that stay, once the
        new settings cannot fail any more.

        Raises:
            RequestError: a request in progress would not fit the new plan; nothing has changed.
            RankError and others: ranks did not start; the old plan serves.
            HalfwayError: nor did those of the way back.
        """
        started_s = time.monotonic()
        if transition.way is Way.STOP_AND_CARRY:
            carried = self._stop_and_carry(transition, ends, put_in_force)
            tally = _Tally(started_s=started_s, carried=carried, served_s=time.monotonic())
        else:
            self._door.limit(ends.new_max_len)
            tally = _Tally(started_s=started_s)
            try:
                self._step_by_step(transition, ends, drain_s, put_in_force, tally)
            except BaseException:
                self._door.unlimit(ends.old_max_len)
                raise
            self._door.unlimit(ends.new_max_len)
        return tally.took(transition)

    # -- while others serve ----------------------------------------------------------------------

    def _step_by_step(
        self,
        transition: Transition,
        ends: Ends,
        drain_s: float,
        put_in_force: Callable[[Collection[Replica]], None],
        tally: _Tally,
    ) -> None:
        old = self._door.list_replicas()
        fresh: list[Replica] = []
        steps = list(transition.steps)
        gone: list[Slot] = []
        try:
            while steps and steps[0].start:
                step = steps.pop(0)
                self._retire(step.retire, drain_s, tally)
                gone += step.retire
                fresh += self._start(ends.new, step.start)
        except BaseException as error:
            self._go_back(error, ends, fresh, gone)
            raise
        tally.served_s = time.monotonic()
        is_same = ends.old.plan.replica == ends.new.plan.replica
        put_in_force([r for r in old if is_same and r in self._door.list_replicas()])
        for step in steps:
            self._retire(step.retire, drain_s, tally)

    def _start(self, settings: Settings, slots: Sequence[Slot]) -> list[Replica]:
        """Start replicas in ``slots`` and let requests in to them."""
        others, _ = self._door.look_in()
        like_it = [r.mode_table for r in others if r.plan == settings.plan.replica]
        replicas = self._fleet.launch(
            settings,
            slots,
            first_step_id=next_step_id(others),
            mode_table=next(iter(like_it), None),
            is_later=True,
        )
        self._door.join(replicas)
        return replicas

    def _retire(self, slots: Collection[Slot], drain_s: float, tally: _Tally) -> None:
        """Let the replicas in ``slots`` finish what they have, for ``drain_s``; what is left then
        goes on elsewhere.
        """
        began_s = time.monotonic()
        serving = self._door.list_replicas()
        leaving = [r for r in serving if self._fleet.slot_of(r) in slots]
        self._door.dismiss(leaving)
        while leaving:
            is_over = time.monotonic() - began_s >= drain_s or self._is_closing.is_set()
            for replica in [r for r in leaving if is_over or r.is_empty]:
                tally.carried += self._let_go(replica)
                leaving.remove(replica)
            if leaving:
                self._is_closing.wait(DRAIN_POLL_S)
        tally.drain_s += time.monotonic() - began_s

    def _let_go(self, replica: Replica) -> int:
        """Stop a dismissed replica; returns how many of its requests go on elsewhere."""
        self._door.see_off(replica)
        left = replica.stop()
        carried = len(left.streams)
        # Before its processes end, which may take seconds.
        self._door.hand_over(left)
        self._fleet.retire(replica)
        return carried

    # -- the way back ----------------------------------------------------------------------------

    def _go_back(
        self, error: BaseException, ends: Ends, fresh: list[Replica], gone: list[Slot]
    ) -> None:
        """Restart the old plan's replicas that are ``gone``, and dismiss the ``fresh`` ones.

        Raises:
            HalfwayError: one of them did not start; the plan of which replicas are left serves.
        """
        left = list(fresh)
        try:
            # Those whose devices are free come first, so that one of the old plan serves in any
            # case.
            while gone:
                taken = set(self._fleet.ranks)
                slot = next((s for s in gone if taken.isdisjoint(s.ranks)), None)
                if slot is None:
                    slot = gone[0]
                    in_the_way = [r for r in left if _overlap(self._fleet.slot_of(r), slot)]
                    self._dismiss_at_once(in_the_way)
                    left = [r for r in left if r not in in_the_way]
                self._start(ends.old, [slot])
                gone.remove(slot)
        except BaseException as again:
            self._settle(error, again, ends, left)
        self._dismiss_at_once(left)

    def _settle(
        self, error: BaseException, again: BaseException, ends: Ends, fresh: list[Replica]
    ) -> None:
        """Keep the old plan's replicas where some serve, else the new plan's. Always raises."""
        old = [r for r in self._door.list_replicas() if r not in fresh]
        kept, settings = (old, ends.old) if old else (fresh, ends.new)
        if old:
            self._dismiss_at_once(fresh)
        plan = replace(settings.plan, dp=max(1, len(kept)))
        raise HalfwayError(
            f"a reshape failed ({error}), and so did a part of the way back ({again}); plan "
            f"{plan} serves",
            plan,
            is_new=not old,
        ) from again

    def _dismiss_at_once(self, replicas: list[Replica]) -> None:
        slots = [self._fleet.slot_of(r) for r in replicas]
        self._retire(slots, 0.0, _Tally(started_s=time.monotonic()))

    # -- all at once -----------------------------------------------------------------------------

    def _stop_and_carry(
        self,
        transition: Transition,
        ends: Ends,
        put_in_force: Callable[[Collection[Replica]], None],
    ) -> int:
        """Stop all replicas, start the new plan's, and carry every sequence over."""
        old_slots = [self._fleet.slot_of(r) for r in self._door.list_replicas()]
        old = self._door.shut(max_len=ends.new_max_len)
        left = stop_all(old)
        carried = len(left.streams)
        self._door.carry(left)
        self._fleet.drop(old)
        step_id = next_step_id(old)
        (step,) = transition.steps
        try:
            fresh = self._fleet.launch(ends.new, step.start, first_step_id=step_id, is_later=True)
        except BaseException as error:
            self._fall_back(ends, old_slots, step_id, error)
            raise
        put_in_force([])
        self._door.open(fresh, max_len=ends.new_max_len)
        self._fleet.close_idle()
        return carried

    def _fall_back(
        self, ends: Ends, slots: Sequence[Slot], step_id: int, error: BaseException
    ) -> None:
        """Run the old plan again; if that fails too, end every request and say so. Where the engine
        closes, what waits is left to it."""
        if self._is_closing.is_set():
            return
        try:
            replicas = self._fleet.launch(ends.old, slots, first_step_id=step_id, is_later=True)
            self._door.open(replicas, max_len=ends.old_max_len)
        except BaseException as again:
            why = f"a reshape failed ({error}), and so did the way back ({again})"
            replicas, waiting = self._door.close(why)
            streams = stop_all(replicas).streams
            end_all([*streams.values(), *waiting], FinishReason.ERROR, why)


@dataclass(kw_only=True)
class _Tally:
    """What a transition has taken so far."""

    started_s: float
    served_s: float | None = None
    drain_s: float = 0.0
    carried: int = 0
    ended_s: float = field(default=0.0, init=False)

    def took(self, transition: Transition) -> Took:
        now_s = time.monotonic()
        served_s = now_s if self.served_s is None else self.served_s
        return Took(
            way=transition.way,
            peak_devices=transition.peak_devices,
            least_devices=transition.least_devices,
            seconds=now_s - self.started_s,
            start_s=served_s - self.started_s,
            drain_s=self.drain_s,
            carried=self.carried,
        )


def stop_all(replicas: Sequence[Replica]) -> Handover:
    """Stop replicas; what they leave."""
    return Handover.join([replica.stop() for replica in replicas])


def next_step_id(replicas: Sequence[Replica]) -> int:
    """The first number that no step of ``replicas`` has."""
    return max((replica.scheduler.next_step_id for replica in replicas), default=0)


def _overlap(one: Slot, other: Slot) -> bool:
    return not set(one.ranks).isdisjoint(other.ranks)

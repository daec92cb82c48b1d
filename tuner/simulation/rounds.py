"""Quiet rounds of a pipeline in virtual time: when each of their steps starts and ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from engine.executors.protocol import StepTimer
from engine.scheduler.skipping import QuietRounds, with_more_context
from engine.spec.steps import StepShape
from tuner.simulation.pipe import Pipe

StageSeconds = tuple[float, ...]


@dataclass(kw_only=True)
class GroupSteps:
    """Steps of one group of rows: its first shape, starts and ends of what it launched, seconds
    of all stages, and when its tokens came (one step earlier for groups that were in flight)."""

    shape: StepShape
    host_s: float
    first: StageSeconds
    growth: StageSeconds
    starts_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, shape: StepShape, timer: StepTimer, count: int) -> GroupSteps:
        """Timed at the first and last of ``count`` steps, straight between."""
        first = timer.stage_seconds(shape)
        growth: StageSeconds = (0.0,) * len(first)
        if count > 1:
            last = timer.stage_seconds(with_more_context(shape, (count - 1) * shape.num_seqs))
            growth = tuple((b - a) / (count - 1) for a, b in zip(first, last, strict=True))
        return cls(shape=shape, host_s=timer.host_seconds(shape), first=first, growth=growth)

    def stages(self, nth: int) -> StageSeconds:
        """Seconds of each stage at the group's ``nth`` step."""
        if not nth:
            return self.first
        return tuple(a + nth * b for a, b in zip(self.first, self.growth, strict=True))


def run_rounds(
    rounds: QuietRounds,
    timer: StepTimer,
    pipe: Pipe,
    finish_s: deque[float],
    *,
    now_s: float,
    most: int,
    horizon_s: float,
) -> list[GroupSteps]:
    """Run up to ``most`` of ``rounds``, as long as a round's last launch comes before
    ``horizon_s``.

    ``finish_s`` are the ends of the steps in flight, oldest first; they and ``pipe`` move on with
    the rounds. Returns the groups, each with as many steps as rounds passed.
    """
    count = min(rounds.count, most)
    groups = [GroupSteps.of(shape, timer, count) for shape in rounds.shapes]
    following = [*groups[1:], groups[0]]
    stages = pipe.stages
    for nth in range(count):
        # The last launch of a round comes when the newest step in flight has ended.
        if finish_s[-1] >= horizon_s:
            break
        for group, next_group in zip(groups, following, strict=True):
            stage_s = group.stages(nth)
            started_s = pipe.prepare(now_s, group.host_s)
            end_s = stages.send(started_s, stage_s)
            finish_s.append(end_s)
            group.starts_s.append(started_s)
            group.ends_s.append(end_s)
            group.busy_s.append(sum(stage_s))
            # The oldest step ends; its rows are those of the next group.
            now_s = finish_s.popleft()
            next_group.token_s.append(now_s)
    return groups

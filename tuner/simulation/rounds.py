"""Quiet rounds of a pipeline in virtual time: when each of their steps starts and ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.executors.protocol import StepTimer
from engine.scheduler.skipping import QuietRounds, with_more_context
from engine.spec.steps import StepShape
from tuner.simulation.pipe import Pipe

StageSeconds = tuple[float, ...]


@dataclass(kw_only=True)
class FullPipe:
    """A pipe of steps at ``now_s``; ``finish_s`` are their ends, oldest first."""

    now_s: float
    pipe: Pipe
    finish_s: deque[float]

    def copy(self) -> FullPipe:
        return FullPipe(now_s=self.now_s, pipe=self.pipe.copy(), finish_s=self.finish_s.copy())

    def launch(self, host_s: float, stage_s: StageSeconds) -> tuple[float, float]:
        """Put a step in flight now: when it starts on the ranks, and when it ends."""
        started_s = self.pipe.prepare(self.now_s, host_s)
        end_s = self.pipe.send(started_s, stage_s)
        self.finish_s.append(end_s)
        return started_s, end_s


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

    def drop_last(self) -> None:
        """Forget one round."""
        for column in (self.starts_s, self.ends_s, self.busy_s, self.token_s):
            del column[-1]


def run_rounds(
    rounds: QuietRounds, timer: StepTimer, state: FullPipe, *, most: int, horizon_s: float
) -> tuple[list[GroupSteps], FullPipe]:
    """Up to ``most`` of ``rounds``: all that the last launch of which comes before ``horizon_s``.

    The groups, each with as many steps as rounds passed, and the state afterwards.
    """
    count = min(rounds.count, most)
    groups = [GroupSteps.of(shape, timer, count) for shape in rounds.shapes]
    for nth in range(count):
        if state.now_s >= horizon_s:
            break
        before = state.copy()
        if not _one_round(groups, nth, state, horizon_s):
            for group in groups:
                group.drop_last()
            return groups, before
    return groups, state


def _one_round(groups: Sequence[GroupSteps], nth: int, state: FullPipe, horizon_s: float) -> bool:
    """Launch a step of each group, committing the oldest after each; False where someone arrives
    before the last launch."""
    is_undisturbed = True
    last = len(groups) - 1
    for place, group in enumerate(groups):
        stages = group.stages(nth)
        started_s, end_s = state.launch(group.host_s, stages)
        group.starts_s.append(started_s)
        group.ends_s.append(end_s)
        group.busy_s.append(sum(stages))
        state.now_s = state.finish_s.popleft()
        groups[place + 1 if place < last else 0].token_s.append(state.now_s)
        is_undisturbed &= place == last or state.now_s < horizon_s
    return is_undisturbed

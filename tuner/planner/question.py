"""What is asked of every plan alike, and its runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.spec.settings import Settings
from policies.objective import Objective
from policies.sla import Sla
from tuner.described.node import Node
from tuner.planner.seen import Facts, RunKey, Seen, SeenRun
from tuner.simulation.simulate import OnProgress, no_progress
from tuner.workload.workload import Workload

AS_TOLD = RunKey()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A load on a node under an SLA. It goes to worker processes as it is, except for ``seen``, the
    runs of this load so far, which stay where they are. ``only_decides``: nobody asks how likely
    something is that is certainly not dependable.
    """

    node: Node
    workload: Workload
    sla: Sla
    seed: int
    objective: Objective = Objective.DEVICES
    only_decides: bool = False
    seen: Seen = field(default_factory=Seen, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": Seen()}

    def facts(
        self,
        settings: Settings,
        key: RunKey = AS_TOLD,
        load: Workload | None = None,
        on_progress: OnProgress = no_progress,
    ) -> Facts:
        """What a whole run of ``settings`` says: one of ``load``, which is what ``key`` names of
        the workload (None: all of it). Simulated only where no run is known to have gone that way.

        Raises: what ``on_progress`` does, as a run under it would.
        """
        load = load or self.workload
        known = self.seen.find(settings, key, self.node, load)
        if known is not None:
            known.replay(on_progress)
            if known.facts is not None and known.facts.find_flat(self.sla) is not None:
                return known.facts
        return self._simulate(settings, key, load, on_progress)

    def flat(
        self,
        settings: Settings,
        key: RunKey = AS_TOLD,
        load: Workload | None = None,
        on_progress: OnProgress = no_progress,
    ) -> dict[str, float]:
        """The metrics of :meth:`facts` under the SLA."""
        found = self.facts(settings, key, load, on_progress).find_flat(self.sla)
        assert found is not None, "a run was just made for this SLA"
        return found

    def knows(self, settings: Settings, key: RunKey, load: Workload) -> bool:
        """Whether :meth:`facts` needs no simulation, where nothing watches it."""
        known = self.seen.find(settings, key, self.node, load)
        return (
            known is not None
            and known.facts is not None
            and known.facts.find_flat(self.sla) is not None
        )

    def run(self, settings: Settings, key: RunKey, load: Workload) -> SeenRun:
        """The run behind :meth:`facts`, to be kept by another process."""
        self.facts(settings, key, load)
        found = self.seen.find(settings, key, self.node, load)
        assert found is not None, "it was just made"
        return found

    def _simulate(
        self, settings: Settings, key: RunKey, load: Workload, on_progress: OnProgress
    ) -> Facts:
        calls: list[tuple[float, int, int]] = []

        def tell(now_s: float, num_ended: int, num_requests: int) -> None:
            calls.append((now_s, num_ended, num_requests))
            on_progress(now_s, num_ended, num_requests)

        try:
            result = self.node.simulate(
                settings, load, seed=self.seed, step_scale=key.scale, on_progress=tell
            )
        except Exception:
            self.seen.learn(settings, key, SeenRun(calls=tuple(calls), facts=None))
            raise
        facts = Facts.of(result, self.sla)
        self.seen.learn(settings, key, SeenRun(calls=tuple(calls), facts=facts))
        return facts

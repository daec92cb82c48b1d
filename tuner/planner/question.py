"""What planning asks of every plan, and the simulated runs that answer it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.spec.settings import Settings
from policies.objective import Objective
from policies.sla import Sla
from tuner.described.node import Node
from tuner.planner.run_cache import CachedRun, RunCache, RunFacts, RunKey
from tuner.simulation.simulate import OnProgress, no_progress
from tuner.workload.workload import Workload

AS_TOLD = RunKey()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A load on a node under an SLA.

    It goes to worker processes without its ``cache``, the runs of this load so far.
    ``only_decides``: nobody asks how likely something is that is certainly not dependable.
    """

    node: Node
    workload: Workload
    sla: Sla
    seed: int
    objective: Objective = Objective.DEVICES
    only_decides: bool = False
    cache: RunCache = field(default_factory=RunCache, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": RunCache()}

    def facts(
        self,
        settings: Settings,
        key: RunKey = AS_TOLD,
        load: Workload | None = None,
        on_progress: OnProgress = no_progress,
    ) -> RunFacts:
        """What a whole run of ``settings`` under ``load`` says; ``load`` is what ``key`` names of
        the workload (None: all of it). Simulated only where no known run went the same way.

        Raises: what ``on_progress`` does, as a run under it would.
        """
        load = load or self.workload
        known = self.cache.find(settings, key, self.node, load)
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
        known = self.cache.find(settings, key, self.node, load)
        return (
            known is not None
            and known.facts is not None
            and known.facts.find_flat(self.sla) is not None
        )

    def run(self, settings: Settings, key: RunKey, load: Workload) -> CachedRun:
        """The run behind :meth:`facts`, to be kept by another process."""
        self.facts(settings, key, load)
        found = self.cache.find(settings, key, self.node, load)
        assert found is not None, "it was just made"
        return found

    def _simulate(
        self, settings: Settings, key: RunKey, load: Workload, on_progress: OnProgress
    ) -> RunFacts:
        calls: list[tuple[float, int, int]] = []

        def tell(now_s: float, num_ended: int, num_requests: int) -> None:
            calls.append((now_s, num_ended, num_requests))
            on_progress(now_s, num_ended, num_requests)

        try:
            result = self.node.simulate(
                settings, load, seed=self.seed, step_scale=key.scale, on_progress=tell
            )
        except Exception:
            self.cache.add(settings, key, CachedRun(calls=tuple(calls), facts=None))
            raise
        facts = RunFacts.of(result, self.sla)
        self.cache.add(settings, key, CachedRun(calls=tuple(calls), facts=facts))
        return facts

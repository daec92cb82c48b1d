"""What a tuning job measures its trials on: the protocol of whatever serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from engine.spec.measurement import Fidelity, Measurement, RequestTiming
from engine.spec.settings import Settings
from tuner.workload.workload import Workload


class TuningTarget(Protocol):
    """Tries one setting after the other. Owned by one thread.

    An engine of ours (``tuner.load.live``) or a server started by a command
    (``tuner.servers.target``).
    """

    def measure(
        self,
        settings: Settings,
        workload: Workload,
        *,
        seed: int,
        timeout_s: float,
        fidelity: Fidelity,
        on_ended: Callable[[RequestTiming], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Measurement:
        """Put ``settings`` in force, warm up, and run ``workload`` until every request has ended.

        ``on_ended`` hears of each on this thread, and ``should_stop`` may end the run before.

        A request that is not done ``timeout_s`` after its time is timed out, which counts against
        the SLA: overloaded settings must not look good because they left requests unfinished.

        Raises:
            EngineError: the settings cannot run here, with the reason.
        """
        ...

    def told(self) -> dict[str, Any] | None:
        """What the target itself says of the last measurement, JSON-able; None: nothing."""
        ...

    def close(self) -> None:
        """End what was started for trials. Safe to call twice; ``measure`` starts it again."""
        ...


@dataclass(frozen=True, kw_only=True)
class TargetAsked:
    """What a target of another package is made for: ``model_dir`` is the word given as --model,
    ``vocab_size`` bounds the ids that prompts are drawn from, ``num_devices`` is the most that a
    plan may use."""

    model_dir: str
    vocab_size: int
    num_devices: int
    device: str


# What an entry point of ``gearshift.tuning_targets`` names, which
# ``gearshift tune --engine NAME`` calls.
MakeTarget = Callable[[TargetAsked], TuningTarget]

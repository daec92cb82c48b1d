"""What a job runner needs from a tuner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuner.search.costs import Spent

Json = dict[str, Any]
OnEvent = Callable[[str, Json], None]
IsCancelled = Callable[[], bool]


class JobInputError(Exception):
    """What the job asks for cannot be done; the message goes to the user as it is."""


class JobStoppedError(Exception):
    """The job was cancelled while a step waited or ran."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The tuner's answer. ``recommendation`` None: nothing met the SLA, for this ``reason``.

    ``report`` is the whole document (``tune --out``).
    """

    report: Json
    recommendation: Json | None
    schedule: Json | None
    sla: str
    reason: str
    warnings: list[str] = field(default_factory=list)


class PreparedJob(Protocol):
    """A job ready for its trials, in the memory of one process. Used by one thread.

    Every method but ``close`` raises JobInputError when the job's inputs are at fault.
    """

    @property
    def cost_model(self) -> Json | None:
        """The step model the job works with, to be kept; preparing again from it is quick."""
        ...

    def new_groundwork(self) -> Json | None:
        """What trials rest on and any process would work out alike, to be kept in place of what
        this gave before; None: nothing came to it since. Preparing again with it is quick."""
        ...

    def run_trial(self, number: int, done: Sequence[Json], is_cancelled: IsCancelled) -> Json:
        """Run trial ``number`` after ``done`` and return its record.

        The same number and ``done`` give the same suggestion, in whatever process. A trial under
        way when ``is_cancelled`` turns true may return early; its record is thrown away.
        """
        ...

    def recommend(self, trials: Sequence[Json], is_cancelled: IsCancelled, spent: Spent) -> Verdict:
        """Decide from the finished trials. ``spent``: what earlier calls, which a crash
        cut off, told of in events of type ``spent``."""
        ...

    def close(self) -> None:
        """Free what the job holds (ranks of a live engine). Safe to call twice."""
        ...


class TuningBackend(Protocol):
    """Prepares jobs; ``api.jobs.tuner_backend`` binds the tuner, tests their own."""

    def devices_needed(self, spec: Json) -> int:
        """Devices that live trials of this job use at once; 0 when all is simulated."""
        ...

    def first_device(self, spec: Json) -> int:
        """The device from which on the job wants its devices, as ``cuda:4`` says; by default 0."""
        ...

    def without_devices(self, spec: Json) -> Json:
        """The same job answered from simulation alone."""
        ...

    def fingerprint(self, spec: Json) -> str:
        """Names the hardware whose cost model would do for this job."""
        ...

    def weights(self, spec: Json) -> str | None:
        """What the job's ranks hold layers in, in the words of cost models; None: any.

        Raises:
            JobInputError: an input that cannot be read, named.
        """
        ...

    def prepare(
        self,
        spec: Json,
        *,
        cost_model: Json | None,
        groundwork: Json | None,
        devices: Sequence[int],
        on_event: OnEvent,
        is_cancelled: IsCancelled,
    ) -> PreparedJob:
        """Read the inputs and, where no cost model is given, measure one on ``devices``.

        A ``groundwork`` that does not belong to the job as it is now is not used.

        Raises:
            JobStoppedError: ``is_cancelled`` turned true meanwhile.
            JobInputError: an input that cannot be read, named.
        """
        ...

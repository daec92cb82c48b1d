"""The engine's error tree: everything a user, a file or a rank can cause."""

from __future__ import annotations


class EngineError(Exception):
    """Root of the tree; catch it at a boundary and convert once."""


class PlanError(EngineError):
    """A plan that cannot be read, or that this model or these devices cannot run."""


class CheckpointError(EngineError):
    """A model folder with a missing, misshaped or unsupported part."""


class RequestError(EngineError):
    """A request the engine cannot serve (too long, bad sampling values)."""


class QueueFullError(EngineError):
    """The admission limit is reached; try again later."""

    @classmethod
    def of(cls, num_waiting: int, num_let_in: int, max_queue: int) -> QueueFullError:
        """``num_let_in`` requests that come together find ``num_waiting`` in the queue."""
        more = f", {num_let_in} come together" if num_let_in > 1 else ""
        return cls(f"{num_waiting} requests wait{more}, max_queue is {max_queue}")


class OverloadError(QueueFullError):
    """More requests come than the policy admits; after ``retry_s`` seconds this one would be let
    in, if no other came."""

    def __init__(self, message: str, *, retry_s: float) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class PolicyError(EngineError):
    """A policy the engine cannot apply.

    ``needs`` names the knob class that would be required when the value lies outside the
    envelope the engine was started with, else None.
    """

    def __init__(self, message: str, *, needs: str | None = None) -> None:
        super().__init__(message)
        self.needs = needs


class StalePolicyError(PolicyError):
    """The policy was changed by someone else since the caller read it; read it again."""


class RankError(EngineError):
    """A rank raised, died or stopped answering; the message holds its own words.

    ``rank`` is its number inside the replica, None when it is not known.
    """

    def __init__(self, message: str, *, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class DriverAbsentError(EngineError):
    """No driver tells of devices here; the message says why."""


class DeviceLostError(EngineError):
    """A device answers nothing until it is reset."""
